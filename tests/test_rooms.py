"""The measures of the layout: imports point downward only, and nothing is too long."""

from collections.abc import Iterator
from pathlib import Path

import rooms
from rooms import RANKS, room_of

ROOT = Path(__file__).parents[1]
MODULES = rooms.modules_in(ROOT)
BELOW_DATA_PIPELINES = {"errors", "io", "languages", "text", "data"}


def imports() -> Iterator[tuple[str, str]]:
    for module, others in rooms.arrows_between_modules(MODULES).items():
        yield from ((module, other) for other in others)


def test_every_room_has_its_floor():
    assert set(rooms.rooms_in(MODULES)) == set(RANKS)
    assert len(rooms.FLOORS) <= 10


def test_imports_point_downward_or_stay_in_their_room():
    """Those inside a function, too."""
    upward = [
        f"{module} imports {other}"
        for module, other in imports()
        for room, imported in [(room_of(module), room_of(other))]
        if room != imported and RANKS[imported] >= RANKS[room]
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    reachable = rooms.reachable(rooms.arrows_between_modules(MODULES))
    assert not [module for module, ends in reachable.items() if module in ends]


def test_the_two_packages_meet_below_and_in_the_command():
    crossing = [pair for pair in imports() if len({name.partition(".")[0] for name in pair}) == 2]
    assert not [
        f"{module} imports {other}"
        for module, other in crossing
        for room, imported in [(room_of(module), room_of(other))]
        if room != "cli" and imported not in BELOW_DATA_PIPELINES
    ]


def test_a_folder_says_what_it_is_and_has_at_most_13_files():
    for folder in {file.parent for file in MODULES.values()}:
        first = (folder / "__init__.py").read_text("utf-8").splitlines()[0]
        assert first.startswith('"""') and first.rstrip('"').endswith("."), folder
        assert len(set(folder.glob("*.py")) - {folder / "__init__.py"}) <= 13, folder


def test_no_file_has_over_400_lines_and_no_function_over_80():
    assert not [name for name, file in MODULES.items() if rooms.line_count(file) > 400]
    assert not [
        f"{name}.{function}"
        for name, file in MODULES.items()
        for function, lines in rooms.function_lines(file)
        if lines > 80
    ]


def test_the_core_path_can_be_read_in_one_sitting():
    files = rooms.core_path(ROOT)
    assert len(files) <= 18
    assert sum(map(rooms.line_count, files)) <= 2700


def test_code_lines_are_no_blanks_comments_docstrings_or_imports(tmp_path):
    file = tmp_path / "module.py"
    lines = ['"""What it', 'is."""', "", "import os", "", "# why", "def f(x):", '    """Is x."""']
    lines += ["    import re", "    return (", "        x,  # x", "    )"]
    file.write_text("\n".join(lines))
    assert rooms.code_lines(file) == 4

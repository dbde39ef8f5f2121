"""Measures how the code is laid out: rooms, their lines, and the imports between them.

``python benchmarks/rooms.py [--code CHECKOUT]`` prints the tables of docs/architecture.md. A room
is a folder of a package, with the folders inside of it, or a module beside the rooms.
``tests/test_rooms.py`` holds the measures to their limits.
"""

import argparse
import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGES = ("langsamp_jax", "data_pipelines")
# The lowest floor first. A room imports only from floors below its own.
FLOORS = (
    ("errors",),
    ("hardware", "io"),
    ("config", "languages"),
    ("text", "models"),
    ("data", "parallel", "data_pipelines.corpus"),
    (
        *("huggingface", "objectives", "data_pipelines.packing", "data_pipelines.tokenizers"),
        *("data_pipelines.glot500c", "data_pipelines.synthetic"),
    ),
    ("training", "data_pipelines.seqio_tasks"),
    ("evaluation", "plan"),
    ("analysis", "neurons", "report"),
    ("cli",),
)
RANKS = {room: rank for rank, rooms in enumerate(FLOORS) for room in rooms}
# From a row of the store to the update of the parameters: which rows at which step, their way
# through the model and the objective, and the step.
CORE_PATH = (
    "data/store",
    "data/sampling",
    "data/feed",
    "parallel/mesh",
    "parallel/sharding",
    "models/config",
    "models/transformer",
    "models/attention",
    "models/layers",
    "models/embedding",
    "models/langsamp",
    "objectives/base",
    "objectives/masking",
    "objectives/masked_lm",
    "training/setup",
    "training/step",
    "training/optimizer",
    "training/loop",
)


def modules_in(checkout: Path) -> dict[str, Path]:
    """Returns the file of every module by its dotted name; of a package, its ``__init__.py``.

    The two packages' own ``__init__.py`` are left out. That of ``langsamp_jax`` is the face that
    users see: it loads what they ask for from any room, and rooms take its version only.
    """
    files = sorted(file for package in PACKAGES for file in (checkout / package).rglob("*.py"))
    names = (file.relative_to(checkout).with_suffix("").parts for file in files)
    modules = {
        ".".join(name).removesuffix(".__init__"): file
        for name, file in zip(names, files, strict=True)
    }
    return {name: file for name, file in modules.items() if name not in PACKAGES}


def imported_modules(name: str, file: Path, modules: Mapping[str, Path]) -> set[str]:
    """Returns the modules of ours that ``file`` imports, at its top or inside a function."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= inside & modules.keys() or {node.module}
    return imported & modules.keys() - {name}


def room_of(name: str) -> str:
    """Returns the room of a module: the first part of its name below ``langsamp_jax``."""
    package, room, *_ = name.split(".")
    if room == "__main__":
        return "cli"
    return room if package == "langsamp_jax" else f"{package}.{room}"


def rooms_in(modules: Mapping[str, Path]) -> dict[str, list[str]]:
    """Returns the modules of every room."""
    rooms: dict[str, list[str]] = {}
    for name in modules:
        rooms.setdefault(room_of(name), []).append(name)
    return rooms


def arrows_between_modules(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Returns, of each module, the others that it imports."""
    return {name: imported_modules(name, file, modules) for name, file in modules.items()}


def arrows_between_rooms(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Returns, of each room, the others that its modules import."""
    arrows: dict[str, set[str]] = {}
    for name, others in arrows_between_modules(modules).items():
        room = room_of(name)
        arrows.setdefault(room, set()).update({room_of(o) for o in others} - {room})
    return arrows


def reachable(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Returns, of each node, all to which a path of arrows leads; a node on a circle is among its
    own."""
    ends = {}
    for node in arrows:
        ends[node], waiting = set(), [node]
        while waiting:
            new = arrows[waiting.pop()] - ends[node]
            ends[node] |= new
            waiting += new
    return ends


def floors(arrows: Mapping[str, set[str]]) -> int:
    """Returns the number of nodes of the longest path of arrows, a circle counted as one."""
    ends = reachable(arrows)
    below = {node: {end for end in ends[node] if node not in ends[end]} for node in arrows}
    heights: dict[str, int] = {}
    for node in sorted(arrows, key=lambda node: len(below[node])):
        heights[node] = 1 + max((heights[end] for end in below[node]), default=0)
    return max(heights.values())


def line_count(file: Path) -> int:
    return len(file.read_bytes().splitlines())


def code_lines(file: Path) -> int:
    """Returns the number of lines that are no blank, comment, docstring or import."""
    data = file.read_bytes()
    no_code = {
        *(tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
        *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    }
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    lines = set()
    for token in tokenize.tokenize(io.BytesIO(data).readline):
        if token.type not in no_code:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def function_lines(file: Path) -> Iterator[tuple[str, int]]:
    """Yields the name and the number of lines of every function and method."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def core_path(checkout: Path) -> list[Path]:
    return [checkout / "langsamp_jax" / f"{name}.py" for name in CORE_PATH]


def show(checkout: Path) -> str:
    """Returns two tables in Markdown: the rooms, and the whole."""
    modules = modules_in(checkout)
    rooms, arrows = rooms_in(modules), arrows_between_rooms(modules)
    ends = reachable(arrows)
    pairs = [(room, other) for room, others in arrows.items() for other in others]
    rows = [("room", "floor", "files", "lines", "code lines", "imports from")]
    for room in sorted(rooms, key=lambda room: (RANKS.get(room, 0), room)):
        files = [modules[name] for name in rooms[room]]
        counts = [sum(map(count, files)) for count in (line_count, code_lines)]
        rows.append(
            (room, RANKS.get(room, "-"), len(files), *counts, ", ".join(sorted(arrows[room])))
        )
    core = core_path(checkout)
    known = arrows.keys() <= RANKS.keys()
    core_lines = sum(map(line_count, core)) if all(map(Path.is_file, core)) else "-"
    whole = {
        "files": len(modules),
        "lines": sum(map(line_count, modules.values())),
        "code lines": sum(map(code_lines, modules.values())),
        "rooms": len(rooms),
        "floors": floors(arrows),
        "arrows between rooms": len(pairs),
        "arrows up": sum(RANKS[a] <= RANKS[b] for a, b in pairs) if known else "-",
        "arrows on circles": sum(a in ends[b] for a, b in pairs),
        "lines of the longest file": max(map(line_count, modules.values())),
        "files of the core path": len(core),
        "lines of the core path": core_lines,
    }
    tables = rows, [("measure", "value"), *whole.items()]
    return "\n\n".join(map(markdown, tables))


def markdown(rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parents[1]
    parser.add_argument("--code", type=Path, default=here, help="another checkout to measure")
    print(show(parser.parse_args().code))


if __name__ == "__main__":
    main()

"""Files: what stands under the final name is always complete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.io import files
from langsamp_jax.io.files import new_folder, partial_path, promote, write_bytes, write_text


class Failure(BaseException):
    """As violent as an interrupt: not an Exception."""


def fail(*_: object) -> None:
    raise Failure


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writing_replaces_the_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "lang und größer\r\n" * 100)
    assert file.read_bytes() == ("lang und größer\r\n" * 100).encode("utf-8")
    write_text(file, "kurz\n")
    assert file.read_bytes() == b"kurz\n"
    write_bytes(file, b"\0\xff")
    assert file.read_bytes() == b"\0\xff"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(call, tmp_path, monkeypatch):
    file, new = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_text("old")
    monkeypatch.setattr(files.os, call, fail)
    for path in (file, new):
        with pytest.raises(Failure):
            write_text(path, "new")
    assert file.read_text() == "old" and not new.exists()
    if call == "fsync":  # of what a failing rename leaves, nothing is lost or in the way
        assert names(tmp_path) == ["a.txt"]


def test_a_text_that_cannot_be_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "lone surrogate \ud800")
    assert file.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path, monkeypatch):
    file, seen = tmp_path / "a.txt", []
    file.write_text("old")
    replace = os.replace

    def watch(source, target):
        seen.append((source.read_text(), target.read_text()))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", watch)
    write_text(file, "new")
    assert seen == [("new", "old")] and file.read_text() == "new"


def test_leftovers_of_a_killed_process_are_overwritten(tmp_path):
    (tmp_path / "a.txt.partial").write_text("half" * 100)
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole" and names(tmp_path) == ["a.txt"]
    partial_path(tmp_path / "b").mkdir()
    (partial_path(tmp_path / "b") / "half").write_text("half")
    with new_folder(tmp_path / "b") as folder:
        (folder / "whole").write_text("whole")
    assert names(tmp_path / "b") == ["whole"] and names(tmp_path) == ["a.txt", "b"]


def test_a_full_disk_leaves_the_old_file(small_disk):
    file = small_disk / "a.txt"
    write_text(file, "old")
    with pytest.raises(OSError, match="No space left.*a.txt"):
        write_bytes(file, bytes(1_000_000))
    assert file.read_text() == "old" and names(small_disk) == ["a.txt"]


def test_a_new_folder_appears_when_it_is_full(tmp_path):
    path = tmp_path / "deep" / "er" / "folder"
    with new_folder(path) as folder:
        (folder / "file").write_text("text")
        assert not path.exists() and folder.parent == partial_path(path)
    assert names(path) == ["file"] and names(path.parent) == ["folder"]


def test_an_empty_folder_may_be_there(tmp_path):
    with new_folder(tmp_path / "a") as folder:
        (tmp_path / "a").mkdir()
        (folder / "file").write_text("text")
    assert names(tmp_path / "a") == ["file"] and names(tmp_path) == ["a"]


def test_a_failure_leaves_no_folder(tmp_path):
    with pytest.raises(Failure), new_folder(tmp_path / "a") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("text")
        raise Failure
    assert names(tmp_path) == []


def test_what_is_there_is_neither_entered_nor_changed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with pytest.raises(UserError, match=f"{tmp_path / name} already holds something else"):
            with new_folder(tmp_path / name):
                pytest.fail("the block was entered")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "folder" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


def test_promoting_does_not_bury_what_appeared_meanwhile(tmp_path):
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("mine")
    with pytest.raises(UserError, match="already holds"):
        promote(tmp_path / "a.partial", tmp_path / "a")
    assert (tmp_path / "a" / "mine").read_text() == "mine"


def kinds(tmp_path: Path) -> dict[str, Path]:
    """Outputs in which a folder can be made, by kind."""
    paths = {name: tmp_path / name / "out" for name in ("new", "empty", "link", "deep", "turns")}
    for name in ("empty", "link", "turns"):
        paths[name].parent.mkdir()
    paths["empty"].mkdir()
    (tmp_path / "target").mkdir()
    paths["link"].symlink_to(tmp_path / "target")
    paths["deep"] = paths["deep"] / "er"
    paths["turns"] = paths["turns"] / ".." / "out"
    paths["turns"].parent.parent.mkdir()
    return paths


def fill(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "run.json").write_text("{}")  # what seals it, though written first
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("text")


def test_a_folder_is_made_wherever_it_may_be(tmp_path, monkeypatch):
    for kind, path in kinds(tmp_path).items():
        fill(path)
        assert names(path) == ["run.json", "sub"], kind
        with pytest.raises(UserError, match="already holds something else"):
            fill(path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fill(Path("."))
    assert names(Path.cwd()) == ["run.json", "sub"]  # it is the folder that the shell is in
    assert (tmp_path / "link" / "out").is_symlink()
    assert not list(tmp_path.rglob("*partial*")) and not list(tmp_path.rglob("*claim*"))


def test_a_mount_point_is_filled(small_disk):
    fill(small_disk)
    assert names(small_disk) == ["run.json", "sub"]
    assert names(small_disk.parent) == [small_disk.name]  # nothing beside it, on another disk


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling", "fifo"])
def test_no_place_for_a_folder_is_found_before_any_work(kind, tmp_path):
    place = tmp_path / "place"
    path = place / "out" if kind == "below a file" else place
    if kind == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.write_text("mine")
    with pytest.raises(UserError), new_folder(path):
        pytest.fail("the block was entered")
    assert names(tmp_path) == ["place"]


def test_what_may_not_be_written_to_is_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda path, mode: path != tmp_path)  # root may all
    for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(UserError, match=f"cannot be made: {tmp_path} may not be written to"):
            fill(path)
    with pytest.raises(UserError, match="may not be written to"):
        files.require_file(tmp_path / "a.txt")


KILLED = """
import os, pathlib, sys
from langsamp_jax.io.files import new_folder
replace, moved = os.replace, []
def killed(source, target):
    if "new" in pathlib.Path(source).parts:
        moved.append(target)
        if len(moved) > int(sys.argv[1]):
            os._exit(9)
    replace(source, target)
with new_folder(pathlib.Path(".")) as folder:
    (folder / "run.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("text")
    os.replace = killed
"""


@pytest.mark.parametrize("moved", range(2))
def test_a_folder_that_was_being_filled_is_incomplete_and_filled_anew(moved, tmp_path):
    command = [sys.executable, "-c", KILLED, str(moved)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(command, cwd=tmp_path, env=environment).returncode == 9
    assert names(tmp_path) == [".partial", "sub"]  # and no run.json, in which a run is opened
    (tmp_path / "mine").write_text("mine")
    fill(tmp_path)
    assert names(tmp_path) == ["mine", "run.json", "sub"]


def test_a_link_to_a_file_stays_and_a_device_is_written_to(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "a.txt").read_text() == "new" and (tmp_path / "link").is_symlink()
    write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()

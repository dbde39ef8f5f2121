"""Files: those written are complete where they have their final name, those read are regular."""

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from langsamp_jax.errors import UserError
from langsamp_jax.io.claim import CLAIM, Claim
from langsamp_jax.io.storage import GrowingObject, files_in, is_remote, scratch

_INSIDE = ".partial"
_FILLING = "filling"  # says that what is in the folder already is of the unfinished form


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` (UTF-8) beside ``path``, then renames it into place."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` beside ``path``, then renames it into place; an object needs neither.

    A link stays one, and what is no file, such as ``/dev/stdout``, is written to.
    """
    if is_remote(path) or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    target = path.resolve()
    beside = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # write() names no file
    finally:
        beside.unlink(missing_ok=True)


def growing_file(path: Path, content: bytes = b"") -> BinaryIO | GrowingObject:
    """Opens ``path``, which begins with ``content``, for writing more."""
    if is_remote(path):
        return GrowingObject(path, content)
    write_bytes(path, content)
    return open(path, "ab")


def require_fetched(content: bytes, source: object) -> None:
    """Raises UserError where the first bytes of a file are those of a Git LFS pointer, which stands
    for a file that was not downloaded."""
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(
            f"{source} is a Git LFS pointer, not the file itself: fetch it with git lfs pull in "
            "its folder, or with hf download"
        )


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to fill; it becomes ``path`` if the block succeeds, and is removed if not.

    In an object store what seals the folder appears last.

    Raises:
      UserError: ``path`` is no place for a folder, or another process is filling it.
    """
    require_absent(path)
    if is_remote(path):
        with scratch(path) as folder:
            yield folder
        return
    partial = partial_path(path)
    with Claim(partial / CLAIM, path):
        try:
            shutil.rmtree(partial / "new", ignore_errors=True)
            (partial / "new").mkdir()
            yield partial / "new"
            promote(partial / "new", path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def full_disk_as_oserror(path: Path) -> Iterator[None]:
    """Turns what TensorStore, Orbax and NumPy raise on a full disk into the OSError that it is.

    One that names no file, as those of write() do, gets the name ``path``. So does what an object
    store refuses; it has no other errors of its own there.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and str(error).endswith(" written"):  # NumPy: "9 requested and 5"
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except (ValueError, RuntimeError) as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        if is_remote(path):
            raise OSError(f"{path}: {' '.join(str(error).split())[:300]}") from error
        raise


def promote(finished: Path, path: Path) -> None:
    """Makes a ``finished`` folder, which lies in ``partial_path(path)``, the folder ``path``.

    By a rename; but a folder that is there, which may be a link, a mount point or the working
    directory, is filled, what seals it last.

    Raises:
      UserError: something else has come there meanwhile.
    """
    if not path.is_dir():
        os.rename(finished, path)
        return
    require_absent(path)
    (finished.parent / _FILLING).touch()
    for file in files_in(finished):
        target = path / file.relative_to(finished)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def visible(folder: Path, ending: str = "") -> list[Path]:
    """Lists what is in a folder and has a name with that ending, sorted.

    Hidden names are no input: ``.DS_Store``, ``._deu_Latn.txt``, ``.deu_Latn.txt.swp``.
    """
    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in names if path.name.endswith(ending))


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields the files in a folder and its folders, hidden names apart; links are followed.

    A link back to one of the folders ``above`` is not.
    """
    within = (*above, folder.resolve())
    for path in visible(folder):
        if not path.is_dir():
            yield path
        elif path.resolve() not in within:
            yield from files_below(path, within)


def require_regular(path: Path) -> None:
    """Raises UserError for a pipe, a socket or a device, which may have no end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is a pipe, socket or device; expected a regular file")


def require_absent(path: Path) -> None:
    """Raises UserError where no output folder can be made: something is there, or may not be."""
    if path.is_dir():
        ours = _INSIDE, CLAIM
        taken = any(not entry.name.startswith(ours) for entry in path.iterdir())
        if taken and not is_remote(path):
            taken = not (partial_path(path) / _FILLING).exists()
    else:
        taken = path.exists() or (not is_remote(path) and path.is_symlink())
    if taken:
        raise UserError(f"{path} already holds something else; name another --output or remove it")
    if is_remote(path) and glob.has_magic(str(path)):  # what is removed there might be another's
        raise UserError(f"{path}: fsspec takes * ? [ for patterns; name another --output")
    _require_writable(path, path)


def require_file(path: Path) -> None:
    """Raises UserError where no output file can be written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write")
    _require_writable(path, path.parent)


def _require_writable(path: Path, folder: Path) -> None:
    if is_remote(folder):
        return
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        raise UserError(f"{path} cannot be made: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be made: {place} may not be written to")


def partial_path(path: Path) -> Path:
    """Returns the folder for the unfinished form of the folder ``path``.

    It is beside it, on the same disk; or in it, where it is there.
    """
    path = path.absolute()  # "." has no name of its own
    beside = path.parent / f"{path.name}.partial"
    return path / _INSIDE if path.is_dir() and not beside.exists() else beside

"""Writing files so that what stands under the final name is always complete."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import GrowingObject, is_remote, scratch


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` (UTF-8) beside ``path``, then renames it into place."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` beside ``path``, then renames it into place; an object needs neither."""
    if is_remote(path):
        path.write_bytes(data)
        return
    beside = partial_path(path)
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # write() names no file
    finally:
        beside.unlink(missing_ok=True)


def growing_file(path: Path, content: bytes = b"") -> BinaryIO | GrowingObject:
    """Opens ``path``, which begins with ``content``, for writing more."""
    if is_remote(path):
        return GrowingObject(path, content)
    path.parent.mkdir(exist_ok=True)
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

    In an object store the file that was written last appears last.

    Raises:
      UserError: ``path`` exists and is not an empty folder.
    """
    require_absent(path)
    if is_remote(path):
        with scratch(path) as folder:
            yield folder
        return
    beside = partial_path(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        promote(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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


def promote(partial: Path, path: Path) -> None:
    """Renames a finished ``partial`` folder to ``path``, which may be an empty folder."""
    if path.is_dir():
        path.rmdir()
    os.rename(partial, path)


def require_absent(path: Path) -> None:
    """Raises UserError where an output folder already holds something."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{path} already holds something else; name another --output or remove it")


def partial_path(path: Path) -> Path:
    """Returns where the unfinished form of ``path`` is written: beside it, on the same disk."""
    path = path.absolute()  # "." has no name of its own
    return path.with_name(path.name + ".partial")

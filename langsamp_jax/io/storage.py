"""Where files are: a local path, or a place in an object store, gs://... or s3://...

A local path is a ``pathlib.Path``. A place in an object store is an ``etils.epath.Path``, which has
the same methods and reads and writes through fsspec; large arrays go through TensorStore, which
gets the same settings from here. There are no folders in an object store, only names that begin
alike; there is no rename and no append, and a whole object is written at once or not at all.
"""

import functools
import importlib.util
import os
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from langsamp_jax.errors import UserError

_EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # what reads it, the extra that has it
_SETTINGS = {
    "gs": "the name, GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "s3": "the name, AWS_ACCESS_KEY_ID or ~/.aws, AWS_REGION, AWS_ENDPOINT_URL",
}
# What is written last into a folder, for without it nobody takes the folder for complete.
_SEALS = ("manifest.json", "run.json", "config.json", "world.json", "row_map.tsv")
_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")


def location(text: str | PurePath) -> Path:
    """Returns a local path or a place in an object store, as it was typed.

    For the border: the types of the command line, and what opens a store, a run or a model.

    Raises:
      UserError: the kind of store is not supported, its package is not installed, or the name is
        not UTF-8.
    """
    if isinstance(text, PurePath):
        return text
    scheme, mark, name = text.partition("://")
    if not mark:
        return _usable(text)
    if scheme not in _EXTRAS or name.startswith("/") or not name:
        raise UserError(f"{text}: expected a local path, gs://BUCKET/... or s3://BUCKET/...")
    package, extra = _EXTRAS[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{text} needs the extra {extra}: pip install 'langsamp-jax[{extra}]'")
    os.environ.setdefault("EPATH_USE_TF", "0")  # or epath imports TensorFlow where it is installed
    if scheme == "s3" and "AWS_REGION" in os.environ:  # botocore knows it by another name
        os.environ.setdefault("AWS_DEFAULT_REGION", os.environ["AWS_REGION"])
    if scheme == "gs" and "STORAGE_EMULATOR_HOST" in os.environ:  # so does TensorStore
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", os.environ["STORAGE_EMULATOR_HOST"])
    import fsspec
    from etils import epath

    # No listing is kept: another host may have written since, or TensorStore here.
    fsspec.config.conf |= {name: {"use_listings_cache": False} for name in ("gs", "gcs", "s3")}
    return epath.Path(text.rstrip("/"))


def local(text: str) -> Path:
    """Returns a local path, as it was typed; raises UserError for anything else."""
    if "://" in text:
        raise UserError(f"{text}: expected a local path (a copy of it can be in an object store)")
    return _usable(text)


def _usable(text: str) -> Path:
    """Returns a local path; raises UserError for one that would lead to another place."""
    path = Path(text)
    if not text.strip():
        raise UserError(f"{text!r} is an empty path; is a variable of your shell not set?")
    if "\\" in str(path.absolute()):
        raise UserError(f"{path.absolute()}: TensorStore takes \\ for /; rename that folder")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in str(path.absolute())):
        raise UserError(
            f"{text!r}: a path with a control character, or that is not UTF-8; rename it"
        )
    if path.parts[:1] in (("gs:",), ("s3:",)):
        raise UserError(f"{text}: expected gs://BUCKET/... or s3://BUCKET/... or a local path")
    return path


def is_remote(path: PurePath) -> bool:
    """Returns whether ``path`` is in an object store."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """Returns ``path`` from the root on; in an object store every path is."""
    return path if is_remote(path) else path.absolute()


def straight(path: Path) -> Path:
    """Returns a path without ``..``, which TensorStore does not take."""
    return path.resolve() if ".." in path.parts and not is_remote(path) else path


def require_reachable(arguments: Iterable[Any]) -> None:
    """Asks each object store that one of ``arguments``, or of a list among them, names; there need
    be nothing at the place.

    Raises:
      UserError: no such bucket, no credentials, no permission, or nobody answers.
    """
    for argument in arguments:
        for place in argument if isinstance(argument, list) else [argument]:
            if isinstance(place, PurePath) and is_remote(place):
                _require_answer(place)


def _require_answer(path: Path) -> None:
    try:
        _file_system(path).ls(str(path), detail=False)
    except Exception as error:
        reason = storage_failure(error)
        if reason is None:
            raise
        if isinstance(error, FileNotFoundError) and "bucket does not exist" not in reason:
            return
        settings = _SETTINGS[str(path).partition("://")[0]]
        raise UserError(f"{path} cannot be reached: {reason} (check {settings})") from error


def storage_failure(error: Exception) -> str | None:
    """Returns what an object store's client says has gone wrong; None for any other error."""
    client = type(error).__module__.partition(".")[0] in _CLIENTS
    return " ".join(str(error).split()) if client or isinstance(error, OSError) else None


def sizes(folder: Path) -> dict[str, int]:
    """Lists the bytes of every object below ``folder``, by its name there."""
    objects = _file_system(folder).find(str(folder), detail=True)
    prefix = _key(folder) + "/"
    return {name.removeprefix(prefix): facts["size"] for name, facts in objects.items()}


def download(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copies objects of one store into a local folder, a few MB in memory at a time.

    Returns:
      the local files, in the order of ``files``.
    """
    copies = [folder / file.name for file in files]
    _file_system(files[0]).get([str(file) for file in files], [str(copy) for copy in copies])
    return copies


def upload(folder: Path, path: Path) -> None:
    """Copies the files of a local folder below ``path``, in the order of ``files_in``.

    The last one shows that all are there. Where a copy fails, those before it are removed.
    """
    store, copied = _file_system(path), []
    try:
        for file in files_in(folder):
            name = f"{path}/{file.relative_to(folder).as_posix()}"
            store.put_file(str(file), name)
            copied.append(name)
    except Exception:
        for name in copied:
            with suppress(Exception):  # the first error is the one to be told
                store.rm_file(name)
        raise


def files_in(folder: Path) -> list[Path]:
    """Lists the files below a local folder, what seals it last, else as they were written."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    seals = [folder / name for name in _SEALS]
    return sorted(files, key=lambda file: (file in seals, file.stat().st_mtime_ns))


def create(path: Path, data: bytes) -> bool:
    """Writes a new file or object; returns False where there is one of that name."""
    try:
        if not is_remote(path):
            with open(path, "xb") as file:
                file.write(data)
            return True
        if path.exists():  # a store that knows no conditional writes would replace it
            return False
        _file_system(path).pipe_file(str(path), data, mode="create")
    except FileExistsError:
        return False
    return True


def read(path: Path) -> bytes:
    """Reads a file or object at once, so that another may replace it meanwhile."""
    return _file_system(path).cat_file(str(path)) if is_remote(path) else path.read_bytes()


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yields a local folder whose files are in ``path`` when the block has succeeded."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="langsamp-") as folder:
        yield Path(folder)
        upload(Path(folder), path)


class GrowingObject:
    """Appends to a file in a store whose objects do not grow: ``flush`` writes it anew."""

    def __init__(self, path: Path, content: bytes):
        self._path, self._content = path, bytearray(content)

    def write(self, data: bytes) -> None:
        self._content += data

    def flush(self) -> None:
        self._path.write_bytes(bytes(self._content))

    close = flush


def kvstore(path: Path) -> dict[str, Any]:
    """Returns the TensorStore key-value store of all that is below ``path``."""
    return kvstore_at(f"{straight(path)}/")


def kvstore_at(prefix: str) -> dict[str, Any]:
    """Returns the TensorStore key-value store of the names that begin with ``prefix``."""
    scheme, mark, rest = prefix.partition("://")
    if not mark:
        return {"driver": "file", "path": prefix}
    bucket, _, key = rest.partition("/")
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": key}
    return {"driver": "s3", "bucket": bucket, "path": key, **_s3_settings()}


def address(path: Path, name: str) -> str:
    """Returns the full name of what TensorStore calls ``name``, in the store where ``path`` is."""
    if not is_remote(path):
        return name
    scheme, _, key = str(path).partition("://")
    return f"{scheme}://{key.partition('/')[0]}/{name}"


@functools.cache
def _s3_settings() -> dict[str, Any]:
    """Returns for TensorStore what s3fs finds in the environment and in ~/.aws.

    A region, and an endpoint if it is not Amazon's own.
    """
    import botocore.session

    client = botocore.session.get_session().create_client("s3")
    settings = {}
    if not client.meta.endpoint_url.endswith(".amazonaws.com"):
        settings = {"endpoint": client.meta.endpoint_url, "aws_region": client.meta.region_name}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # the search elsewhere would log what it does not find
        settings["aws_credentials"] = {"type": "environment"}
    return settings


def _file_system(path: Path) -> Any:
    import fsspec

    return fsspec.filesystem(str(path).partition("://")[0])


def _key(path: Path) -> str:
    """Returns BUCKET/NAME, as fsspec calls it."""
    return str(path).partition("://")[2]

"""Texts of Hugging Face ``datasets``: Arrow files with a column ``text``, local or in a bucket.

Arrow files have no checksums. What is seen of damage is a file that is cut off or goes on behind
its end, a broken structure, and text that is no UTF-8.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from etils import epath

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import visible

if TYPE_CHECKING:
    import pyarrow

COLUMN = "text"

_BLOCK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1000
# https://arrow.apache.org/docs/format/Columnar.html: a stream of messages ends with END; a file is
# such a stream between MAGIC, padded to 8 bytes, and an index that ends with MAGIC.
_MAGIC = b"ARROW1"
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def data_files(folder: Path) -> list[Path]:
    """Lists the Arrow files of a saved dataset in the order of its rows; [] without a dataset.

    Of a ``DatasetDict``, which has a folder for each split, the files of ``train``.

    Raises:
      UserError: a split ``train`` or a file of the dataset is missing, or the dataset's
        ``state.json`` is damaged.
    """
    train = folder / "train"
    if train.is_dir():
        folder = train
    elif (folder / "dataset_dict.json").exists():
        raise UserError(f"{folder} is a DatasetDict without the split train; add or rename a split")
    present = [file.name for file in visible(folder, ".arrow")]
    state = folder / "state.json"
    names = _listed(state) if state.exists() else present
    missing = sorted((set(names) | _expected(names)) - set(present))
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}, a file of its dataset; fetch it again")
    return [folder / name for name in names]


def texts(file: Path) -> Iterator[bytes]:
    """Yields the UTF-8 text of every row that has one; needs the memory of one record batch.

    Raises:
      UserError: no column ``text`` of strings (the columns are named), or a damaged file.
    """
    pyarrow = _pyarrow()
    with epath.Path(file).open("rb") as stream:
        if not hasattr(stream, "closed"):  # TensorFlow's files, by which buckets are read
            stream.closed = False
        try:
            for column in _columns(stream, file):
                column.validate(full=True)
                for start in range(0, len(column), _ROWS_AT_ONCE):
                    rows = column.slice(start, _ROWS_AT_ONCE).drop_null()
                    yield from rows.cast(pyarrow.large_binary()).to_pylist()
        except MemoryError:
            raise _damaged(file, "it gives a size that no memory has") from None
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise _damaged(file, str(error).split("\n")[0]) from None


def blocks(file: Path) -> Iterator[bytes]:
    """Yields the texts as lines, a megabyte or so at a time; a line feed in a text becomes a space.

    Raises:
      UserError: as ``texts`` does.
    """
    lines, size = [], 0
    for text in texts(file):
        lines.append(text.replace(b"\n", b" ") + b"\n")
        size += len(lines[-1])
        if size >= _BLOCK_BYTES:
            yield b"".join(lines)
            lines, size = [], 0
    if lines:
        yield b"".join(lines)


def _columns(stream: IO[bytes], file: Path) -> Iterator["pyarrow.Array"]:
    """Yields the column of each record batch; raises UserError if the stream does not end well."""
    pyarrow = _pyarrow()
    indexed = stream.read(len(_MAGIC)) == _MAGIC
    stream.seek(8 if indexed else 0)
    reader = pyarrow.ipc.open_stream(stream)
    names, types = reader.schema.names, reader.schema.types
    if COLUMN not in names:
        raise UserError(f"{file} has no column {COLUMN!r}; its columns are {names}")
    index = names.index(COLUMN)
    if types[index] not in (pyarrow.string(), pyarrow.large_string()):
        raise UserError(f"{file}: the column {COLUMN!r} holds {types[index]}; expected strings")
    for batch in reader:
        yield batch.column(index)
    # A stream that is cut off between two batches looks complete to Arrow.
    stream.seek(stream.tell() - len(_END))
    if stream.read(len(_END)) != _END:
        raise _damaged(file, "it is cut off")
    rest = stream.read()
    if not (rest.endswith(_MAGIC) if indexed else not rest):
        raise _damaged(file, "it is cut off" if indexed else f"{len(rest)} bytes follow its end")


def _listed(state: Path) -> list[str]:
    """Returns the files that ``Dataset.save_to_disk`` wrote, in order; others may be left-overs."""
    try:
        return [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise _damaged(state, "it does not list the files of a dataset") from None


def _expected(names: list[str]) -> set[str]:
    """Returns all files of the sets that the names belong to (``data-00000-of-00003.arrow``)."""
    matches = [re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.arrow", name) for name in names]
    sets = {(match[1], int(match[2])) for match in matches if match}
    return {f"{stem}-{i:05d}-of-{n:05d}.arrow" for stem, n in sets for i in range(n)}


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged: {reason}")


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
    except ImportError:
        raise UserError(
            "reading Arrow files needs pyarrow: pip install 'langsamp-jax[data]'"
        ) from None
    return pyarrow

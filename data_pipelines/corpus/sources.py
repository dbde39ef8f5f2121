"""Sources: the text files of a corpus, the ranges they are cut into, and their lines.

A corpus is a folder. A language-script is one of ``deu_Latn.txt``, ``deu_Latn.txt.gz``, or a
folder ``deu_Latn`` of such files or of the Arrow files of a Hugging Face dataset. What else has
the name of a language-script is not read, and is named.
"""

import dataclasses
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipelines.corpus import arrow
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_fetched, require_regular, visible
from langsamp_jax.io.text_lines import HEAD_BYTES, ends_with_cr
from langsamp_jax.languages.inventory import check_language_script, is_language_script
from langsamp_jax.languages.unread_text import Unread, say_unread, unread_text

SUFFIXES = (".txt", ".txt.gz")
RANGE_BYTES = 8 << 20
LONGEST_LINE = 1 << 20  # bytes; what is longer is no sentence, and would not fit into memory

_BLOCK_BYTES = 1 << 20
_FIRST_BYTES = 1 << 12  # nearly always enough to see how lines end
_EXPECTED = (
    "deu_Latn.txt, deu_Latn.txt.gz, or a folder deu_Latn of such files or of the training split "
    "of a dataset"
)


@dataclasses.dataclass(frozen=True)
class TextRange:
    """Text that is encoded in one go: the lines of ``file`` that begin at ``start`` or later, and
    before ``stop``. Files that cannot be entered in the middle are one range."""

    name: str
    file: Path
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole lines, ``start`` bytes into the text of a file, which is uncompressed there.

    ``overlong`` lines longer than ``LONGEST_LINE`` are left out behind it.
    """

    text: bytes
    start: int
    overlong: int = 0


def find_sources(corpus: Path) -> dict[str, list[Path]]:
    """Lists the files of each language-script of a corpus, sorted; says what is not read.

    Raises:
      UserError: the folder is missing or holds no text, a name is no language-script with
        existing codes, a language-script has two sources, or a file is a pipe or a device.
    """
    corpus = Path(corpus)
    if not corpus.is_dir():
        raise UserError(f"corpus folder {corpus} not found")
    sources: dict[str, list[Path]] = {}
    paths: dict[str, Path] = {}
    for path in visible(corpus):
        files = source_files(path)
        if not files:
            continue
        name = path.name if path.is_dir() else _stem(path)
        try:
            check_language_script(name)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if name in sources:
            raise UserError(
                f"{name} has two sources, {paths[name]} and {path}; join them or move one away"
            )
        sources[name], paths[name] = files, path
        for file in files:
            require_regular(file)
    say_unread(unread_files(corpus, sources), _EXPECTED)
    if not sources:
        raise UserError(f"{corpus} holds no text; expected files such as deu_Latn.txt")
    return dict(sorted(sources.items()))


def unread_files(corpus: Path, sources: dict[str, list[Path]]) -> list[Unread]:
    """Lists what has the name of a language-script and is none of the ``sources`` of a corpus."""
    return unread_text(Path(corpus), {file for files in sources.values() for file in files})


def source_files(path: Path) -> list[Path]:
    """Lists the text files at ``path``: itself, or those of a language-script's folder.

    Folders of text with another name (notes, held-out text) are no part of the corpus.

    Raises:
      UserError: a folder has text in two forms, or lacks a file of its dataset.
    """
    if not path.is_dir():
        return [path] if path.name.endswith(SUFFIXES) else []
    arrow_files = arrow.data_files(path)
    if not is_language_script(path.name):
        return arrow_files
    texts = [file for file in visible(path) if file.name.endswith(SUFFIXES) and not file.is_dir()]
    if arrow_files and texts:
        raise UserError(f"{path} has two sources, Arrow files and {texts[0].name}; move one away")
    return arrow_files or texts


def text_ranges(name: str, files: list[Path]) -> list[TextRange]:
    """Cuts the files of a language-script into ranges, in the order of the text."""
    ranges = []
    for file in files:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            require_fetched(stream.read(100), file)
        step = RANGE_BYTES if file.suffix == ".txt" else max(size, 1)
        ranges += [
            TextRange(name, file, s, min(s + step, size)) for s in range(0, max(size, 1), step)
        ]
    return ranges


def read_blocks(text: TextRange) -> Iterator[Block]:
    """Yields the lines of a range, a megabyte or so at a time.

    Raises:
      UserError: a compressed or Arrow file is damaged; it is named.
    """
    if text.file.suffix == ".arrow":
        start = 0
        for lines in arrow.blocks(text.file):
            yield Block(lines, start)
            start += len(lines)
    else:
        stop = None if text.file.suffix == ".gz" else text.stop
        with open_text(text.file) as stream:
            yield from _blocks(stream, text.start, stop)


@contextmanager
def open_text(file: Path) -> Iterator[BinaryIO]:
    """Opens the uncompressed bytes of a text file, in which LF ends every line.

    CR in its place is replaced in a file whose lines end with it, see ``text_lines``.

    Raises:
      UserError: a compressed file is damaged.
    """
    with file.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
        try:
            head = stream.read(_FIRST_BYTES)
            if b"\n" not in head:
                head += stream.read(HEAD_BYTES - len(head))
            stream.seek(0)
            yield io.BufferedReader(_CrAsLf(stream)) if ends_with_cr(head) else stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{file} is damaged: {error}") from None


class _CrAsLf(io.RawIOBase):
    """Gives the bytes of a stream with LF for every CR, each where it was."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.seek = stream.seek

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self._stream.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(data)] = data
        return len(data)


def line_number(file: Path, position: int) -> int:
    """Returns the number, from 1, of the line that begins ``position`` bytes into a file's text."""
    number = 1
    for block in read_blocks(TextRange("", file, 0, file.stat().st_size)):
        number += block.text[: max(0, position - block.start)].count(b"\n")
        if block.start + len(block.text) > position:
            break
        number += block.overlong
    return number


def range_digests(file: Path, start: int, stop: int) -> list[str]:
    """Returns a hash of each ``RANGE_BYTES`` of the bytes [start, stop) of a file."""
    digests = []
    with open(file, "rb") as stream:
        stream.seek(start)
        for position in range(start, stop, RANGE_BYTES):
            data = stream.read(min(RANGE_BYTES, stop - position))
            digests.append(hashlib.blake2b(data, digest_size=16).hexdigest())
    return digests


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".txt")


def _blocks(stream: BinaryIO, start: int, stop: int | None) -> Iterator[Block]:
    """Yields the lines that begin in [start, stop) of a stream; None: up to its end."""
    position = start
    if start:  # a line that begins at start follows a line end at start - 1
        stream.seek(start - 1)
        position += _skip_line(stream) - 1
    while stop is None or position < stop:
        size = _BLOCK_BYTES if stop is None else min(_BLOCK_BYTES, stop - position)
        text = stream.read(size)
        if not text:
            return
        rest = b"" if text.endswith(b"\n") else stream.readline(LONGEST_LINE)
        text += rest
        if len(rest) < LONGEST_LINE or rest.endswith(b"\n"):  # the last line may have no end
            yield Block(text, position)
            position += len(text)
        else:
            whole = text.rfind(b"\n") + 1
            yield Block(text[:whole], position, overlong=1)
            position += len(text) + _skip_line(stream)


def _skip_line(stream: BinaryIO) -> int:
    """Reads to the next line end, a bit at a time; returns how many bytes that were."""
    skipped = 0
    while text := stream.readline(LONGEST_LINE):
        skipped += len(text)
        if text.endswith(b"\n"):
            break
    return skipped

"""Rows: the tokens of a language-script, cut and written as the files of a store.

The third stage of a store, whose items are files of one language-script, and what it rests on.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from data_pipelines.packing import grow
from data_pipelines.packing.deduplication import Deduplicated, unmasked_tokens
from data_pipelines.packing.scratch import ARRAYS, CHUNKS, MASKS
from langsamp_jax.data.manifest import ROWS_PER_FILE, SPLITS, Counts
from langsamp_jax.data.store import Split, array_spec, file_digest, row_files
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import full_disk_as_oserror

# The whole store is forced to disk at its end, not every file of it; and every core has a worker.
_CONTEXT = ts.Context({"file_io_sync": False, "data_copy_concurrency": {"limit": 1}})
_FILES_AT_ONCE = 4  # that one work item packs


@dataclasses.dataclass(frozen=True)
class Language:
    """A language-script between the stages.

    Attributes:
      key: of its deduplication; changes with its chunks and the base.
      chunks: their names, in the order of the text.
      new: the new text that is left of it.
      base: what the base store holds of it, by split.
    """

    key: str
    chunks: list[str]
    new: Deduplicated
    base: dict[str, Counts]

    def counts(self, split: str, sequence_length: int) -> Counts:
        """Returns what the new store will hold of one split, base and new text together."""
        base, new_tokens = self.base[split], sum(self.new.tokens[split])
        stream = grow.tokens_in_rows(base, sequence_length) + new_tokens
        return Counts(
            lines=base.lines + self.new.lines[split],
            tokens=base.tokens + new_tokens,
            unknown=base.unknown + self.new.unknown[split],
            rows=number_of_rows(stream, split, sequence_length),
        )


@dataclasses.dataclass(frozen=True)
class PackItem:
    """Files of one language-script that one work item packs.

    Attributes:
      rows: how many rows the array of each split has.
      files: by split, the numbers of the files to be written.
    """

    name: str
    language: Language
    rows: dict[str, int]
    files: dict[str, range]


@dataclasses.dataclass(frozen=True)
class Packer:
    """Packs files of rows; called as ``packer(key, item)`` in any process.

    Attributes:
      base: the path and the fingerprint of the base store.
    """

    scratch: Path
    base: tuple[Path, str] | None
    sequence_length: int
    pad_id: int

    def __call__(self, key: str, item: PackItem) -> dict[str, Any]:
        """Returns the bytes and the digest of each file, by its path in the store."""
        language, written = item.language, {}
        for split, files in item.files.items():
            base_rows = None
            if language.base[split].rows:
                opened = grow.open_split(*self.base, split)
                base_rows = opened, opened.names.index(item.name)
            tokens = token_stream(
                base_rows,
                grow.tokens_in_rows(language.base[split], self.sequence_length),
                [self.scratch / CHUNKS / chunk for chunk in language.chunks],
                language.new.tokens[split],
                self.scratch / MASKS / language.key,
                split,
                files.start * ROWS_PER_FILE * self.sequence_length,
            )
            array = array_folder(self.scratch, language, split, self.sequence_length)
            rows = item.rows[split]
            facts = write_files(array, files, rows, self.sequence_length, self.pad_id, tokens)
            written |= {f"{split}/{item.name}/{file}": fact for file, fact in facts.items()}
        return written


def pack_items(name: str, language: Language, rows: dict[str, int]) -> list[PackItem]:
    """Returns the files to write, some an item: all but those that the base store has filled."""
    todo = [
        (split, file)
        for split in SPLITS
        for file in range(language.base[split].rows // ROWS_PER_FILE, len(row_files(rows[split])))
    ]
    items = []
    for first in range(0, len(todo), _FILES_AT_ONCE):
        files: dict[str, range] = {}
        for split, file in todo[first : first + _FILES_AT_ONCE]:
            files[split] = range(files.get(split, range(file, file)).start, file + 1)
        items.append(PackItem(name, language, rows, files))
    return items


def array_folder(scratch: Path, language: Language, split: str, sequence_length: int) -> Path:
    """Returns the folder of the array of one language-script and split before it is linked."""
    return scratch / ARRAYS / f"{language.key}-{sequence_length}" / split


def require_sequence_length(sequence_length: int) -> None:
    """Raises UserError for rows of a length that is no use."""
    if not 8 <= sequence_length <= 65536:
        raise UserError(f"--sequence_length {sequence_length}: expected 8 to 65536 tokens")


def number_of_rows(tokens: int, split: str, sequence_length: int) -> int:
    """Returns how many rows ``tokens`` tokens fill.

    The rest behind the last full row is dropped from training; in validation it is a row.
    """
    full, rest = divmod(tokens, sequence_length)
    return full + 1 if rest and split == "validation" else full


def write_files(
    array: Path,
    files: range,
    rows: int,
    sequence_length: int,
    pad_id: int,
    stream: Iterator[np.ndarray],
) -> dict[str, tuple[int, str]]:
    """Writes some files of the array of one language-script and split.

    Args:
      files: the numbers of the files; each holds ``ROWS_PER_FILE`` rows, the array's last may
        hold fewer.
      rows: how many rows the whole array has.
      stream: uint32 arrays, the tokens from the first row of the first file on. What is missing
        at the end of the last row becomes ``pad_id``.

    Returns:
      The bytes and the digest of each file, by its path in the folder of the array.
    """
    with full_disk_as_oserror(array):
        spec = array_spec(array, rows, sequence_length)
        opened = ts.open(spec, create=True, open=True, context=_CONTEXT).result()
        pending, left = [], 0
        written = {}
        for file in files:
            start, stop = file * ROWS_PER_FILE, min(rows, (file + 1) * ROWS_PER_FILE)
            wanted = (stop - start) * sequence_length
            while left < wanted and (tokens := next(stream, None)) is not None:
                pending.append(tokens)
                left += len(tokens)
            padding = np.full(max(0, wanted - left), pad_id, np.uint32)
            tokens = np.concatenate([*pending, padding])
            pending, left = [tokens[wanted:]], len(tokens) - wanted
            opened[start:stop].write(tokens[:wanted].reshape(-1, sequence_length)).result()
            path = f"c/{file}/0"
            written[path] = ((array / path).stat().st_size, file_digest(array / path))
    return written


def token_stream(
    base: tuple[Split, int] | None,
    base_tokens: int,
    chunks: list[Path],
    chunk_tokens: list[int],
    masks: Path,
    split: str,
    start: int,
) -> Iterator[np.ndarray]:
    """Yields the tokens of a language-script: those of a base store, then those of the chunks.

    Args:
      base: the split of the base store, and the number of the language-script in it.
      base_tokens: how many tokens are taken from there, from the first on.
      chunk_tokens: how many tokens of each chunk deduplication leaves in ``split``.
      masks: the folder that ``deduplicate`` filled.
      start: where to begin, in tokens: the first token of a row.

    Yields:
      uint32 [tokens], arrays of any length.
    """
    position = start
    if base is not None and position < base_tokens:
        array, language = base
        length = array.sequence_length
        first, last = position // length, math.ceil(base_tokens / length)
        for row in range(first, last, ROWS_PER_FILE):
            index = np.arange(row, min(last, row + ROWS_PER_FILE))
            tokens, _ = array.read(np.full(len(index), language), index)
            yield tokens.view(np.uint32).reshape(-1)[: base_tokens - row * length]
        position = base_tokens
    skip = position - base_tokens
    ends = np.cumsum(chunk_tokens)
    first = int(np.searchsorted(ends, skip, side="right"))
    skip -= int(ends[first - 1]) if first else 0
    for tokens in unmasked_tokens(chunks[first:], masks, split):
        yield tokens[skip:]
        skip = 0

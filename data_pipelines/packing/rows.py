"""Rows: the kept tokens of a language-script, cut and written as the files of a store."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from data_pipelines.packing.deduplication import kept_tokens
from langsamp_jax.data.store import ROWS_PER_FILE, Split, array_spec, file_digest
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import full_disk_as_oserror

# The whole store is forced to disk at its end, not every file of it; and every core has a worker.
_CONTEXT = ts.Context({"file_io_sync": False, "data_copy_concurrency": {"limit": 1}})


def require_sequence_length(sequence_length: int) -> None:
    """Raises UserError for rows of a length that is no use."""
    if not 8 <= sequence_length <= 65536:
        raise UserError(f"--sequence_length {sequence_length}: expected 8 to 65536 tokens")


def number_of_rows(tokens: int, split: str, sequence_length: int) -> int:
    """The rest behind the last full row is dropped from training and kept for validation."""
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
      the bytes and the digest of each file, by its path in the folder of the array.
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
    pieces: list[Path],
    piece_tokens: list[int],
    keep: Path,
    split: str,
    start: int,
) -> Iterator[np.ndarray]:
    """The tokens of a language-script from ``start`` on: those of a base store, then the pieces'.

    Args:
      base: the split of the base store, and the number of the language-script in it.
      base_tokens: how many tokens are taken from there, from the first on.
      piece_tokens: how many tokens of each piece are kept.
      keep: the folder that ``select`` filled.
      start: the first token of a row.
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
    ends = np.cumsum(piece_tokens)
    first = int(np.searchsorted(ends, skip, side="right"))
    skip -= int(ends[first - 1]) if first else 0
    for tokens in kept_tokens(pieces[first:], keep, split):
        yield tokens[skip:]
        skip = 0

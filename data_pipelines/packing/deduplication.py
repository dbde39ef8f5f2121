"""Deduplication: each text stands once in a language-script, wherever it was read."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.packing.token_chunks import load, number_of_lines, split_mask
from langsamp_jax.data.manifest import SPLITS

HASHES = "hashes.u64"

_BUCKET_LINES = 1 << 22  # sorted at a time


@dataclasses.dataclass(frozen=True)
class Deduplicated:
    """Counts what is left of a language-script.

    Attributes:
      tokens: by split, how many tokens of each chunk are left.
      lines, unknown: by split, how many lines and unknown tokens are left of all chunks.
      duplicates: how many lines are dropped.
    """

    tokens: dict[str, list[int]]
    lines: dict[str, int]
    unknown: dict[str, int]
    duplicates: int


def deduplicate(
    chunks: list[Path], masks: Path, drop_duplicates: bool, base_hashes: Path | None
) -> Deduplicated:
    """Decides which lines are dropped: those that repeat an earlier one, or one of the base.

    Args:
      chunks: in the order of the text.
      masks: a folder; it gets, for each chunk of which lines are dropped, a file of bool [lines],
        False for those; and, if duplicates are looked for, ``HASHES``: the hashes of all lines,
        those of the base included, uint64, sorted.
      base_hashes: such a file of the lines that are in the base store already.
    """
    duplicates = 0
    for chunk in chunks:
        (masks / chunk.name).unlink(missing_ok=True)  # of a call that was cut
    if drop_duplicates:
        with open(masks / HASHES, "wb") as stream:
            for unique, repeated in _buckets(chunks, base_hashes):
                unique.astype("<u8").tofile(stream)
                for chunk, lines in repeated:
                    mask = _line_mask(chunk, masks)
                    mask[lines] = False
                    mask.tofile(masks / chunk.name)
                    duplicates += len(lines)

    tokens = {split: [] for split in SPLITS}
    lines, unknown = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for chunk in chunks:
        table = load(chunk, "lines")[_line_mask(chunk, masks)]
        for split in SPLITS:
            of_split = table[split_mask(table, split)]
            tokens[split].append(int(of_split["tokens"].sum(dtype=np.int64)))
            lines[split] += len(of_split)
            unknown[split] += int(of_split["unknown"].sum(dtype=np.int64))
    return Deduplicated(tokens, lines, unknown, duplicates)


def unmasked_tokens(chunks: list[Path], masks: Path, split: str) -> Iterator[np.ndarray]:
    """Yields uint32 [tokens] for each chunk: the lines of ``split`` that are not dropped."""
    for chunk in chunks:
        lines, tokens = load(chunk, "lines"), load(chunk, "tokens")
        chosen = split_mask(lines, split) & _line_mask(chunk, masks)
        yield tokens if chosen.all() else tokens[np.repeat(chosen, lines["tokens"])]


def _line_mask(chunk: Path, masks: Path) -> np.ndarray:
    """Returns bool [lines]: False for those of a chunk that are dropped."""
    file = masks / chunk.name
    return np.fromfile(file, bool) if file.exists() else np.ones(number_of_lines(chunk), bool)


def _buckets(
    chunks: list[Path], base_hashes: Path | None
) -> Iterator[tuple[np.ndarray, list[tuple[Path, np.ndarray]]]]:
    """Sorts all hashes by ranges, a bucket of ``_BUCKET_LINES`` or so at a time, ascending.

    Every hash is read once, however many there are.

    Yields:
      The different hashes of a bucket, sorted, and of each chunk the numbers of the lines that
      repeat an earlier one.
    """
    base = np.zeros(0, np.uint64)
    if base_hashes is not None and base_hashes.stat().st_size:
        base = np.memmap(base_hashes, "<u8", "r")
    total = len(base) + sum(map(number_of_lines, chunks))
    buckets = max(1, math.ceil(total / _BUCKET_LINES))
    edges = np.array([number * 2**64 // buckets for number in range(1, buckets)], np.uint64)
    bounds = [
        _bucket_bounds(base, edges),
        *(_bucket_bounds(load(chunk, "hashes")["hash"], edges) for chunk in chunks),
    ]
    for bucket in range(buckets):
        spans = [slice(bound[bucket], bound[bucket + 1]) for bound in bounds]
        tables = [load(chunk, "hashes")[s] for chunk, s in zip(chunks, spans[1:], strict=True)]
        hashes = np.concatenate([base[spans[0]], *(table["hash"] for table in tables)])
        order = np.argsort(hashes, kind="stable")  # the first of equal ones stays in front
        ordered = hashes[order]
        repeated = np.zeros(len(ordered), bool)
        repeated[1:] = ordered[1:] == ordered[:-1]
        repeats = np.sort(order[repeated]) - (spans[0].stop - spans[0].start)
        ends = np.cumsum([len(table) for table in tables])
        by_chunk = np.split(repeats, np.searchsorted(repeats, ends))[:-1]  # behind the last: none
        yield (
            ordered[~repeated],
            [
                (chunk, table["line"][indices - (end - len(table))])
                for chunk, table, indices, end in zip(chunks, tables, by_chunk, ends, strict=True)
                if len(indices)
            ],
        )


def _bucket_bounds(ordered: np.ndarray, edges: np.ndarray) -> list[int]:
    """Returns where the buckets of sorted hashes begin, and where the last one ends."""
    return [0, *np.searchsorted(ordered, edges).tolist(), len(ordered)]

"""Which lines of a language-script stand in the store: each text once, wherever it was read."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.packing.token_chunks import load, number_of_lines, side
from langsamp_jax.data.store import SPLITS

HASHES = "hashes.u64"

_BUCKET_LINES = 1 << 22  # sorted at a time


@dataclasses.dataclass(frozen=True)
class Deduplicated:
    """What is kept of a language-script.

    Attributes:
      tokens: by split, how many tokens of each piece are kept.
      lines, unknown: by split, over all pieces.
      duplicates: how many lines are dropped.
    """

    tokens: dict[str, list[int]]
    lines: dict[str, int]
    unknown: dict[str, int]
    duplicates: int


def deduplicate(
    pieces: list[Path], keep: Path, drop_duplicates: bool, known: Path | None
) -> Deduplicated:
    """Decides which lines are kept.

    Args:
      pieces: in the order of the text.
      keep: a folder; it gets bool [lines] for each piece of which lines are dropped and, if
        duplicates are looked for, ``HASHES``: the sorted hashes of all lines, uint64.
      known: such a file of the lines that are in the store already.
    """
    duplicates = 0
    for piece in pieces:
        (keep / piece.name).unlink(missing_ok=True)  # of a call that was cut
    if drop_duplicates:
        with open(keep / HASHES, "wb") as stream:
            for unique, repeated in _buckets(pieces, known):
                unique.astype("<u8").tofile(stream)
                for piece, lines in repeated:
                    kept = _kept(piece, keep)
                    kept[lines] = False
                    kept.tofile(keep / piece.name)
                    duplicates += len(lines)

    tokens = {split: [] for split in SPLITS}
    lines, unknown = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for piece in pieces:
        table = load(piece, "lines")[_kept(piece, keep)]
        for split in SPLITS:
            kept = table[side(table, split)]
            tokens[split].append(int(kept["tokens"].sum(dtype=np.int64)))
            lines[split] += len(kept)
            unknown[split] += int(kept["unknown"].sum(dtype=np.int64))
    return Deduplicated(tokens, lines, unknown, duplicates)


def kept_tokens(pieces: list[Path], keep: Path, split: str) -> Iterator[np.ndarray]:
    """uint32 [tokens] of each piece: those of the lines of ``split`` that are kept."""
    for piece in pieces:
        lines, tokens = load(piece, "lines"), load(piece, "tokens")
        chosen = side(lines, split) & _kept(piece, keep)
        yield tokens if chosen.all() else tokens[np.repeat(chosen, lines["tokens"])]


def _kept(piece: Path, keep: Path) -> np.ndarray:
    """bool [lines]"""
    file = keep / piece.name
    return np.fromfile(file, bool) if file.exists() else np.ones(number_of_lines(piece), bool)


def _buckets(
    pieces: list[Path], known: Path | None
) -> Iterator[tuple[np.ndarray, list[tuple[Path, np.ndarray]]]]:
    """By ranges of the hash, ascending: the hashes there are, and the lines of each piece that
    repeat an earlier one. Every hash is read once, however many there are."""
    old = np.zeros(0, np.uint64)
    if known is not None and known.stat().st_size:
        old = np.memmap(known, "<u8", "r")
    total = len(old) + sum(map(number_of_lines, pieces))
    buckets = max(1, math.ceil(total / _BUCKET_LINES))
    edges = np.array([number * 2**64 // buckets for number in range(1, buckets)], np.uint64)
    cuts = [_cut(old, edges), *(_cut(load(piece, "hashes")["hash"], edges) for piece in pieces)]
    for bucket in range(buckets):
        spans = [slice(cut[bucket], cut[bucket + 1]) for cut in cuts]
        parts = [load(piece, "hashes")[s] for piece, s in zip(pieces, spans[1:], strict=True)]
        hashes = np.concatenate([old[spans[0]], *(part["hash"] for part in parts)])
        order = np.argsort(hashes, kind="stable")  # the first of equal ones stays in front
        ordered = hashes[order]
        again = np.zeros(len(ordered), bool)
        again[1:] = ordered[1:] == ordered[:-1]
        repeats = np.sort(order[again]) - (spans[0].stop - spans[0].start)
        ends = np.cumsum([len(part) for part in parts])
        of_piece = np.split(repeats, np.searchsorted(repeats, ends))[:-1]  # behind the last: none
        yield (
            ordered[~again],
            [
                (piece, part["line"][indices - (end - len(part))])
                for piece, part, indices, end in zip(pieces, parts, of_piece, ends, strict=True)
                if len(indices)
            ],
        )


def _cut(ordered: np.ndarray, edges: np.ndarray) -> list[int]:
    return [0, *np.searchsorted(ordered, edges).tolist(), len(ordered)]

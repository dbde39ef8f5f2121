"""Pieces: what the encoding of text leaves on disk until it is packed into rows.

    STEM.tokens.npy   uint32 [tokens], the lines one after the other
    STEM.lines.npy    LINE [lines], in the order of the text
    STEM.hashes.npy   HASH [lines], sorted by (hash, line); absent where duplicates may stand

They are written once, read as memory maps, and removed with the folder of the work.
"""

from pathlib import Path

import numpy as np

LINE = np.dtype([("tokens", "<u4"), ("unknown", "<u4"), ("validation", "?")])
HASH = np.dtype([("hash", "<u8"), ("line", "<u4")])
PIECE_TOKENS = 1 << 21


class PieceWriter:
    """Collects encoded lines and writes them as pieces of about ``PIECE_TOKENS`` tokens.

    Args:
      stem: the pieces are ``stem-0``, ``stem-1``, ...
      unk_id: the id that is counted as unknown.
    """

    def __init__(self, stem: Path, unk_id: int):
        self._stem, self._unk_id = stem, unk_id
        self._ids: list[np.ndarray] = []
        self._lines: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []
        self._written: list[str] = []

    def add(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        validation: np.ndarray,
        hashes: np.ndarray | None = None,
    ) -> None:
        """Adds lines.

        Args:
          ids: int [tokens], the lines one after the other; none is empty.
          lengths: int64 [lines].
          validation: bool [lines], which side each is on.
          hashes: uint64 [lines]; None where duplicates are not looked for.
        """
        if not len(lengths):
            return
        lines = np.empty(len(lengths), LINE)
        starts = np.cumsum(lengths) - lengths
        lines["tokens"], lines["validation"] = lengths, validation
        lines["unknown"] = np.add.reduceat(ids == self._unk_id, starts, dtype=np.int64)
        self._ids.append(ids.astype(np.uint32))
        self._lines.append(lines)
        if hashes is not None:
            self._hashes.append(hashes)
        if sum(map(len, self._ids)) >= PIECE_TOKENS:
            self._flush()

    def close(self) -> list[str]:
        """The names of the pieces, in the order of the text."""
        if self._ids:
            self._flush()
        return self._written

    def _flush(self) -> None:
        piece = self._stem.with_name(f"{self._stem.name}-{len(self._written)}")
        np.save(f"{piece}.tokens.npy", np.concatenate(self._ids))
        np.save(f"{piece}.lines.npy", np.concatenate(self._lines))
        if self._hashes:
            hashes = np.concatenate(self._hashes)
            order = np.argsort(hashes, kind="stable")
            table = np.empty(len(hashes), HASH)
            table["hash"], table["line"] = hashes[order], order
            np.save(f"{piece}.hashes.npy", table)
        self._written.append(piece.name)
        self._ids, self._lines, self._hashes = [], [], []


def load(piece: Path, part: str) -> np.ndarray:
    """One array of a piece, as a memory map."""
    return np.load(f"{piece}.{part}.npy", mmap_mode="r")


def side(lines: np.ndarray, split: str) -> np.ndarray:
    """bool [lines]: which of them are of ``split``."""
    return lines["validation"] == (split == "validation")

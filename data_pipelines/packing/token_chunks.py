"""Token chunks: what the encoding of text leaves on disk until it is packed into rows.

    STEM.tokens    TOKEN [tokens], the lines one after the other
    STEM.lines     LINE [lines], in the order of the text
    STEM.hashes    HASH [lines], sorted by (hash, line); absent where duplicates may stand

They are written once, read as memory maps, and removed with the scratch folder.
"""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from langsamp_jax.text.tokenizer import Tokenizer

TOKEN = np.dtype("<u4")
LINE = np.dtype([("tokens", "<u4"), ("unknown", "<u4"), ("validation", "?")])
HASH = np.dtype([("hash", "<u8"), ("line", "<u4")])
CHUNK_TOKENS = 1 << 21


class ChunkWriter:
    """Collects encoded lines and writes them as chunks of about ``CHUNK_TOKENS`` tokens.

    Args:
      stem: the chunks are ``stem-0``, ``stem-1``, ...
      tokenizer: what gave the tokens.

    Attributes:
      pieces: how many tokens of the lines stand for text: not ``<s>``, ``</s>`` or a lone ``▁``.
      unknown: how many of them are unknown.
    """

    def __init__(self, stem: Path, tokenizer: Tokenizer):
        self._stem, self._tokenizer = stem, tokenizer
        self.pieces, self.unknown = 0, 0
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
          validation: bool [lines], True for a line of the validation split.
          hashes: uint64 [lines]; None where duplicates are not looked for.
        """
        if not len(lengths):
            return
        lines = np.empty(len(lengths), LINE)
        starts = np.cumsum(lengths) - lengths
        lines["tokens"], lines["validation"] = lengths, validation
        unknown = ids == self._tokenizer.vocabulary.unk_id
        lines["unknown"] = np.add.reduceat(unknown, starts, dtype=np.int64)
        self.pieces += int(np.count_nonzero(self._tokenizer.is_text[ids]))
        self.unknown += int(np.count_nonzero(unknown))
        self._ids.append(ids.astype(TOKEN))
        self._lines.append(lines)
        if hashes is not None:
            self._hashes.append(hashes)
        if sum(map(len, self._ids)) >= CHUNK_TOKENS:
            self._flush()

    def close(self) -> list[str]:
        """Writes what is left; returns the names of the chunks, in the order of the text."""
        if self._ids:
            self._flush()
        return self._written

    def _flush(self) -> None:
        chunk = self._stem.with_name(f"{self._stem.name}-{len(self._written)}")
        np.concatenate(self._ids).tofile(f"{chunk}.tokens")
        np.concatenate(self._lines).tofile(f"{chunk}.lines")
        if self._hashes:
            hashes = np.concatenate(self._hashes)
            order = np.argsort(hashes, kind="stable")
            table = np.empty(len(hashes), HASH)
            table["hash"], table["line"] = hashes[order], order
            table.tofile(f"{chunk}.hashes")
        self._written.append(chunk.name)
        self._ids, self._lines, self._hashes = [], [], []


def load(chunk: Path, array: Literal["tokens", "lines", "hashes"]) -> np.ndarray:
    """Opens one array of a chunk as a memory map."""
    dtype = {"tokens": TOKEN, "lines": LINE, "hashes": HASH}[array]
    return np.memmap(f"{chunk}.{array}", dtype, "r")


def number_of_lines(chunk: Path) -> int:
    """Returns how many lines a chunk holds, by the size of a file."""
    return os.stat(f"{chunk}.lines").st_size // LINE.itemsize


def split_mask(lines: np.ndarray, split: str) -> np.ndarray:
    """Returns bool [lines]: True for those of ``split``."""
    return lines["validation"] == (split == "validation")

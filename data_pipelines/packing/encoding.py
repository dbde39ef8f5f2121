"""Encoding: a range of text becomes clean lines, and these become chunks of tokens."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.corpus.cleaning import (
    CleaningConfig,
    TextCleaner,
    clean_lines,
    is_validation,
    line_hashes,
)
from data_pipelines.corpus.sources import TextRange, range_digests
from data_pipelines.packing.token_chunks import ChunkWriter
from langsamp_jax.errors import UserError
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Encodes ranges of text; called as ``encoder(key, range)`` in any process.

    Attributes:
      chunks: the folder that gets the chunks, named after the key.
      tokenizer: its file.
      held_out: a file of the hashes of texts that are left out (``HeldOut.hashes``).
      skip_damaged: leave out what cannot be read, instead of ending.
    """

    chunks: Path
    tokenizer: Path
    cleaning: CleaningConfig
    validation_fraction: float
    held_out: Path | None
    skip_damaged: bool

    def __call__(self, key: str, text: TextRange) -> dict[str, Any]:
        """Writes the chunks of a range; returns its result, see ``stages.Encoding``.

        Raises:
          UserError: the file is damaged, unless that is to be skipped; it is named.
        """
        tokenizer = load_cached(self.tokenizer)
        held_out = None if self.held_out is None else _load_array(self.held_out)
        cleaner = TextCleaner(text.name, self.cleaning, held_out)
        writer = ChunkWriter(self.chunks / key, tokenizer)
        left_out, counts = [], {}
        try:
            for lines in clean_lines(cleaner, text, self.skip_damaged):
                hashes = line_hashes(lines)
                validation = is_validation(hashes, self.validation_fraction)
                deduplicated = self.cleaning.duplicates == "drop"
                writer.add(*tokenizer.encode(lines), validation, hashes if deduplicated else None)
            chunks = writer.close()
            counts = {"pieces": writer.pieces, "unknown": writer.unknown}
        except UserError as error:
            if not self.skip_damaged:
                raise UserError(
                    f"{error}; mend it and give the same command again, which goes on, or leave "
                    "out what is damaged with --skip_damaged"
                ) from None
            cleaner, chunks, left_out = TextCleaner(text.name, self.cleaning), [], [str(error)]
        return {
            "name": text.name,
            "pieces": chunks,
            "source": range_digests(text.file, text.start, text.stop),
            "hygiene": dict(cleaner.counts),
            "text": counts,
            "scripts": dict(cleaner.found_scripts),
            "left_out": left_out,
            "held_out": sorted({*cleaner.matched}),
        }


@functools.cache
def load_cached(tokenizer: Path) -> Tokenizer:
    """Reads the tokenizer of a file, once in a process."""
    return load_tokenizer(tokenizer)


@functools.cache
def _load_array(file: Path) -> np.ndarray:
    return np.load(file)


def combined(digests: list[str]) -> str:
    """Returns one digest for many, in their order."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()

"""Encoding: a range of text becomes clean lines, and these become pieces of tokens."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.corpus.cleaning import (
    Hygiene,
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
      pieces: the folder that gets the pieces, named after the key.
      tokenizer: its file.
      held_out: a file of the hashes of texts that are left out (``held_out_hashes``).
      skip_damaged: leave out what cannot be read, instead of ending.
    """

    pieces: Path
    tokenizer: Path
    hygiene: Hygiene
    validation_fraction: float
    held_out: Path | None
    skip_damaged: bool

    def __call__(self, key: str, part: TextRange) -> dict[str, Any]:
        """Returns what ``prepare`` needs to know of the range.

        Raises:
          UserError: the file is damaged, unless that is to be skipped; it is named.
        """
        tokenizer = load_cached(self.tokenizer)
        held_out = None if self.held_out is None else _load_array(self.held_out)
        cleaner = TextCleaner(part.name, self.hygiene, held_out)
        writer = ChunkWriter(self.pieces / key, tokenizer.vocabulary.unk_id)
        left_out = []
        try:
            for lines in clean_lines(cleaner, part, self.skip_damaged):
                hashes = line_hashes(lines)
                validation = is_validation(hashes, self.validation_fraction)
                known = hashes if self.hygiene.duplicates == "drop" else None
                writer.add(*tokenizer.encode(lines), validation, known)
            pieces = writer.close()
        except UserError as error:
            if not self.skip_damaged:
                raise UserError(
                    f"{error}; mend it and give the same command again, which goes on, or leave "
                    "out what is damaged with --skip_damaged"
                ) from None
            cleaner, pieces, left_out = TextCleaner(part.name, self.hygiene), [], [str(error)]
        return {
            "name": part.name,
            "pieces": pieces,
            "source": range_digests(part.file, part.start, part.stop),
            "hygiene": dict(cleaner.counts),
            "scripts": dict(cleaner.found_scripts),
            "left_out": left_out,
        }


@functools.cache
def load_cached(tokenizer: Path) -> Tokenizer:
    """The tokenizer of a file, read once in a process."""
    return load_tokenizer(tokenizer)


@functools.cache
def _load_array(file: Path) -> np.ndarray:
    return np.load(file)


def combined(digests: list[str]) -> str:
    """One digest for many, in their order."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()

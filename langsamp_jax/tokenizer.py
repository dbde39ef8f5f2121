"""A SentencePiece model read in XLM-R's id layout.

``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, piece i of the model at i + 1, ``<mask>`` last.
"""

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece

from langsamp_jax.errors import UserError

BOS, PAD, EOS, UNK = 0, 1, 2, 3

_SENTENCEPIECE_UNK = 0


class Vocabulary(NamedTuple):
    """What masking needs to know of a tokenizer."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...]  # stand for no text: never masked, never a random replacement


class Tokenizer:
    """Text to XLM-R ids. ``fingerprint`` is the SHA-256 of the model file."""

    def __init__(self, model: bytes, source: str = "the tokenizer"):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            pieces = [self._processor.id_to_piece(i) for i in range(3)]
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{source} is not a SentencePiece model") from error
        if pieces != ["<unk>", "<s>", "</s>"]:
            raise UserError(
                f"{source} starts with the pieces {' '.join(pieces)}; XLM-R's layout needs "
                "<unk> <s> </s> (make one with: langsamp tokenizer train)"
            )
        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        try:
            model = Path(path).read_bytes()
        except FileNotFoundError:
            raise UserError(f"tokenizer {path} not found") from None
        except IsADirectoryError:
            raise UserError(f"tokenizer {path} is a folder; name its .model file") from None
        return Tokenizer(model, str(path))

    @property
    def vocab_size(self) -> int:
        """All ids: the pieces, shifted by one for ``<pad>``, and ``<mask>`` at the end."""
        return self._processor.get_piece_size() + 2

    @property
    def vocabulary(self) -> Vocabulary:
        mask_id = self.vocab_size - 1
        return Vocabulary(self.vocab_size, mask_id, (BOS, PAD, EOS, UNK, mask_id))

    def encode(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises each line as ``<s> ... </s>``.

        Returns:
          ``ids``: int32 [tokens], the lines one after the other; ``lengths``: int64 [lines].
        """
        if not lines:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        encoded = self._processor.encode(list(lines), out_type=int, num_threads=_threads())
        inner = np.fromiter(map(len, encoded), np.int64, len(encoded))
        lengths = inner + 2
        ends = np.cumsum(lengths)
        ids = np.empty(ends[-1], np.int32)
        ids[ends - lengths], ids[ends - 1] = BOS, EOS
        text = np.ones(ids.size, bool)
        text[ends - lengths] = text[ends - 1] = False
        pieces = np.fromiter(itertools.chain.from_iterable(encoded), np.int32, inner.sum())
        ids[text] = np.where(pieces == _SENTENCEPIECE_UNK, UNK, pieces + 1)
        return ids, lengths


def _threads() -> int:
    return os.cpu_count() or 1

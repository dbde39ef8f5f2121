"""Vocabularies of seqio features: text as ids of our tokenizers, codes as rows of the tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.seqio_tasks.imports import seqio, tf
from langsamp_jax.errors import UserError
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
    """The ids that a store made with the tokenizer in ``file`` holds.

    They are XLM-R's (``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, ``<mask>`` last) or
    multilingual BERT's; seqio's own ``SentencePieceVocabulary`` would give others. As with every
    vocabulary of seqio, encoding adds no ``<s>`` or ``</s>``; ``tasks.encode_lines`` does.

    The file is read when it is first needed. Two of these are equal if their files say the same.

    Raises:
      UserError: the file is missing or is no tokenizer (see ``load_tokenizer``).
    """

    def __init__(self, file: Path | str):
        super().__init__()
        self.file = Path(file)
        self._loaded: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer, which is read at the first call."""
        if self._loaded is None:
            self._loaded = load_tokenizer(self.file)
        return self._loaded

    @property
    def bos_id(self) -> int:
        return self.tokenizer.vocabulary.bos_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.vocabulary.eos_id

    @property
    def pad_id(self) -> int:
        return self.tokenizer.vocabulary.pad_id

    @property
    def unk_id(self) -> int:
        return self.tokenizer.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def encode_lines_tf(self, lines: tf.Tensor) -> tf.RaggedTensor:
        """Encodes string [lines] as int32 [lines, (ids)], each with ``<s>`` and ``</s>``."""
        ids, lengths = tf.numpy_function(self._encode_lines, [lines], [tf.int32, tf.int64])
        ids, lengths = tf.ensure_shape(ids, [None]), tf.ensure_shape(lengths, [None])
        return tf.RaggedTensor.from_row_lengths(ids, lengths, validate=False)

    def _encode(self, s: str) -> list[int]:
        ids, _ = self.tokenizer.encode([s])
        return ids[1:-1].tolist()

    def _decode(self, ids: Sequence[int]) -> str:
        """Returns the normalised text, without ``<s>``, ``<pad>`` and ``</s>``."""
        unseen = {self.bos_id, self.pad_id, self.eos_id}
        surfaces = self.tokenizer.surfaces
        return "".join(surfaces[i] for i in ids if i not in unseen).removeprefix(" ")

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return self.encode_lines_tf(tf.reshape(s, [1])).flat_values[1:-1]

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(ids: np.ndarray) -> np.ndarray:
            texts = [self._decode(row).encode() for row in ids.reshape(-1, ids.shape[-1])]
            return np.array(texts, object).reshape(ids.shape[:-1])

        text = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        return tf.ensure_shape(text, ids.shape[:-1])

    def _encode_lines(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.tokenizer.encode([line.decode("utf-8") for line in lines])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}  # gin and Beam copy vocabularies

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizerVocabulary):
            return False
        return self.tokenizer.fingerprint == other.tokenizer.fingerprint

    def __str__(self) -> str:
        return f"TokenizerVocabulary(file={self.file})"


class CodeVocabulary(seqio.Vocabulary):
    """Language codes, or script codes, and their numbers from 0: ``deu`` is one token.

    A number is a name for a code within a Mixture; the rows of a model's tables are given by the
    inventory of its run. Every number stands for a code, so there is no padding.

    Raises:
      UserError: a code is there twice, or one that is to be encoded is not there.
    """

    def __init__(self, codes: Sequence[str]):
        super().__init__()
        self.codes = tuple(codes)
        self._numbers = {code: number for number, code in enumerate(self.codes)}
        if len(self._numbers) < len(self.codes):
            raise UserError(f"codes are there twice among {', '.join(self.codes)}")

    @property
    def bos_id(self) -> None:
        return None

    @property
    def eos_id(self) -> None:
        return None

    @property
    def unk_id(self) -> None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return len(self.codes)

    def _encode(self, s: str) -> list[int]:
        if s not in self._numbers:
            raise UserError(f"{s!r} is none of the {len(self.codes)} codes of this vocabulary")
        return [self._numbers[s]]

    def _decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.codes[i] for i in ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        number = tf.where(tf.equal(self.codes, s))
        return tf.cast(tf.reshape(number, [1]), tf.int32)  # fails where there is no such code

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.strings.reduce_join(tf.gather(self.codes, ids), axis=-1, separator=" ")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodeVocabulary) and self.codes == other.codes

    def __str__(self) -> str:
        return f"CodeVocabulary({len(self.codes)} codes)"

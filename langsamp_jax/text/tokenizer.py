"""Text to ids: SentencePiece in XLM-R's id layout, or WordPiece as multilingual BERT has it.

XLM-R's layout: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, piece i of the model at i + 1,
``<mask>`` last. WordPiece keeps the ids of its vocabulary.
"""

import abc
import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram, WordPiece

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_fetched, require_regular
from langsamp_jax.io.text_lines import decode_text, text_lines
from langsamp_jax.text.same_ids import differing_lines, sample
from langsamp_jax.text.unigram import sentencepiece_model

_BERT_SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")  # in the order of Vocabulary


class Vocabulary(NamedTuple):
    """Holds the number of ids, and those that stand for no text."""

    size: int
    bos_id: int
    pad_id: int
    eos_id: int
    unk_id: int
    mask_id: int

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Returns the ids that are never masked, and never a random replacement."""
        return self[1:]


class Tokenizer(abc.ABC):
    """Turns text into ids; what the two kinds share.

    Attributes:
      file_name: under which a store and a run keep the tokenizer.
      model: the bytes of that file.
      fingerprint: the SHA-256 of ``model``.
      pieces: the text of every id, in the order of the ids.
      vocabulary: the size and the special ids.
      scores: float32 [size], the log-probability of each piece (0: special); None if it has none.
    """

    file_name: str
    pieces: list[str]
    vocabulary: Vocabulary
    scores: np.ndarray | None = None

    def __init__(self, model: bytes):
        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    def encode(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenises each line as ``<s> ... </s>`` (``[CLS] ... [SEP]``).

        The name of a special piece in a line is text like any other.

        Returns:
          ``ids``: int32 [tokens], the lines one after the other; ``lengths``: int64 [lines].
        """
        if not lines:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        return self._encode(list(lines))

    @functools.cached_property
    def surfaces(self) -> list[str]:
        """Returns what every id reads as in a text, with a space where a word begins.

        Those of a line, joined, are its text as the tokenizer has normalised it.
        """
        surfaces = [self._surface(piece) for piece in self.pieces]
        for special in self.vocabulary.special_ids:
            surfaces[special] = self.pieces[special]
        return surfaces

    @functools.cached_property
    def is_text(self) -> np.ndarray:
        """Returns bool [size]: True for the unknown piece, and for others that spell more than a
        space."""
        is_text = np.array([bool(surface.strip()) for surface in self.surfaces])
        is_text[[i for i in self.vocabulary.special_ids if i != self.vocabulary.unk_id]] = False
        return is_text

    @abc.abstractmethod
    def _surface(self, piece: str) -> str: ...

    @abc.abstractmethod
    def _encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]: ...


class SentencePieceTokenizer(Tokenizer):
    """Encodes by a SentencePiece model, in XLM-R's id layout.

    Raises:
      UserError: ``model`` is no such model; ``source`` says where it is from.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, source: str = "the tokenizer"):
        super().__init__(model)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            first = [self._processor.id_to_piece(i) for i in range(3)]
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{source} is not a SentencePiece model") from error
        if first != ["<unk>", "<s>", "</s>"]:
            raise UserError(
                f"{source} starts with the pieces {' '.join(first)}; XLM-R's layout needs "
                "<unk> <s> </s> (make one with: langsamp tokenizer train)"
            )
        unknown = self._processor.unk_id()
        if own := [p for p in ("<pad>", "<mask>") if self._processor.piece_to_id(p) != unknown]:
            raise UserError(f"{source} has its own {' '.join(own)}, which XLM-R's layout adds")
        self._layout = np.arange(1, self._processor.get_piece_size() + 1, dtype=np.int32)
        self._layout[:3] = 3, 0, 2  # <unk> <s> </s>
        size = len(self._layout) + 2
        self.vocabulary = Vocabulary(size, bos_id=0, pad_id=1, eos_id=2, unk_id=3, mask_id=size - 1)

    @property
    def pieces(self) -> list[str]:
        text = self._processor.id_to_piece(list(range(3, self._processor.get_piece_size())))
        return ["<s>", "<pad>", "</s>", "<unk>", *text, "<mask>"]

    @property
    def scores(self) -> np.ndarray:
        scores = self._processor.get_score(list(range(3, self._processor.get_piece_size())))
        return np.array([0, 0, 0, 0, *scores, 0], np.float32)

    def _surface(self, piece: str) -> str:
        return piece.replace("▁", " ")

    def _encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._processor.encode(lines, return_type="numpy", add_bos=True, add_eos=True)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return self._layout[np.concatenate(encoded)], lengths


class WordPieceTokenizer(Tokenizer):
    """Encodes by a ``tokenizer.json`` whose model is WordPiece, with BERT's special pieces.

    Raises:
      UserError: ``model`` is no such file; ``source`` says where it is from.
    """

    file_name = "tokenizer.json"

    def __init__(self, model: bytes, source: str = "the tokenizer"):
        super().__init__(model)
        self._tokenizer = read_backend(model, source)
        kind = type(self._tokenizer.model).__name__
        if kind != "WordPiece":
            raise UserError(f"{source} is a {kind} model; expected WordPiece, or XLM-R's Unigram")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a line that says [MASK] holds no mask
        self.pieces = backend_pieces(self._tokenizer, source)
        _require_bert_special(self.pieces, source)
        ids = [self._tokenizer.token_to_id(piece) for piece in _BERT_SPECIAL]
        self.vocabulary = Vocabulary(len(self.pieces), *ids)

    def _surface(self, piece: str) -> str:
        return piece.removeprefix("##") if piece.startswith("##") else f" {piece}"

    def _encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        begin, end = self.vocabulary.bos_id, self.vocabulary.eos_id
        encoded = [[begin, *encoding.ids, end] for encoding in encodings]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(itertools.chain.from_iterable(encoded), np.int32, lengths.sum()), lengths


TOKENIZER_FILES = (SentencePieceTokenizer.file_name, WordPieceTokenizer.file_name)


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a SentencePiece model, a ``tokenizer.json`` (WordPiece, or XLM-R's Unigram, which is
    read as the SentencePiece model that it was made from) or a cased ``vocab.txt``.

    Raises:
      UserError: the file is missing, or none of these.
    """
    require_regular(path)
    try:
        model = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"tokenizer {path} not found") from None
    except IsADirectoryError:
        raise UserError(
            f"tokenizer {path} is a folder; name the .model, tokenizer.json or vocab.txt in it"
        ) from None
    require_fetched(model, path)
    if path.suffix == ".txt":
        return WordPieceTokenizer(_cased_wordpiece(model, path), str(path))
    if path.suffix == ".json":
        backend = read_backend(model, str(path))
        if isinstance(backend.model, Unigram):
            model = sentencepiece_model(json.loads(backend.to_str()), str(path))
            tokenizer = SentencePieceTokenizer(model, str(path))
            _require_same_ids(tokenizer, backend, path)
            return tokenizer
        return WordPieceTokenizer(model, str(path))
    return SentencePieceTokenizer(model, str(path))


def _require_same_ids(
    tokenizer: SentencePieceTokenizer, backend: tokenizers.Tokenizer, path: Path
) -> None:
    """Raises UserError where a tokenizer.json splits text in another way than ``tokenizer``, the
    model that was made of it."""
    backend.post_processor = xlmr_template()
    lines = sample(tokenizer)
    if differing := differing_lines(tokenizer, backend, lines):
        raise UserError(
            f"{path} is a Unigram model that splits text in another way than XLM-R: "
            f"{len(differing)} of {len(lines)} lines, such as {differing[0]!r}"
        )


def open_tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokenizer that a store or a run keeps."""
    wordpiece = folder / WordPieceTokenizer.file_name
    return load_tokenizer(
        wordpiece if wordpiece.exists() else folder / SentencePieceTokenizer.file_name
    )


def read_backend(model: bytes, source: str) -> tokenizers.Tokenizer:
    """Reads a ``tokenizer.json`` by its own library. ``source`` says where it is from."""
    try:
        return tokenizers.Tokenizer.from_str(model.decode("utf-8-sig"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{source} is not a tokenizer.json: {error}") from None


def backend_pieces(backend: tokenizers.Tokenizer, source: str) -> list[str]:
    """Returns the pieces of a ``tokenizer.json``, added ones too, in the order of the ids."""
    ids = backend.get_vocab(with_added_tokens=True)
    pieces = sorted(ids, key=ids.__getitem__)
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise UserError(f"{source}: its {len(pieces)} pieces do not fill the ids from 0 on")
    return pieces


def xlmr_template() -> processors.TemplateProcessing:
    """Returns what puts XLM-R's special pieces around a line, or a pair of them."""
    return processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )


def _cased_wordpiece(vocabulary: bytes, path: Path) -> bytes:
    """Makes the ``tokenizer.json`` of a ``vocab.txt``, as bert-base-multilingual-cased does."""
    pieces = text_lines(decode_text(vocabulary, path))
    ids = {piece: i for i, piece in enumerate(pieces)}
    _require_bert_special(ids, str(path))
    if not any(piece != piece.lower() for piece in ids.keys() - set(_BERT_SPECIAL)):
        raise UserError(f"{path} is of an uncased model; name its tokenizer.json instead")
    switches = {"handle_chinese_chars": True, "strip_accents": None, "lowercase": False}
    return bert_backend(ids, switches).to_str().encode("utf-8")


def bert_backend(ids: Mapping[str, int], switches: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Builds the tokenizer that transformers' class for BERT makes of a vocabulary.

    Args:
      switches: ``handle_chinese_chars``, ``strip_accents`` and ``lowercase``, as a
        ``tokenizer.json`` has them for its BertNormalizer.
    """
    tokenizer = tokenizers.Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=switches["handle_chinese_chars"],
        strip_accents=switches["strip_accents"],
        lowercase=switches["lowercase"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(list(_BERT_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(piece, ids[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _require_bert_special(pieces: Collection[str], source: str) -> None:
    if missing := [piece for piece in _BERT_SPECIAL if piece not in pieces]:
        raise UserError(f"{source} has no piece {' '.join(missing)}; BERT's layout needs it")

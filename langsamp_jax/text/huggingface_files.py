"""The tokenizer files of a Hugging Face model folder, written and read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_fetched, write_bytes, write_text
from langsamp_jax.text.same_ids import differing_lines, sample
from langsamp_jax.text.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    backend_pieces,
    bert_backend,
    load_tokenizer,
    read_backend,
    xlmr_template,
)

_NORMAL = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
_XLMR_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_BERT_SPECIAL = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


class Pieces(NamedTuple):
    """Holds the vocabulary of a model folder.

    Attributes:
      pieces: the text of every id, in the order of the ids.
      speller: makes a function that spells a string with the pieces, as ids and as it stands:
        nothing is normalised and no "▁" is put in front ("##x" is a piece inside a word). A part
        that no piece spells gives the id of the unknown piece. Not made before it is needed: its
        tables take several times the memory of the pieces.
    """

    pieces: list[str]
    speller: Callable[[], Callable[[str], list[int]]]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes what ``transformers.AutoTokenizer.from_pretrained(folder)`` reads.

    Args:
      max_length: in tokens, special ones included; where it truncates if asked to.

    Raises:
      UserError: transformers would give other ids, see ``export_fault``; nothing is written.
    """
    rebuilt = _rebuilt(tokenizer)
    if (fault := _fault(tokenizer, rebuilt)) is not None:
        raise UserError(f"the tokenizer {fault}; it cannot be exported")
    if isinstance(tokenizer, SentencePieceTokenizer):
        backend = rebuilt.to_str()
        write_bytes(folder / "sentencepiece.bpe.model", tokenizer.model)
        config = {"tokenizer_class": "XLMRobertaTokenizer", **_XLMR_SPECIAL}
    else:
        backend = tokenizer.model.decode("utf-8")
        write_text(folder / "vocab.txt", "".join(f"{piece}\n" for piece in tokenizer.pieces))
        config = {**_bert_class(json.loads(backend)), **_BERT_SPECIAL}
    write_text(folder / "tokenizer.json", backend)
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in json.loads(backend)["added_tokens"]
    }
    config |= {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def export_fault(tokenizer: Tokenizer) -> str | None:
    """Returns what is wrong with a tokenizer in the form that ``write_tokenizer`` gives it.

    Returns:
      None where it gives the same ids for a sample of lines; else a predicate: of how many lines
      the ids differ, and what in the tokenizer that comes from.
    """
    return _fault(tokenizer, _rebuilt(tokenizer))


def _rebuilt(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Returns what transformers makes of the files that ``write_tokenizer`` writes."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _xlmr_backend(tokenizer)
    backend = json.loads(tokenizer.model)
    if _bert_class(backend)["tokenizer_class"] == "BertTokenizer":
        return bert_backend(backend["model"]["vocab"], backend["normalizer"])
    return read_backend(tokenizer.model, "the tokenizer")


def _fault(tokenizer: Tokenizer, rebuilt: tokenizers.Tokenizer) -> str | None:
    reasons, odd = [], []
    if isinstance(tokenizer, SentencePieceTokenizer):
        proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
        reasons = _unlike_xlmr(proto)
        odd = [i + 1 for i, piece in enumerate(proto.pieces) if i >= 3 and piece.type != _NORMAL]
    lines = sample(tokenizer, odd)
    if not (differing := differing_lines(tokenizer, rebuilt, lines)):
        return None
    return (
        f"would have other ids in transformers for {len(differing)} of {len(lines)} lines, such as "
        f"{differing[0]!r}{': it ' * bool(reasons)}{', '.join(reasons)}"
    )


def read_pieces(folder: Path) -> Pieces | None:
    """Reads the vocabulary of any Hugging Face model folder with a unigram or WordPiece tokenizer.

    Returns:
      None where there is no tokenizer.

    Raises:
      UserError: its file is broken or of another kind.
    """
    if (file := folder / "sentencepiece.bpe.model").exists():
        return xlmr_pieces(load_tokenizer(file), str(file))
    if (file := folder / "tokenizer.json").exists():
        require_fetched(model := file.read_bytes(), file)
    elif (file := folder / "vocab.txt").exists():
        model = load_tokenizer(file).model
    else:
        return None
    backend = read_backend(model, str(file))
    kind = type(backend.model).__name__
    if kind not in ("Unigram", "WordPiece"):
        raise UserError(f"{file} is a {kind} model; expected Unigram or WordPiece")
    pieces = backend_pieces(backend, str(file))
    return Pieces(pieces, lambda: _speller(read_backend(model, str(file))))


def xlmr_pieces(tokenizer: SentencePieceTokenizer, source: str) -> Pieces:
    """Returns the vocabulary of a SentencePiece model; ``source`` says where it is from."""
    return Pieces(tokenizer.pieces, lambda: _speller(_xlmr_backend(tokenizer, source)))


def _speller(backend: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
    model = backend.model
    return lambda text: [token.id for token in model.tokenize(text)]


def _xlmr_backend(
    tokenizer: SentencePieceTokenizer, source: str = "the tokenizer"
) -> tokenizers.Tokenizer:
    """Builds the same unigram model in the tokenizers library, arranged as XLM-R publishes it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    scores = [0.0] * 4 + [piece.score for piece in proto.pieces[3:]] + [0.0]
    vocabulary = list(zip(tokenizer.pieces, scores, strict=True))
    backend = tokenizers.Tokenizer(Unigram(vocabulary, tokenizer.vocabulary.unk_id, False))
    if charsmap := proto.normalizer_spec.precompiled_charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    backend.add_special_tokens([*special, mask])
    backend.post_processor = xlmr_template()
    return backend


def require_unigram(tokenizer: SentencePieceTokenizer, source: str) -> None:
    """Raises UserError where pieces are not chosen by their log-probabilities alone."""
    trainer = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model).trainer_spec
    if trainer.model_type != trainer.UNIGRAM or trainer.byte_fallback:
        raise UserError(f"{source} is no unigram model, or falls back to bytes")


def _unlike_xlmr(proto: sentencepiece_model_pb2.ModelProto) -> list[str]:
    """Lists what a SentencePiece model does that XLM-R's tokenizer class does not."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    reasons = {
        "is no unigram model": trainer.model_type != trainer.UNIGRAM,
        "falls back to bytes": trainer.byte_fallback,
        "puts no space in front of a line": not normalizer.add_dummy_prefix,
        "keeps repeated spaces": not normalizer.remove_extra_whitespaces,
        "does not write a space as ▁": not normalizer.escape_whitespaces,
        "puts the space behind a word": trainer.treat_whitespace_as_suffix,
        "has pieces of several words": not trainer.split_by_whitespace,
        "has pieces that are no text": any(piece.type != _NORMAL for piece in proto.pieces[3:]),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _bert_class(backend: dict[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer class and its switches; BERT's if that rebuilds this very file."""
    normalizer = backend["normalizer"] or {}
    if normalizer.get("type") == "BertNormalizer":
        rebuilt = json.loads(bert_backend(backend["model"]["vocab"], normalizer).to_str())
        if all(rebuilt[part] == backend[part] for part in ("normalizer", "pre_tokenizer", "model")):
            return {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": normalizer["lowercase"],
                "strip_accents": normalizer["strip_accents"],
                "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
            }
    return {"tokenizer_class": "PreTrainedTokenizerFast"}

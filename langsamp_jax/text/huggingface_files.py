"""The tokenizer files of a Hugging Face model folder, written and read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_fetched, write_bytes, write_text
from langsamp_jax.text.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    backend_pieces,
    load_tokenizer,
    read_backend,
)

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
      UserError: a SentencePiece model of a kind that XLM-R's tokenizer class cannot hold.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        backend = _xlmr_backend(tokenizer).to_str()
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
    require_like_xlmr(proto, source)
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
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return backend


def require_like_xlmr(proto: sentencepiece_model_pb2.ModelProto, source: str) -> None:
    """Raises UserError where XLM-R's tokenizer class cannot hold a SentencePiece model."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    plain = {sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL}
    checks = {
        "is no unigram model": trainer.model_type == trainer.UNIGRAM,
        "falls back to bytes": not trainer.byte_fallback,
        "puts no space in front of a line": normalizer.add_dummy_prefix,
        "keeps repeated spaces": normalizer.remove_extra_whitespaces,
        "does not write a space as ▁": normalizer.escape_whitespaces,
        "has user-defined pieces": {piece.type for piece in proto.pieces[3:]} <= plain,
    }
    for fault, fits in checks.items():
        if not fits:
            raise UserError(f"{source} {fault}; XLM-R's tokenizer in Hugging Face's form cannot")


def _bert_class(backend: dict[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer class and its switches; BERT's if it splits text as this file does."""
    normalizer = backend["normalizer"] or {}
    kinds = normalizer.get("type"), (backend["pre_tokenizer"] or {}).get("type")
    if kinds != ("BertNormalizer", "BertPreTokenizer") or not normalizer["clean_text"]:
        return {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
    }

"""XLM-R's ``tokenizer.json`` as the SentencePiece model that it was made from.

Where ``transformers`` saves a tokenizer it writes this file alone, and drops the
``sentencepiece.bpe.model``; what that said of text is all in it.
"""

import base64
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from langsamp_jax.errors import UserError

_FIRST = ["<s>", "<pad>", "</s>", "<unk>"]
_WORDS = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
_SPACES = (  # SentencePiece does so by itself
    {"type": "WhitespaceSplit"},
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
)


def sentencepiece_model(backend: dict[str, Any], source: str) -> bytes:
    """Makes a SentencePiece model that splits text as a Unigram ``tokenizer.json`` does.

    Args:
      backend: the content of the file, as the tokenizers library writes it.
      source: where it is from.

    Raises:
      UserError: its pieces are not in XLM-R's layout (``<s> <pad> </s> <unk>`` first, ``<mask>``
        last), or it treats text in another way before it is split.
    """
    pieces, in_bytes = backend["model"]["vocab"], backend["model"]["byte_fallback"]
    names = [piece for piece, _ in pieces]
    added = {token["content"] for token in backend["added_tokens"]} - {*_FIRST, "<mask>"}
    if names[:4] != _FIRST or names[-1] != "<mask>" or added or in_bytes:
        raise UserError(
            f"{source} is a Unigram model in another layout than XLM-R's: <s> <pad> </s> <unk> "
            "first, <mask> last, no added pieces and no bytes"
        )
    steps = [*_steps(backend["normalizer"]), *_steps(backend["pre_tokenizer"])]
    charsmaps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    supported = all(step["type"] == "Precompiled" or step in (_WORDS, *_SPACES) for step in steps)
    if not supported or _WORDS not in steps or len(charsmaps) > 1:
        kinds = ", ".join(step["type"] for step in steps)
        raise UserError(
            f"{source} is a Unigram model that prepares text in another way than XLM-R ({kinds}): "
            "expected a Precompiled map of characters, and Metaspace in front of every word"
        )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.trainer_spec.vocab_size = len(pieces) - 2
    proto.normalizer_spec.precompiled_charsmap = base64.b64decode("".join(charsmaps))
    kind = proto.SentencePiece
    proto.pieces.add(piece="<unk>", score=0, type=kind.UNKNOWN)
    proto.pieces.add(piece="<s>", score=0, type=kind.CONTROL)
    proto.pieces.add(piece="</s>", score=0, type=kind.CONTROL)
    for piece, score in pieces[4:-1]:
        proto.pieces.add(piece=piece, score=score)
    return proto.SerializeToString()


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Lists what a normalizer or pre-tokenizer does, one step after the other."""
    if part is None:
        return []
    inner = part.get("normalizers", part.get("pretokenizers"))
    return [part] if inner is None else [step for nested in inner for step in _steps(nested)]

"""A tokenizer is exported with its ids, or not at all: whatever it was trained with."""

import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from langsamp_jax.errors import UserError
from langsamp_jax.text.huggingface_files import export_fault, write_tokenizer
from langsamp_jax.text.tokenizer import SentencePieceTokenizer, Tokenizer, WordPieceTokenizer

WORDS = "the cat sat on mat ran over hill we like dogs order words wordy Straße ﬁne Ⅷ ٣٤ 日本語 мир"
WORDS = [*WORDS.split(), "नमस्ते", "x86", "naïve"]

training_options = st.fixed_dictionaries(
    {},
    optional={
        "treat_whitespace_as_suffix": st.just(True),
        "split_by_whitespace": st.just(False),
        "allow_whitespace_only_pieces": st.just(True),
        "split_digits": st.just(True),
        "split_by_unicode_script": st.just(False),
        "add_dummy_prefix": st.just(False),
        "remove_extra_whitespaces": st.just(False),
        "normalization_rule_name": st.sampled_from(["identity", "nfkc", "nmt_nfkc_cf"]),
        "user_defined_symbols": st.sampled_from([["word"], ["<x>"], ["ﬁ"], ["at", "ca"], ["a b"]]),
        "control_symbols": st.just(["<c>"]),
        "byte_fallback": st.just(True),
        "model_type": st.sampled_from(["bpe", "char", "word"]),
    },
)
parts = st.sampled_from(
    [*WORDS, "word", "<x>", "ｗord", "ﬁ", "a b", "<c>", "\u00a0", "\t", "  ", "at"]
)
lines = st.lists(st.builds(str.join, st.sampled_from(["", " "]), st.lists(parts, max_size=9)))


@functools.cache
def model(options: str) -> bytes | None:
    """Trains a model on many words; None where SentencePiece cannot with these options."""
    rng, file, given = np.random.default_rng(0), io.BytesIO(), json.loads(options)
    size = {"bpe": 170, "word": 30}.get(given.get("model_type"), 200)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(rng.choice(WORDS, 8)) for _ in range(200)]),
            model_writer=file,
            minloglevel=4,
            character_coverage=1.0,
            num_threads=1,
            hard_vocab_limit=given.get("model_type") == "bpe",
            vocab_size=size + 256 * given.get("byte_fallback", False),
            **given,
        )
    except RuntimeError:
        return None
    return file.getvalue()


def require_same_ids_or_refusal(tokenizer: Tokenizer, drawn: list[str]) -> None:
    """Writes the tokenizer for transformers; asserts that it gives the same ids, if it is."""
    transformers = pytest.importorskip("transformers")
    with tempfile.TemporaryDirectory() as folder:
        fault = export_fault(tokenizer)
        try:
            write_tokenizer(tokenizer, Path(folder), 512)
        except UserError as error:
            assert str(error) == f"the tokenizer {fault}; it cannot be exported"
            assert "\n" not in str(error) and not list(Path(folder).iterdir())
            return
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert fault is None
    ids, lengths = tokenizer.encode(drawn)
    ours = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    assert not drawn or theirs(drawn).input_ids == ours


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(training_options, lines)
def test_sentencepiece_models_of_any_kind(options, drawn):
    trained = model(json.dumps(options, sort_keys=True))
    if trained is not None:
        require_same_ids_or_refusal(SentencePieceTokenizer(trained), drawn)


@pytest.mark.parametrize(
    ("options", "differing"),
    [({}, 0), ({"treat_whitespace_as_suffix": True}, 0.9), ({"split_by_whitespace": False}, 0.5)],
)
def test_how_many_lines_differ_is_said(options, differing):
    fault = export_fault(SentencePieceTokenizer(model(json.dumps(options))))
    if not differing:
        assert fault is None
        return
    words = fault.split(" for ")[1].split()
    assert int(words[0]) > differing * int(words[2]) > 100


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([5, 100]),
    st.sampled_from(["##", "@@"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["BertPreTokenizer", "Whitespace"]),
    st.booleans(),
    lines,
)
def test_wordpiece_models_of_any_kind(
    longest, prefix, lowercase, clean, splitting, template, drawn
):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = [*special, *WORDS, "word", *letters, *(f"{prefix}{letter}" for letter in letters)]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(
        WordPiece(
            ids,
            unk_token="[UNK]",
            max_input_chars_per_word=longest,
            continuing_subword_prefix=prefix,
        )
    )
    backend.normalizer = normalizers.BertNormalizer(clean_text=clean, lowercase=lowercase)
    backend.pre_tokenizer = getattr(pre_tokenizers, splitting)()
    if template:
        backend.post_processor = processors.BertProcessing(
            ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
        )
    backend.add_special_tokens(special)
    require_same_ids_or_refusal(WordPieceTokenizer(backend.to_str().encode()), drawn)

"""The WordPiece tokenizer: BERT's ids, from a vocabulary or from a tokenizer.json."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.models import BPE, Unigram

from data_pipelines.packing.prepare import prepare
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.io.files import partial_path
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer, open_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["Un", "un", "##want", "##ed", "want", ",", "[", "]", "M", "##A", "##S", "##K", "é", "漢"]
LETTERS = [*"aeioptkrs0129", *(f"##{letter}" for letter in "aeioptkrs0129")]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    file.write_text("\n".join([*SPECIAL, *WORDS, *LETTERS]) + "\n", "utf-8")
    return file


@pytest.fixture(scope="module")
def tokenizer(vocab_file) -> Tokenizer:
    return load_tokenizer(vocab_file)


def encoded(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    ids, lengths = tokenizer.encode(lines)
    assert ids.dtype == np.int32 and lengths.dtype == np.int64 and lengths.sum() == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def spelled(tokenizer: Tokenizer, line: str) -> str:
    return " ".join(tokenizer.pieces[i] for i in encoded(tokenizer, [line])[0])


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("Unwanted,unwanted", "[CLS] Un ##want ##ed , un ##want ##ed [SEP]"),
        ("want漢漢 é", "[CLS] want 漢 漢 é [SEP]"),
        ("É UN unx", "[CLS] [UNK] [UNK] [UNK] [SEP]"),  # no lower case, accents kept
        ("want[MASK]", "[CLS] want [ M ##A ##S ##K ] [SEP]"),  # text, not the mask
        ("a\u200bte\u00a0o\ufffd", "[CLS] a ##t ##e o [SEP]"),
        ("", "[CLS] [SEP]"),
    ],
)
def test_hand_worked_lines(line, pieces, tokenizer):
    assert spelled(tokenizer, line) == pieces


def test_layout_is_that_of_the_file(tokenizer):
    assert tokenizer.pieces == [*SPECIAL, *WORDS, *LETTERS]
    assert tokenizer.vocabulary == (len(tokenizer.pieces), 2, 0, 3, 1, 4)
    assert tokenizer.vocabulary._fields[1:] == ("bos_id", "pad_id", "eos_id", "unk_id", "mask_id")
    assert tokenizer.vocab_size == len(tokenizer.pieces)
    assert tokenizer.encode([])[0].size == 0


@given(lines=st.lists(st.text(st.sampled_from("aeiotk wnUé漢[],\u00a0")) | st.text(), min_size=1))
def test_transformers_gives_the_same_ids(lines, tokenizer, vocab_file):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(str(vocab_file), do_lower_case=False)
    lines = [re.sub("|".join(map(re.escape, SPECIAL)), "", line) for line in lines]
    assert encoded(tokenizer, lines) == theirs(lines).input_ids


def test_lines_in_one_go_and_one_by_one(tokenizer, corpus):
    lines = (corpus / "qaa_Latn.txt").read_text("utf-8").splitlines()[:200]
    assert encoded(tokenizer, lines) == [encoded(tokenizer, [line])[0] for line in lines]


def test_a_vocabulary_and_the_file_made_of_it_are_one(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.model)
    again = open_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.pieces == tokenizer.pieces
    assert spelled(again, "Unwanted 漢") == spelled(tokenizer, "Unwanted 漢")


def test_truncation_and_padding_of_a_file_are_not_ours(tokenizer, tmp_path):
    backend = tokenizers.Tokenizer.from_str(tokenizer.model.decode())
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert encoded(again, ["Unwanted", "a"]) == encoded(tokenizer, ["Unwanted", "a"])


def test_a_store_keeps_it(corpus, vocab_file, tokenizer, tmp_path):
    prepare(corpus, vocab_file, tmp_path / "store", 32, 0.1)
    store = Store(tmp_path / "store")
    assert (store.path / "tokenizer.json").read_bytes() == tokenizer.model
    assert store.tokenizer().pieces == tokenizer.pieces
    assert store.manifest.vocabulary == tokenizer.vocabulary
    unknown = store.manifest.column("train", "unknown")
    assert (0 < unknown).all() and (unknown < store.manifest.column("train", "tokens")).all()
    split = store.split("validation")
    last = np.flatnonzero(split.rows)
    tokens, lengths = split.read(last, split.rows[last] - 1)
    padding = np.arange(32) >= lengths[:, None]
    assert padding.any() and (tokens[padding] == 0).all() and (tokens[~padding] != 0).all()


def test_what_an_interrupted_call_left_does_not_stay(corpus, tokenizer_file, vocab_file, tmp_path):
    partial = partial_path(tmp_path / "store")
    partial.mkdir()
    (partial / "tokenizer.json").write_bytes(load_tokenizer(vocab_file).model)
    prepare(corpus, tokenizer_file, tmp_path / "store", 32, 0.1)
    assert Store(tmp_path / "store").tokenizer().file_name == "tokenizer.model"
    assert not (tmp_path / "store" / "tokenizer.json").exists()


def refused(file: Path, data: bytes | str) -> str:
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(UserError) as error:
        load_tokenizer(file)
    message = str(error.value)
    assert message.startswith(str(file)) and "\n" not in message
    return message.removeprefix(f"{file} ")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "Un"], "has no piece [SEP] [MASK]; BERT's layout needs it"),
        ([*SPECIAL, "un", "##ed"], "is of an uncased model; name its tokenizer.json instead"),
        ([""], "has no piece [CLS] [PAD] [SEP] [UNK] [MASK]; BERT's layout needs it"),
    ],
)
def test_vocabularies_that_are_refused(pieces, message, tmp_path):
    assert refused(tmp_path / "vocab.txt", "\n".join(pieces)) == message


def test_a_piece_twice_is_refused(tmp_path):
    assert "fill the ids" in refused(tmp_path / "vocab.txt", "\n".join([*SPECIAL, "A", "A", "B"]))


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    assert ", line 2: not UTF-8" in refused(tmp_path / "vocab.txt", b"[CLS]\n\xff")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_and_a_mark_are_no_part_of_a_piece(end, vocab_file, tokenizer, tmp_path):
    file = tmp_path / "vocab.txt"
    text = vocab_file.read_text("utf-8").replace("\n", end)
    file.write_bytes(("\ufeff" + text).encode())
    assert load_tokenizer(file).model == load_tokenizer(vocab_file).model


def test_other_files_of_the_library_are_refused(tokenizer, tmp_path):
    file = tmp_path / "tokenizer.json"
    unigram = tokenizers.Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    assert "another layout than XLM-R" in refused(file, unigram.to_str())
    assert "is a BPE model" in refused(file, tokenizers.Tokenizer(BPE()).to_str())
    body = json.loads(tokenizer.model)
    body["model"]["vocab"].pop("[SEP]")
    body["added_tokens"] = [t for t in body["added_tokens"] if t["content"] != "[SEP]"]
    body["post_processor"] = None
    assert "fill the ids" in refused(file, json.dumps(body))
    for data in (b"", b"{}", b"\xff", tokenizer.model[:-5], b'{"model": {"type": "WordPiece"}}'):
        assert "is not a tokenizer.json" in refused(file, data)

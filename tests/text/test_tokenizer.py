"""The SentencePiece tokenizer: its pieces at XLM-R's ids, whatever lines come together."""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.errors import UserError
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer

BOS, PAD, EOS, UNK = 0, 1, 2, 3


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


@pytest.fixture(scope="module")
def xlmr_file(shared_data) -> Path:
    return shared_data / "tokenizers" / "xlmr" / "sentencepiece.bpe.model"


def mapped(model: Path, lines: list[str]) -> list[list[int]]:
    """Each line's ids by fairseq's rule: SentencePiece's id + 1, its unknown 0 at 3."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [[0, *(i + 1 if i else 3 for i in processor.encode(line)), 2] for line in lines]


def encoded(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    ids, lengths = tokenizer.encode(lines)
    assert ids.dtype == np.int32 and lengths.dtype == np.int64 and lengths.sum() == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def test_ids_published_for_xlmr(xlmr_file):
    tokenizer = load_tokenizer(xlmr_file)
    with open(xlmr_file.parent / "published_ids.tsv", encoding="utf-8") as file:
        texts, ids = zip(*list(csv.reader(file, delimiter="\t"))[1:], strict=True)
    assert len(texts) > 4
    assert encoded(tokenizer, texts) == [[int(i) for i in line.split()] for line in ids]
    assert tokenizer.vocabulary == (250_002, 0, 1, 2, 3, 250_001)


def test_xlmr_on_many_scripts_is_mapped_line_by_line(xlmr_file, shared_data):
    folder = shared_data / "udhr" / "text"
    lines = [
        line
        for file in sorted(folder.glob("*.txt"))[::8]
        for line in file.read_text("utf-8").split("\n")[:6]
    ]
    assert "" in lines or len(lines) > 200
    found = encoded(load_tokenizer(xlmr_file), lines)
    assert found == mapped(xlmr_file, lines)
    assert sum(line.count(UNK) for line in found) > 100  # scripts that XLM-R does not know


# Letters of the corpus, letters and other characters that the tokenizer does not know, spaces.
text = st.text(st.sampled_from("aeioptkrs .,?0129аеитк漢字ᚠ€\u00a0\u3000\u2581")) | st.text()


@given(lines=st.lists(text, min_size=1, max_size=8))
def test_encoding_is_the_mapping_of_each_line(lines, tokenizer, tokenizer_file):
    assert encoded(tokenizer, lines) == mapped(tokenizer_file, lines)


def test_lines_of_the_corpus_in_one_go_and_one_by_one(tokenizer, tokenizer_file, corpus):
    lines = (corpus / "qaa_Cyrl.txt").read_text("utf-8").splitlines()
    together = encoded(tokenizer, lines)
    assert together == mapped(tokenizer_file, lines)
    assert together == [encoded(tokenizer, [line])[0] for line in lines]


def test_no_lines_and_empty_lines(tokenizer):
    ids, lengths = tokenizer.encode([])
    assert (ids.dtype, ids.size, lengths.size) == (np.int32, 0, 0)
    assert encoded(tokenizer, ["", "", " "]) == [[BOS, EOS]] * 3


def test_layout_of_a_trained_model(tokenizer, tokenizer_file):
    assert tokenizer.vocab_size == 602
    assert tokenizer.vocabulary == (602, 0, 1, 2, 3, 601)
    assert tokenizer.vocabulary.special_ids == (0, 1, 2, 3, 601)
    assert len(tokenizer.pieces) == 602
    assert [tokenizer.pieces[i] for i in (0, 1, 2, 3, 601)] == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
    ]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))
    assert tokenizer.pieces[4:-1] == [processor.id_to_piece(i) for i in range(3, 600)]
    ids, _ = tokenizer.encode(["漢"])
    assert ids.tolist()[0] == BOS and ids.tolist()[-2:] == [UNK, EOS]
    data = tokenizer_file.read_bytes()
    assert tokenizer.model == data
    assert tokenizer.fingerprint == hashlib.sha256(data).hexdigest()


def trained(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words and some more words", "and others too"] * 20),
        model_writer=model,
        vocab_size=30,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
        {"unk_id": 0, "bos_id": 2, "eos_id": 1},
        {"unk_id": 0, "bos_id": -1, "eos_id": 1},
        {"unk_piece": "<UNK>"},
    ],
)
def test_another_layout_is_refused(options, tmp_path):
    file = tmp_path / "other.model"
    file.write_bytes(trained(**options))
    with pytest.raises(UserError, match="langsamp tokenizer train") as refused:
        load_tokenizer(file)
    assert str(refused.value).startswith(f"{file} starts with the pieces ")
    assert "\n" not in str(refused.value)


def test_special_pieces_of_its_own_are_refused(tmp_path):
    file = tmp_path / "own.model"
    file.write_bytes(trained(user_defined_symbols=["<mask>"]))
    with pytest.raises(UserError) as refused:
        load_tokenizer(file)
    assert str(refused.value) == f"{file} has its own <mask>, which XLM-R's layout adds"


@pytest.mark.parametrize("data", [b"", b"a text\n" * 50, bytes(1000), b"\x0a\xff"])
def test_what_is_no_model_is_named(data, tmp_path):
    file = tmp_path / "no.model"
    file.write_bytes(data)
    with pytest.raises(UserError) as refused:
        load_tokenizer(file)
    assert str(refused.value) == f"{file} is not a SentencePiece model"


def test_a_cut_model_is_no_model(tokenizer_file, tmp_path):
    file = tmp_path / "cut.model"
    data = tokenizer_file.read_bytes()
    for size in (10, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(UserError, match=str(file)):
            load_tokenizer(file)


def test_a_missing_model_or_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"tokenizer {tmp_path}/none.model not found"):
        load_tokenizer(tmp_path / "none.model")
    with pytest.raises(UserError, match=f"tokenizer {tmp_path} is a folder"):
        load_tokenizer(tmp_path)

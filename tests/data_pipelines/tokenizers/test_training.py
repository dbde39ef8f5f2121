"""Tokenizer training: the same bytes every time, and the tail gets its pieces."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.synthetic import grammar
from data_pipelines.tokenizers.training import train_tokenizer, trainable_parts
from langsamp_jax.text.tokenizer import load_tokenizer


def pieces_of(model: Path) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def test_same_input_same_bytes(corpus, tokenizer_file, tmp_path):
    """Also in another process with other hashes and on one core."""
    train_tokenizer(corpus, 600, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == tokenizer_file.read_bytes()
    code = (
        "import os, sys; from pathlib import Path\n"
        "if hasattr(os, 'sched_setaffinity'):\n"
        "    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from data_pipelines.tokenizers.training import train_tokenizer\n"
        "train_tokenizer(Path(sys.argv[1]), 600, Path(sys.argv[2]))"
    )
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", code, corpus, tmp_path / "process.model"],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path},
        check=True,
    )
    assert (tmp_path / "process.model").read_bytes() == tokenizer_file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.model", "process.model"]


def test_model_has_the_layout_and_size_asked_for(tokenizer_file):
    pieces = pieces_of(tokenizer_file)
    assert len(pieces) == len(set(pieces)) == 600
    assert pieces[:3] == ["<unk>", "<s>", "</s>"] and "<pad>" not in pieces
    assert load_tokenizer(tokenizer_file).vocab_size == 602


def test_what_is_returned_is_what_is_written(corpus, tmp_path):
    tokenizer = train_tokenizer(corpus, 300, tmp_path / "deep" / "a.model", max_sentences=200)
    assert (tmp_path / "deep" / "a.model").read_bytes() == tokenizer.model
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.model"]


def test_seed_draws_other_sentences(corpus, tmp_path):
    models = [
        train_tokenizer(corpus, 300, tmp_path / f"{seed}.model", max_sentences=100, seed=seed)
        for seed in (0, 1)
    ]
    assert models[0].fingerprint != models[1].fingerprint


@pytest.fixture(scope="module")
def head_and_tail(tmp_path_factory, write_corpus) -> Path:
    """3,000 lines of random Latin words and 30 of random Cyrillic ones."""
    rng = np.random.default_rng(0)

    def lines(letters: str, number: int) -> list[str]:
        words = ["".join(rng.choice(list(letters), 4)) for _ in range(300)]
        return [" ".join(rng.choice(words, 8)) for _ in range(number)]

    folder = tmp_path_factory.mktemp("head_and_tail") / "corpus"
    cyrillic = grammar.SCRIPTS["Cyrl"]
    return write_corpus(
        folder, qaa_Latn=lines(grammar.ALPHABET, 3000), qab_Cyrl=lines(cyrillic, 30)
    )


def test_temperature_brings_the_tail_in(head_and_tail, tmp_path):
    """Whole words of the tail, which in proportion to its size would have a hundredth."""
    tail = {}
    for temperature in (1, 1 / 0.3, 100):
        file = tmp_path / f"{temperature}.model"
        train_tokenizer(head_and_tail, 250, file, temperature, max_sentences=600)
        tail[temperature] = sum(
            len(piece) > 2 and bool(re.search("[а-яһјԝ]", piece)) for piece in pieces_of(file)
        )
    assert tail[1] < 3 and tail[1 / 0.3] > 8 and tail[100] > 60


def drawn_sentences(monkeypatch, *args, **options) -> list[str]:
    """Returns what train_tokenizer gives to SentencePiece."""
    drawn = []

    class Stop(Exception):
        pass

    def train(sentence_iterator, **_):
        drawn.extend(sentence_iterator)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
        train_tokenizer(*args, **options)
    return drawn


def test_every_line_comes_once_before_any_comes_twice(monkeypatch, tmp_path, write_files):
    """Of a sample smaller than the corpus, the lines of the head are a part."""
    head, tail = [f"head {i}" for i in range(1000)], [f"tail {i}" for i in range(10)]
    texts = {"qaa_Latn": "\n\n".join(head) + "\n", "qab_Latn": "\n".join(tail)}
    texts["qac_Latn"] = "\n \n"
    files = {f"{name}.txt": text for name, text in texts.items()}
    corpus = write_files(tmp_path / "corpus", files)
    output = tmp_path / "a.model"
    drawn = drawn_sentences(monkeypatch, corpus, 100, output, 1e9, max_sentences=200)
    assert len(drawn) == 200
    assert len(set(drawn) & set(head)) == 100  # half, all different
    assert {drawn.count(line) for line in tail} == {10}
    everything = drawn_sentences(monkeypatch, corpus, 100, output, 1)
    assert sorted(everything) == sorted(head + tail)
    assert not output.exists()


def test_a_vocabulary_too_large_for_the_text(corpus, tmp_path, refused):
    message = refused(train_tokenizer, corpus, 50_000, tmp_path / "a.model")
    assert re.fullmatch(r"--vocab_size 50000: the text gives at most \d+ pieces", message)
    assert list(tmp_path.iterdir()) == []
    most = int(re.search(r"most (\d+)", message).group(1))
    assert train_tokenizer(corpus, most, tmp_path / "most.model").vocab_size == most + 2


def test_a_vocabulary_too_small_for_the_characters(corpus, tmp_path, refused):
    message = refused(train_tokenizer, corpus, 20, tmp_path / "a.model")
    assert re.fullmatch(r"--vocab_size 20: its characters alone need \d+ pieces", message), message
    assert list(tmp_path.iterdir()) == []
    assert int(re.search(r"need (\d+)", message).group(1)) > 20


@pytest.mark.parametrize("size", [0, -5])
def test_a_vocabulary_of_nothing(size, corpus, tmp_path, refused):
    assert f"--vocab_size {size}" in refused(train_tokenizer, corpus, size, tmp_path / "a.model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [0, -1])
def test_a_sample_of_nothing(number, corpus, tmp_path, refused):
    message = refused(train_tokenizer, corpus, 300, tmp_path / "a.model", max_sentences=number)
    assert message.startswith(f"--sentences {number}: expected")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_a_bad_temperature(temperature, corpus, tmp_path, refused):
    message = refused(train_tokenizer, corpus, 300, tmp_path / "a.model", temperature)
    assert message.startswith(f"--temperature {temperature}: expected")


def test_what_is_at_the_output_is_kept(corpus, tmp_path, refused):
    file = tmp_path / "a.model"
    file.write_text("mine")
    assert str(file) in refused(train_tokenizer, corpus, 300, file)
    assert str(tmp_path) in refused(train_tokenizer, corpus, 300, tmp_path)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(train_tokenizer, corpus, 300, tmp_path / "empty")
    assert file.read_text() == "mine"


def test_bad_corpora_are_named(tmp_path, refused, write_corpus):
    output = tmp_path / "a.model"
    assert str(tmp_path / "none") in refused(train_tokenizer, tmp_path / "none", 300, output)
    empty = write_corpus(tmp_path / "empty", deu_Latn=[""])
    assert str(empty) in refused(train_tokenizer, empty, 300, output)
    named = write_corpus(tmp_path / "named", german=["words"])
    assert str(named / "german.txt") in refused(train_tokenizer, named, 300, output)
    bad = write_corpus(tmp_path / "bad", deu_Latn=["words"])
    (bad / "deu_Latn.txt").write_bytes(b"words\n\xff\n")
    assert f"{bad / 'deu_Latn.txt'}, line 2" in refused(train_tokenizer, bad, 300, output)
    assert not output.exists()


def test_a_full_disk_leaves_nothing(small_disk, corpus):
    (small_disk / "filler").write_bytes(bytes(200 * 1024))
    with pytest.raises(OSError, match="No space left"):
        train_tokenizer(corpus, 600, small_disk / "a.model", max_sentences=400)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@given(st.text(st.sampled_from("aж中 ▅▁"), max_size=60), st.integers(1, 3000))
def test_parts_of_a_line_hold_all_of_its_text(text, times):
    line = (text * times).strip()
    parts = list(trainable_parts(line))
    assert all(part == part.strip() != "" and "▅" not in part for part in parts)
    assert max((len(part.encode()) for part in parts), default=0) <= 16_384
    assert "".join("".join(parts).split()) == "".join(line.replace("▅", " ").split())
    if len(line.encode()) <= 16_384 and "▅" not in line:
        assert parts == [line] * bool(line)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, write_corpus) -> Path:
    """Two languages of which SentencePiece by itself would read no line, and a good one."""
    cyrillic, greek = "".join(grammar.SCRIPTS["Cyrl"]), "αβγδεζηθικλμνξοπρστυφχψω"
    return write_corpus(
        tmp_path_factory.mktemp("spoiled") / "corpus",
        qaa_Latn=[f"{grammar.ALPHABET} {letter} " * 9 for letter in grammar.ALPHABET],
        qab_Cyrl=[f"{cyrillic}▅{letter}" * 9 for letter in cyrillic],
        qac_Grek=[f"{greek} " * 400],
    )


def test_lines_that_sentencepiece_would_leave_out(spoiled, tmp_path, capfd):
    pieces = train_tokenizer(spoiled, 76, tmp_path / "a.model").pieces
    assert {"б", "т", "α", "ω", "a"} <= set(pieces)
    assert capfd.readouterr().err.splitlines() == [
        "qab_Cyrl: 24 of 24 lines hold ▅, SentencePiece's own mark: trained on with a space for it",
        "qac_Grek: 1 of 1 lines are longer than 16,384 bytes: trained on in parts",
        "of every language-script at least 100.00% of the letters are known",
    ]


def test_languages_whose_letters_are_unknown_are_named(write_corpus, tmp_path, capfd):
    """Two lines among 9,000: their letters fall below SentencePiece's character coverage."""
    many = [f"{grammar.ALPHABET} {i}" for i in range(9000)]
    corpus = write_corpus(tmp_path / "corpus", qaa_Latn=many, qab_Cyrl=["жжщ", "abж"])
    train_tokenizer(corpus, 60, tmp_path / "a.model", temperature=1)
    expected = "qab_Cyrl: 66.7% of its letters are unknown to the tokenizer (ж щ)"
    assert capfd.readouterr().err.splitlines() == [expected]

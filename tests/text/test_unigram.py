"""A ``tokenizer.json`` of XLM-R's kind encodes as the SentencePiece model that it came from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langsamp_jax.evaluation.model import load_model
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import Tokenizer, load_tokenizer

ODD = ["", " ", "  two  spaces ", "\ttab", "ﬁne Ⅷ", "<mask> <s>", "a\u200bb", "▁ low", "日本語 🙂"]


@pytest.fixture(scope="module")
def saved(tokenizer_file, tmp_path_factory) -> Path:
    """What transformers saves of our tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder, again = (tmp_path_factory.mktemp(name) for name in ("tokenizer", "saved"))
    shutil.copy(tokenizer_file, folder / "sentencepiece.bpe.model")
    transformers.XLMRobertaTokenizer.from_pretrained(folder).save_pretrained(again)
    assert not (again / "sentencepiece.bpe.model").exists()
    return again


def assert_same(ours: Tokenizer, theirs: Tokenizer, lines: list[str]) -> None:
    assert ours.vocabulary == theirs.vocabulary
    assert ours.pieces == theirs.pieces
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    for found, expected in zip(theirs.encode(lines), ours.encode(lines), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("saved_by", ["us", "transformers"])
def test_the_same_ids(saved_by, saved, tokenizer_file, corpus, tmp_path):
    ours = load_tokenizer(tokenizer_file)
    if saved_by == "us":
        write_tokenizer(ours, tmp_path, 32)
    folder = tmp_path if saved_by == "us" else saved
    lines = [line for file in corpus.glob("*.txt") for line in file.read_text("utf-8").splitlines()]
    assert_same(ours, load_tokenizer(folder / "tokenizer.json"), lines + ODD)


@pytest.mark.slow
def test_the_same_ids_with_xlmrs_pieces_on_real_text(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "tokenizers" / "xlmr"
    transformers.XLMRobertaTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    files = sorted((shared_data / "udhr" / "text").glob("*.txt"))
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    ours = load_tokenizer(folder / "sentencepiece.bpe.model")
    assert_same(ours, load_tokenizer(tmp_path / "tokenizer.json"), lines + ODD)


def test_a_folder_that_transformers_saved_can_be_evaluated(saved, make_checkpoint, tmp_path):
    tokenizer = load_tokenizer(saved / "tokenizer.json")
    make_checkpoint(tmp_path, "xlm-roberta", tokenizer.vocab_size)
    for file in saved.iterdir():
        shutil.copy(file, tmp_path)
    assert load_model(tmp_path).tokenizer.vocabulary == tokenizer.vocabulary


def _without_mask(backend: dict[str, Any]) -> None:
    backend["model"]["vocab"].pop()
    backend["added_tokens"].pop()


def _lower_case(backend: dict[str, Any]) -> None:
    backend["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Lowercase"}, backend["normalizer"]],
    }


def _no_space_in_front(backend: dict[str, Any]) -> None:
    backend["pre_tokenizer"]["pretokenizers"][1]["prepend_scheme"] = "never"


def _added_piece(backend: dict[str, Any]) -> None:
    backend["added_tokens"].append(
        {**backend["added_tokens"][-1], "id": len(backend["model"]["vocab"]), "content": "<new>"}
    )


def _bytes(backend: dict[str, Any]) -> None:
    backend["model"]["byte_fallback"] = True


def _another_unknown_piece(backend: dict[str, Any]) -> None:
    backend["model"]["unk_id"] = 0


def _words_are_not_split(backend: dict[str, Any]) -> None:
    del backend["pre_tokenizer"]["pretokenizers"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_mask, "another layout"),
        (_added_piece, "another layout"),
        (_bytes, "another layout"),
        (_lower_case, "(Lowercase, Precompiled, WhitespaceSplit, Metaspace)"),
        (_no_space_in_front, "in front of every word"),
        (_another_unknown_piece, "splits text in another way than XLM-R: "),
        (_words_are_not_split, "another way than XLM-R: 9 of 254"),
    ],
)
def test_other_unigram_models_are_refused(
    change: Callable[[dict[str, Any]], None], message, saved, refused, tmp_path
):
    backend = json.loads((saved / "tokenizer.json").read_text("utf-8"))
    change(backend)
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend), "utf-8")
    line = refused(load_tokenizer, tmp_path / "tokenizer.json")
    assert message in line and str(tmp_path / "tokenizer.json") in line

"""Where the files of a task lie, and the script of a language that is named without one."""

import pytest

from langsamp_jax.evaluation.datasets.classification import read_sentence_task
from langsamp_jax.evaluation.datasets.layout import language_script, source_files

EXAMPLE = "1\tSin\tx\n"


@pytest.mark.parametrize(
    ("code", "text", "task", "expected"),
    [
        ("deu_Latn", "Привет", "sr_tatoeba", "deu_Latn"),  # says it itself
        ("uzb", "Salom, dunyo", "sr_tatoeba", "uzb_Cyrl"),  # as the published list has it
        ("ang", "hƿæt þē!", "sr_tatoeba", "ang_Latn"),
        ("orv", "слово, 1185 - ok", "sr_tatoeba", "orv_Cyrl"),
        ("tuk", "Salam", "sr_bible", "tuk_Latn"),  # the list has both
        ("tuk", "Салам", "sr_bible", "tuk_Cyrl"),
        ("qaa", "これは漢字です", "sr_tatoeba", "qaa_Jpan"),
        ("qaa", "漢字", "sr_tatoeba", "qaa_Hani"),
        ("qaa", "1, 2! ́", "sr_tatoeba", "qaa_Zyyy"),
    ],
)
def test_the_script_of_a_code(code, text, task, expected):
    assert language_script(code, text, task) == expected


def test_the_source_is_named_by_what_is_missing(tmp_path, refused, write_files):
    assert "none not found" in refused(source_files, tmp_path / "none", "eng_Latn")
    message = refused(source_files, tmp_path, "eng_Latn")
    for layout in ("eng_Latn/train.tsv", "eng_Latn/TREEBANK/train.tsv", "eng_Latn_train.tsv"):
        assert layout in message
    write_files(tmp_path, {"eng_train.tsv": EXAMPLE})
    assert "no dev set of the source language eng;" in refused(source_files, tmp_path, "eng_Latn")
    write_files(tmp_path, {"eng_dev.tsv": EXAMPLE})
    expected = ("eng", [tmp_path / "eng_train.tsv"], [tmp_path / "eng_dev.tsv"])
    assert source_files(tmp_path, "eng_Latn") == expected


def test_names_that_are_no_language_are_said(tmp_path, write_files):
    names = ["eng_train.tsv", "eng_dev.tsv", "deu_Lant/test.tsv", "german/test.tsv"]
    names += ["fra/test.tsv", "fra_Latn/test.tsv", ".git/test.tsv", "ita/readme"]
    data = read_sentence_task(write_files(tmp_path, dict.fromkeys(names, EXAMPLE)), "taxi1500")
    assert list(data.test) == ["fra_Latn"]
    assert sorted(data.skipped) == ["deu_Lant", "fra_Latn", "german", "ita"]
    assert "'Lant' is not an ISO 15924 script code" in data.skipped["deu_Lant"]
    assert "not of the form iso639-3_Script" in data.skipped["german"]
    assert "another test set of fra_Latn" in data.skipped["fra_Latn"]
    assert data.skipped["ita"] == f"{tmp_path / 'ita'} has no test set"


def test_a_folder_under_a_code_that_does_not_exist(tmp_path, write_files):
    """It was evaluated as the language ger_Latn."""
    names = ["eng_train.tsv", "eng_dev.tsv", "deu/test.tsv", "ger/test.tsv", "zh_Hans/test.tsv"]
    data = read_sentence_task(write_files(tmp_path, dict.fromkeys(names, EXAMPLE)), "taxi1500")
    assert list(data.test) == ["deu_Latn"]
    assert data.skipped["ger"].endswith("; did you mean deu?")
    assert data.skipped["zh_Hans"].endswith("; did you mean zho_Hans?")

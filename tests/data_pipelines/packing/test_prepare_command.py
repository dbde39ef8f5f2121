"""``langsamp prepare``: what it says, and what it refuses in one line."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.corpus.cleaning import CLEANING_COLUMNS
from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store


@pytest.fixture
def spoilt(tmp_path) -> Path:
    """A corpus with one of everything that cleaning counts, and a file that is cut."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    clean = [f"a line of words {number}" for number in range(100)]
    latin = [
        *("repeated", "repeated", "repeated"),
        *("\0control", "o\u0301 composed", "Held out!"),
        *(f"слова {number}" for number in range(50)),
    ]
    text = "\n".join([*clean, *latin]).encode() + b"\n" + b"x" * (3 << 20) + b"\n\xff\n"
    (folder / "qaa_Latn.txt").write_bytes(text)
    (folder / "qab_Latn.txt").write_text("\n".join(clean))
    (folder / "qac_Latn.txt.gz").write_bytes(gzip.compress(text)[:-9])
    (tmp_path / "held_out.txt").write_text("held out\n")
    return folder


@pytest.fixture
def prepare_refused(command_refused, tmp_path) -> Callable[..., str]:
    """``prepare_refused(*arguments)``: the one line; there is no output."""

    def prepare_refused(*arguments: object) -> str:
        line = command_refused("prepare", "--output", tmp_path / "store", *arguments)
        assert not (tmp_path / "store").exists()
        return line

    return prepare_refused


def test_what_was_met_is_told(spoilt, tokenizer_file, tmp_path, capsys):
    words = ["prepare", "--corpus", spoilt, "--tokenizer", tokenizer_file, "--skip_damaged"]
    words += ["--output", tmp_path / "store", "--sequence_length", 16, "--workers", 1]
    words += ["--validation_fraction", 0.2, "--held_out", tmp_path / "held_out.txt"]
    assert main([str(word) for word in words]) == 0
    told = capsys.readouterr().out
    manifest = Store(tmp_path / "store").manifest
    assert (manifest.names, manifest.sequence_length) == (("qaa_Latn", "qab_Latn"), 16)
    table, _, rest = told.partition("\nlines that were not as they should be:\n")
    assert "qab_Latn" in table and "qab_Latn" not in rest  # a clean file is not in it
    assert "skipped qac_Latn: 0 training tokens do not fill a row of 16" in table
    header, rule, row, *_ = rest.splitlines()
    spans = [match.span() for match in re.finditer("-+", rule)]
    titles = [header[start:end].strip() for start, end in spans]
    cells = [row[start:end].strip() for start, end in spans]
    expected = {"language": "qaa_Latn", "lines read": "156", "not UTF-8": "1", "too long": "1"}
    expected |= {"control characters": "1", "not NFC": "1", "wrong script": "50"}
    expected |= {"held out": "1", "duplicates": "2"}
    assert dict(zip(titles, cells, strict=True)) == expected
    assert len(expected) == len(CLEANING_COLUMNS)  # the language instead of invisible lines
    assert "qaa_Latn: 32.1% of the lines are in another script (Cyrl 32.1%)" in rest
    assert f"qac_Latn: left out: {spoilt / 'qac_Latn.txt.gz'} is damaged" in rest
    settings = json.loads((tmp_path / "store" / "origin.json").read_text())["settings"]
    assert settings["validation_fraction"] == 0.2


def test_without_anything_to_tell_there_is_one_table(corpus, tokenizer_file, tmp_path, capsys):
    words = ["prepare", "--corpus", corpus, "--tokenizer", tokenizer_file]
    words += ["--output", tmp_path / "store", "--duplicates", "keep", "--normalization", "none"]
    assert main([str(word) for word in [*words, "--sequence_length", 32]]) == 0
    told = capsys.readouterr().out
    assert "not as they should be" not in told and told.endswith(f"{tmp_path / 'store'}\n")
    settings = json.loads((tmp_path / "store" / "origin.json").read_text())["settings"]
    assert (settings["normalization"], settings["duplicates"]) == ("none", "keep")
    assert settings["validation_fraction"] == 0.01


def test_a_store_that_grows(store_path, tmp_path, capsys):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "qaz_Latn.txt").write_text("".join(f"some words {n}\n" for n in range(200)))
    words = ["prepare", "--corpus", folder, "--add_to", store_path, "--output", tmp_path / "store"]
    assert main([str(word) for word in words]) == 0
    names = Store(tmp_path / "store").manifest.names
    assert names == (*Store(store_path).manifest.names, "qaz_Latn")
    told = capsys.readouterr().out
    assert all(name in told for name in names)


def test_arguments_that_do_not_go_together(
    corpus, tokenizer_file, store_path, tmp_path, prepare_refused
):
    text = ["--corpus", corpus, "--tokenizer", tokenizer_file]
    assert "--corpus --mixture is required" in prepare_refused()
    assert "not allowed with argument" in prepare_refused(*text, "--mixture", "all")
    assert "prepare --corpus needs --tokenizer FILE" in prepare_refused("--corpus", corpus)
    assert "--module cannot be given with --corpus" in prepare_refused(*text, "--module", "m")
    assert "--tokenizer cannot be given with --add_to" in prepare_refused(
        *text, "--add_to", store_path
    )
    grown = ["--corpus", corpus, "--add_to", store_path]
    for option, value in (
        ("--sequence_length", 32),
        ("--validation_fraction", 0.0),
        ("--normalization", "NFC"),
        ("--duplicates", "drop"),
        ("--module", "m"),
    ):
        assert f"{option} cannot be given with --add_to" in prepare_refused(*grown, option, value)
    mixed = ["--mixture", "all", "--module", "m"]
    for option, value in (
        ("--tokenizer", tokenizer_file),
        ("--validation_fraction", 0.0),
        ("--normalization", "NFC"),
        ("--duplicates", "drop"),
        ("--held_out", tmp_path),
    ):
        assert f"{option} cannot be given with --mixture" in prepare_refused(*mixed, option, value)
    assert "--mixture, --module cannot be given" in prepare_refused(*mixed, "--add_to", store_path)
    assert "--workers cannot be given with --runner beam" in prepare_refused(
        *text, "--runner", "beam", "--workers", 2
    )
    assert "--beam_options cannot be given with --runner local" in prepare_refused(
        *text, "--beam_options", "x"
    )


def test_values_that_are_none(corpus, tokenizer_file, store_path, tmp_path, prepare_refused):
    text = ["--corpus", corpus, "--tokenizer", tokenizer_file]
    assert "--workers 0: expected a whole number above 0" in prepare_refused(*text, "--workers", 0)
    assert "invalid int value: '2.5'" in prepare_refused(*text, "--workers", 2.5)
    assert "invalid choice: 'NFD'" in prepare_refused(*text, "--normalization", "NFD")
    assert "invalid choice: 'some'" in prepare_refused(*text, "--duplicates", "some")
    assert "invalid choice: 'spark'" in prepare_refused(*text, "--runner", "spark")
    assert "--sequence_length 7: expected 8 to 65536" in prepare_refused(
        *text, "--sequence_length", 7
    )
    assert "--validation_fraction 1.0: expected" in prepare_refused(
        *text, "--validation_fraction", 1
    )
    assert "not found" in prepare_refused(*text, "--held_out", corpus, tmp_path / "none")
    assert "expected at least one argument" in prepare_refused(*text, "--held_out")
    assert "is no store" in prepare_refused("--corpus", corpus, "--add_to", tmp_path)
    assert "holds all text" in prepare_refused("--corpus", corpus, "--add_to", store_path)


def test_beam_options_that_are_no_words(corpus, tokenizer_file, prepare_refused):
    pytest.importorskip("apache_beam")
    text = ["--corpus", corpus, "--tokenizer", tokenizer_file, "--runner", "beam"]
    assert "--beam_options '--a: No closing quotation" in prepare_refused(
        *text, "--beam_options", "'--a"
    )


def test_a_damaged_file_is_named_and_what_to_do(spoilt, tokenizer_file, prepare_refused):
    text = ["--corpus", spoilt, "--tokenizer", tokenizer_file]
    line = prepare_refused(*text, "--workers", 1)
    assert f"{spoilt / 'qaa_Latn.txt'}, line 158: not UTF-8" in line and "--skip_damaged" in line


def test_the_unknown_share_is_of_pieces_that_stand_for_text(
    write_corpus, tokenizer_file, tmp_path, capsys
):
    """Not of <s>, </s> and the ▁ in front of every word: of the tokens it would be 37.5%."""
    corpus = write_corpus(tmp_path / "corpus", qab_Hani=["字 字字 字"] * 9)
    words = ["prepare", "--corpus", corpus, "--tokenizer", tokenizer_file, "--sequence_length", 8]
    words += ["--output", tmp_path / "store", "--validation_fraction", 0, "--duplicates", "keep"]
    assert main([str(word) for word in words]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[:1] == ["qab_Hani"]] == [
        ["qab_Hani", "9", "72", "9", "100.00%", "0"]
    ]


def test_what_cannot_be_exported_is_said_before_the_work(corpus, tokenizer_file, tmp_path, capsys):
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer_file.read_bytes())
    proto.trainer_spec.treat_whitespace_as_suffix = True
    (tmp_path / "a.model").write_bytes(proto.SerializeToString())
    for file, said in ((tmp_path / "a.model", 1), (tokenizer_file, 0)):
        words = ["prepare", "--corpus", corpus, "--tokenizer", file, "--sequence_length", 32]
        assert (
            main([str(word) for word in [*words, "--output", tmp_path / f"{file.stem}-store"]]) == 0
        )
        errors = capsys.readouterr().err.splitlines()
        start = f"{file} would have other ids in transformers for "
        assert sum(line.startswith(start) for line in errors) == said

"""Held-out texts are left out whatever their form, and what they matched is told."""

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.corpus.cleaning import CleaningConfig, TextCleaner, match_keys
from data_pipelines.corpus.held_out import matches_shown, read_held_out
from data_pipelines.corpus.sources import Block
from data_pipelines.packing.prepare import prepare
from data_pipelines.packing.provenance import Provenance
from langsamp_jax.cli.main import main
from langsamp_jax.errors import UserError


def matches(line: str, held_out: str, folder: Path) -> bool:
    (folder / "held_out.txt").write_text(held_out, "utf-8")
    cleaner = TextCleaner(
        "deu_Latn", CleaningConfig(), read_held_out([folder / "held_out.txt"]).hashes
    )
    kept = cleaner.clean(Block(line.encode(), 0))
    assert cleaner.counts["held_out"] == 1 - len(kept)
    return not kept


@pytest.mark.parametrize(
    "variant",
    [
        "Die Straße ist naß, sagt Ärmel.",
        "  die  straße ist naß sagt ärmel",
        "DIE STRASSE IST NASS, SAGT ÄRMEL!",
        "„Die Straße ist naß“ — sagt A\u0308rmel …",
        "Ｄie Straße ist naß,\u00a0sagt\u200b Ärmel.",
        "1. Die Straße ist naß, sagt Ärmel.".removeprefix("1. "),
    ],
)
def test_what_matches_whatever_its_case_spaces_and_punctuation(variant, tmp_path):
    held_out = "Der erste Satz.\r\nDie Straße ist naß, sagt Ärmel.\r\n"
    assert matches(variant, held_out, tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        "Die Straße ist naß, sagt Armel.",  # another letter
        "Die Straße ist naß, sagt Ärmel. Und mehr.",
        "Die Straße ist naß",
        "Die Straße ist naß, sagt Ärmel 2.",
        "…",
        "!",
    ],
)
def test_what_does_not_match(other, tmp_path):
    held_out = "Der erste Satz.\n\n---\nDie Straße ist naß, sagt Ärmel.\n"
    assert not matches(other, held_out, tmp_path)


def test_how_characters_are_encoded_does_not_matter():
    same = ["ＴＥＬ ﬁx Ⅸ", "℡ fix ix", "tel FIX IX", "𝐓𝐄𝐋 fi𝗑 ⅸ"]
    assert set(match_keys(same)) == {"telfixix"}
    assert match_keys(["é"]) == match_keys(["e\u0301"]) != match_keys(["e"])
    assert match_keys([]) == [] and match_keys(["", "a\nb"]) == ["", "ab"]


@pytest.mark.parametrize("held_out", ["7\tFaith\tThe text itself.\n", "a b\tThe text itself.\tc\n"])
def test_a_field_of_a_table_is_a_text(held_out, tmp_path):
    assert matches("the text itself", held_out, tmp_path)
    assert not matches("the text", held_out, tmp_path)


def test_tokens_of_a_sentence_are_a_text(tmp_path):
    held_out = "Do\tAUX\nn't\tPART\nwait\tVERB\n.\tPUNCT\n\nGo\tVERB\non\tADP"
    assert matches("Don't wait.", held_out, tmp_path)
    assert matches("Go on!", held_out, tmp_path)
    assert not matches("Don't wait. Go on!", held_out, tmp_path)


@pytest.mark.parametrize(
    "file", ["ud_pos/eng_Latn/English-EWT/test.tsv", "ner/uner/zho_Hant/Chinese-PUD/test.tsv"]
)
def test_real_test_sets_are_left_out(file, shared_data, tokenizer_file, tmp_path):
    """Part-of-speech and named-entity sentences, written as text is."""
    sentences = [
        "".join(line.split("\t")[0] for line in part.split("\n") if line)
        for part in (shared_data / file).read_text("utf-8").split("\n\n")
    ]
    sentences = [s for s in sentences if sum(c.isalnum() for c in s) > 5]
    assert len(sentences) > 200
    folder = tmp_path / "corpus"
    folder.mkdir()
    other = [f"a line that is nowhere else {number}" for number in range(300)]
    mixed = [line for pair in zip(other, sentences, strict=False) for line in pair]
    (folder / "qaa_Latn.txt").write_text("\n".join([*mixed, *other]), "utf-8")
    (folder / "qab_Latn.txt").write_text("\n".join(other[: len(mixed) // 2] + other), "utf-8")
    held_out = [(shared_data / file).parent]
    manifest = prepare(folder, tokenizer_file, tmp_path / "store", 32, held_out=held_out)
    for counts in manifest.counts.values():
        assert counts["qaa_Latn"] == counts["qab_Latn"]
    met = Provenance.load(tmp_path / "store").report["qaa_Latn"]["hygiene"]
    assert met["held_out"] == len(mixed) // 2


def test_files_and_folders_of_held_out_text(tmp_path):
    (tmp_path / "sets" / "deep").mkdir(parents=True)
    (tmp_path / "sets" / "deep" / "a.tsv").write_text("\ufeffone text\n", "utf-8")
    (tmp_path / "b.txt").write_text("another\n", "utf-8")
    hashes = read_held_out([tmp_path / "sets", tmp_path / "b.txt"]).hashes
    assert hashes.dtype == np.uint64 and hashes.tolist() == sorted(set(hashes.tolist()))
    cleaner = TextCleaner("deu_Latn", CleaningConfig(), hashes)
    assert cleaner.clean(Block(b"One text\nANOTHER\nsomething else\n", 0)) == ["something else"]
    assert read_held_out([]).hashes.tolist() == []


def test_held_out_files_that_cannot_be_read(tmp_path):
    for path, expected in ((tmp_path / "none", "not found"), (tmp_path / "bad", "not UTF-8")):
        (tmp_path / "bad").write_bytes(b"caf\xe9\n")
        with pytest.raises(UserError) as error:
            read_held_out([path])
        assert str(error.value).startswith(f"--held_out {path}") and expected in str(error.value)


def test_held_out_text_is_part_of_the_settings(corpus, tokenizer_file, tmp_path):
    store = tmp_path / "store"
    held_out = [corpus / "qaa_Latn.txt"]
    manifest = prepare(corpus, tokenizer_file, store, 32, held_out=held_out)
    assert manifest.skipped == {"qaa_Latn": "everything was held out, 1,000 lines"}
    assert prepare(corpus, tokenizer_file, store, 32, held_out=held_out) == manifest
    with pytest.raises(UserError):
        prepare(corpus, tokenizer_file, store, 32)
    assert "held_out" in json.loads((store / "origin.json").read_text())["settings"]


# --- forms ------------------------------------------------------------------------------------

lines = st.text(st.sampled_from("aßд漢 ,;'\"\t\u2028"), min_size=1)
lines = lines.filter(lambda line: match_keys([line]) != [""])


def write_jsonl(texts: list[str], file: Path) -> None:
    records = [{"id": n, "parts": [{"text": text}, None]} for n, text in enumerate(texts)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def write_json(texts: list[str], file: Path) -> None:
    file.write_text(json.dumps({"data": texts}, indent=1), "utf-8")


def write_csv(texts: list[str], file: Path, delimiter: str = ",") -> None:
    with open(file, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter=delimiter)
        table.writerows([["id", "text"], *enumerate(texts)])


FORMS = {
    "jsonl": write_jsonl,
    "json": write_json,
    "ndjson": write_jsonl,
    "JSONL": write_jsonl,
    "csv": write_csv,
    "CSV": lambda texts, file: write_csv(texts, file, ";"),
    "txt": lambda texts, file: file.write_text("\n".join(texts), "utf-8"),
    "tsv": lambda texts, file: file.write_text("".join(f"1\t{t}\n" for t in texts), "utf-8"),
}


@given(texts=st.lists(lines, min_size=1, max_size=4))
@pytest.mark.parametrize("form", FORMS)
def test_texts_are_held_out_whatever_their_form(form, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    nested = folder / "nested" / "deeper"
    nested.mkdir(parents=True)
    if form in ("txt", "tsv"):
        texts = [" ".join(text.split("\t")) for text in texts]
    FORMS[form](texts, nested / f"test.{form}")
    hashes = read_held_out([folder]).hashes
    cleaner = TextCleaner("deu_Latn", CleaningConfig(), hashes)
    assert cleaner.clean(Block("\n".join([*texts, "another line"]).encode(), 0)) == ["another line"]


def test_lines_of_a_longer_string_are_texts(tmp_path):
    write_jsonl(["one sentence\nanother sentence"], tmp_path / "a.jsonl")
    cleaner = TextCleaner("deu_Latn", CleaningConfig(), read_held_out([tmp_path]).hashes)
    assert cleaner.clean(Block(b"Another sentence.\nparts\ntext\n", 0)) == ["parts", "text"]


def test_what_cannot_be_read_is_refused(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    assert "is an empty folder" in refused(read_held_out, [tmp_path / "empty"])
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert refused(read_held_out, [tmp_path]).startswith(
        f"--held_out {tmp_path / 'a.jsonl'}, line 2: not JSON"
    )
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"one"))
    assert "not UTF-8" in refused(read_held_out, [tmp_path])
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refused(read_held_out, [tmp_path / "pipe"])


def test_links_are_followed_and_hidden_files_are_not_read(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.txt").write_text("one")
    (tmp_path / "real" / "._a.txt").write_bytes(b"\0\xff")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "sets")
    assert list(read_held_out([tmp_path / "sets"]).files) == [
        str(tmp_path / "sets" / "link" / "deep" / "a.txt")
    ]


# --- what is told -----------------------------------------------------------------------------


def test_what_matched_is_told_by_file(corpus, tokenizer_file, tmp_path, capsys):
    text = (corpus / "qaa_Latn.txt").read_text("utf-8").splitlines()
    sets = tmp_path / "sets"
    sets.mkdir()
    write_jsonl(text[:20], sets / "a.jsonl")
    write_csv(["in no corpus"], sets / "b.csv")
    (sets / "c.txt").write_text("\n".join(text[10:30]), "utf-8")
    words = ["prepare", "--corpus", corpus, "--tokenizer", tokenizer_file, "--held_out", sets]
    words += ["--output", tmp_path / "store", "--sequence_length", 16, "--workers", 1]
    for _ in range(2):  # made, and found there
        assert main([str(word) for word in words]) == 0
        told = capsys.readouterr().out
        store_record = Provenance.load(tmp_path / "store").held_out
        lines = store_record["lines"]
        assert lines >= 30 and store_record["matched"] == len(set(match_keys(text[:30])))
        files = store_record["files"]
        assert [files[str(sets / name)]["matched"] for name in ("a.jsonl", "b.csv", "c.txt")] == [
            len(set(match_keys(text[:20]))),
            0,
            len(set(match_keys(text[10:30]))),
        ]
        assert f"texts, of 2 of 3 files, matched {lines} lines, which were left out" in told
        assert f"held out: no line matches {sets / 'b.csv'}: perhaps" in told


def test_of_many_files_without_a_match_the_first_are_named():
    counts = {"texts": 1, "matched": 0}
    record = {"texts": 9, "matched": 0, "lines": 0, "files": {f"{n}": counts for n in range(9)}}
    assert "no line matches 0, 1, 2, 3, 4 and 4 more: " in matches_shown(record)[1]


def test_a_corpus_that_is_held_out_altogether(corpus, tokenizer_file, tmp_path, refused):
    message = refused(prepare, corpus, tokenizer_file, tmp_path / "s", 32, held_out=[corpus])
    assert message.startswith("everything was held out, ")

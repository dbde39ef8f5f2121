"""Sentence classification: every layout gives the same sentences, and bad lines are named."""

import numpy as np
import pytest

from langsamp_jax.evaluation.datasets.classification import read_sentence_task
from langsamp_jax.languages.published import LABELS

TAXI = "43001029\tFaith\tLook !\n43002006\tDescription\tSix jars\n"
SIB = "index_id\tcategory\ttext\n1\thealth\tA cell\n2\tsports\tA goal\n"


def taxi(folder):
    return read_sentence_task(folder, "taxi1500")


def test_taxi1500_in_one_folder(tmp_path, write_files):
    files = {"eng_train.tsv": TAXI, "eng_dev.tsv": TAXI, "eng_test.tsv": TAXI}
    files |= {"deu_Latn_test.tsv": "1\tSin\tEins\n", "tuk_test.tsv": "1\tGrace\tБир\n"}
    data = taxi(write_files(tmp_path, files | {"README.md": "x", "notes.tsv": "x"}))
    assert data.labels == LABELS["taxi1500"]
    assert data.train.texts == data.dev.texts == ["Look !", "Six jars"]
    assert data.train.labels.dtype == np.int32 and data.train.labels.tolist() == [1, 5]
    # The published list has Turkmen in Latin script alone.
    assert list(data.test) == ["deu_Latn", "eng_Latn", "tuk_Latn"]
    assert data.test["deu_Latn"].texts == ["Eins"] and not data.skipped


def test_a_folder_a_language_with_or_without_names_of_columns(tmp_path, write_files):
    for name, text in (("taxi1500", TAXI), ("sib200", SIB)):
        folder = tmp_path / name
        files = {f"eng_Latn/{split}.tsv": text for split in ("train", "dev", "test")}
        data = read_sentence_task(write_files(folder, files | {"deu_Latn/test.tsv": text}), name)
        assert list(data.test) == ["deu_Latn", "eng_Latn"]
        assert data.test["deu_Latn"].texts == data.train.texts
        assert [data.labels[i] for i in data.train.labels] == (
            ["Faith", "Description"] if name == "taxi1500" else ["health", "sports"]
        )


def test_columns_by_name_in_any_order(tmp_path, write_files):
    reordered = "text\tcategory\nA goal\tsports\n"
    files = {f"eng_Latn/{split}.tsv": reordered for split in ("train", "dev", "test")}
    data = read_sentence_task(write_files(tmp_path, files), "sib200")
    assert data.train.texts == ["A goal"] and data.train.labels.tolist() == [3]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"He said ""no"" ."', 'He said "no" .'),
        ('"All of it"', "All of it"),
        ('"Begun and not ended', '"Begun and not ended'),
        ('a "word" inside', 'a "word" inside'),
        ('"a" and "b"', '"a" and "b"'),
        ('""""', '"'),
    ],
)
def test_quotes_are_those_of_csv_where_they_are_whole(written, read, tmp_path, write_files):
    text = f"1\tSin\t{written}\n2\tSin\tnext\n"
    data = taxi(write_files(tmp_path, {f"eng_{s}.tsv": text for s in ("train", "dev", "test")}))
    assert data.train.texts == [read, "next"]


def test_empty_sentences_are_left_out_and_counted(tmp_path, write_files):
    text = "1\tSin\tone\n2\tFaith\t\n3\tGrace\tthree\n\n"
    data = taxi(write_files(tmp_path, {f"eng_{s}.tsv": text for s in ("train", "dev", "test")}))
    assert (data.train.texts, data.train.missing) == (["one", "three"], 1)
    assert data.train.labels.tolist() == [4, 3]


BAD = {
    "no label": ("1\tSin\ta\n2\tPride\tb\n", "line 2: 'Pride' is no label of taxi1500 (Recomm"),
    "ragged": ("1\tSin\ta\n2\tSin\tb\tc\n", "line 2: 4 columns; expected 3"),
    "short": ("1\tSin\n", "line 1: 2 columns; expected id, label and sentence"),
    "empty": ("\n", " is empty"),
    "only missing": ("1\tSin\t \n", " holds no sentence"),
    "not UTF-8": ("1\tSin\ta\n2\tSin\tcaf\xe9\n".encode("latin-1"), "line 2: not UTF-8"),
}


@pytest.mark.parametrize("problem", BAD)
def test_another_language_is_skipped_and_the_source_refused(
    problem, tmp_path, refused, write_files
):
    text, expected = BAD[problem]
    good = {f"eng_{split}.tsv": TAXI for split in ("train", "dev", "test")}
    data = taxi(write_files(tmp_path, good | {"deu_test.tsv": text, "fra_test.tsv": TAXI}))
    assert list(data.test) == ["eng_Latn", "fra_Latn"] and list(data.skipped) == ["deu"]
    assert data.skipped["deu"].startswith(str(tmp_path / "deu_test.tsv"))
    assert expected in data.skipped["deu"]
    for split in ("train", "dev", "test"):
        file = write_files(tmp_path, good | {f"eng_{split}.tsv": text}) / f"eng_{split}.tsv"
        message = refused(taxi, tmp_path)
        assert message.startswith(str(file)) and expected in message


def aligned(table="labels.tsv", where="text", column="category") -> dict[str, str]:
    """Files of text in four languages, aligned by lines, and the table of its labels."""
    rows = ["train\thealth", "test\tsports", "dev\thealth", "test\ttravel", "train\tsports"]
    lines = "".join(f"{number}\t{row}\n" for number, row in enumerate(rows, 1))
    texts = {"eng_Latn": "a\nb\nc\nd\ne\n", "deu_Latn": "\nB\n\n\n\n", "fra_Latn": "A\n\n\n\nE\n"}
    texts["ita_Latn"] = "1\n2\n3\n"
    files = {f"{where}/{name}.txt": text for name, text in texts.items()}
    return files | {table: f"line\tsplit\t{column}\n{lines}"}


@pytest.mark.parametrize(
    ("table", "where", "given", "column"),
    [
        ("labels.tsv", "text", "", "category"),
        ("verses.tsv", "text", "text", "label"),
        ("text/labels.tsv", "text", "", "label"),
        ("labels.tsv", ".", "", "category"),
    ],
)
def test_aligned_text_and_its_labels(table, where, given, column, tmp_path, write_files):
    files = aligned(table, where, column) | {"index.tsv": "line\tlength\n1\t2\n"}
    data = read_sentence_task(write_files(tmp_path, files) / given, "sib200")
    assert (data.train.texts, data.train.labels.tolist()) == (["a", "e"], [4, 3])
    assert (data.dev.texts, data.dev.labels.tolist()) == (["c"], [4])
    assert list(data.test) == ["deu_Latn", "eng_Latn"]
    assert data.test["deu_Latn"].texts == ["B"] and data.test["deu_Latn"].missing == 1
    assert data.test["deu_Latn"].labels.tolist() == [3]
    assert "none of the 2 sentences of test" in data.skipped["fra_Latn"]
    assert data.skipped["ita_Latn"].endswith("ita_Latn.txt has 3 lines, eng_Latn.txt 5")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("6\ttest\tsports", "line 6: line '6'; "),
        ("0\ttest\tsports", "line 6: line '0'; "),
        ("1.0\ttest\tsports", "line 6: line '1.0'; "),
        ("1\tvalidation\tsports", "line 6: split 'validation' is none of train, dev, test"),
        ("1\ttest\tfun", "line 6: 'fun' is no label of sib200"),
        ("1\ttest", "line 6: 2 columns; expected 3"),
    ],
)
def test_bad_labels_of_lines_are_named(row, expected, tmp_path, refused, write_files):
    file = write_files(tmp_path, aligned()) / "labels.tsv"
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([*lines[:5], row, ""]), "utf-8")
    message = refused(read_sentence_task, tmp_path, "sib200")
    assert message.startswith(str(file)) and expected in message


def test_labels_that_are_nowhere_or_twice(tmp_path, refused, write_files):
    file = write_files(tmp_path, aligned()) / "labels.tsv"
    write_files(tmp_path, {"verses.tsv": file.read_text("utf-8")})
    message = refused(read_sentence_task, tmp_path, "sib200")
    assert "labels.tsv and " in message and "verses.tsv" in message
    (tmp_path / "verses.tsv").unlink()
    file.unlink()
    message = refused(read_sentence_task, tmp_path, "sib200")
    assert "line, split and label (or category)" in message and str(tmp_path) in message


def test_the_source_of_aligned_text_is_there(tmp_path, refused, write_files):
    folder = write_files(tmp_path, aligned())
    message = refused(read_sentence_task, folder, "sib200", "spa_Latn")
    assert "has no spa_Latn.txt" in message
    (folder / "text" / "eng_Latn.txt").write_text("\nb\nc\nd\n\n")
    assert "eng_Latn.txt has none of the 2 sentences of train" in refused(
        read_sentence_task, folder, "sib200"
    )


def test_sib200_as_it_is(shared_data):
    data = read_sentence_task(shared_data / "flores_sib200", "sib200")
    assert (len(data.test), data.skipped) == (205, {})
    assert (len(data.train.texts), len(data.dev.texts)) == (701, 99)
    for examples in (data.train, data.dev, *data.test.values()):
        assert len(examples.texts) == len(examples.labels) and not examples.missing
    assert {len(examples.texts) for examples in data.test.values()} == {204}
    assert set(data.train.labels) == set(range(7))


def test_taxi1500_as_it_is(shared_data):
    data = read_sentence_task(shared_data / "bible", "taxi1500")
    assert (len(data.test), data.skipped) == (112, {})
    assert (len(data.train.texts), len(data.dev.texts)) == (860, 106)
    assert all(len(e.texts) + e.missing == 111 for e in data.test.values())
    assert any(examples.missing for examples in data.test.values())
    assert set(data.train.labels) == set(range(6))

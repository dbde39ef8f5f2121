"""Pairs: both ways to name the files, scripts of bare codes, and what cannot be read."""

import pytest

from langsamp_jax.evaluation.datasets.pairs import read_sentence_pairs
from langsamp_jax.languages.published import published_languages


def test_both_ways_to_name_the_files(tmp_path, write_files):
    files = {
        "tatoeba.deu-eng.deu": "eins\nzwei\n",
        "tatoeba.deu-eng.eng": "one\ntwo\n",
        "tatoeba.tat_Cyrl-eng_Latn.tat_Cyrl": "бер\n\nөч\n",
        "tatoeba.tat_Cyrl-eng_Latn.eng_Latn": "one\ntwo\nthree\n",
        "bible.ewe-eng.ewe": "ɖeka",
        "bible.ewe-eng.eng": "one",
        "tatoeba.deu-fra.deu": "eins\n",
        "SOURCE.md": "x",
    }
    pairs, skipped = read_sentence_pairs(write_files(tmp_path, files))
    assert list(pairs) == ["deu_Latn", "ewe_Latn", "tat_Cyrl"] and not skipped
    assert (pairs["deu_Latn"].pivot, pairs["deu_Latn"].other) == (["one", "two"], ["eins", "zwei"])
    assert (pairs["tat_Cyrl"].pivot, pairs["tat_Cyrl"].other) == (["one", "three"], ["бер", "өч"])
    assert (pairs["tat_Cyrl"].missing, pairs["deu_Latn"].missing) == (1, 0)


def test_another_pivot(tmp_path, refused, write_files):
    files = {"tatoeba.deu-fra.deu": "eins\n", "tatoeba.deu-fra.fra": "un\n"}
    pairs, _ = read_sentence_pairs(write_files(tmp_path, files), "fra_Latn")
    assert pairs["deu_Latn"].pivot == ["un"]
    assert "has no pairs with eng_Latn" in refused(read_sentence_pairs, tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tatoeba.fra-eng.fra": "un\n"}, "tatoeba.fra-eng.eng is missing"),
        ({"tatoeba.fra-eng.eng": "one\n"}, "tatoeba.fra-eng.fra is missing"),
        (
            {"tatoeba.fra-eng.fra": "un\ndeux\n", "tatoeba.fra-eng.eng": "one\n"},
            "tatoeba.fra-eng.fra has 2 lines, tatoeba.fra-eng.eng 1",
        ),
        (
            {"tatoeba.fra-eng.fra": "", "tatoeba.fra-eng.eng": ""},
            "has no sentence that is in tatoeba.fra-eng.eng too",
        ),
        (
            {"tatoeba.fra-eng.fra": "un\n\n", "tatoeba.fra-eng.eng": "\none\n"},
            "has no sentence that is in tatoeba.fra-eng.eng too",
        ),
        (
            {"tatoeba.fra-eng.fra": b"un\n\xe9t\xe9\n", "tatoeba.fra-eng.eng": "one\nsummer\n"},
            "tatoeba.fra-eng.fra, line 2: not UTF-8",
        ),
    ],
)
def test_a_language_that_cannot_be_read_is_named(files, expected, tmp_path, write_files):
    good = {"tatoeba.deu-eng.deu": "eins\n", "tatoeba.deu-eng.eng": "one\n"}
    pairs, skipped = read_sentence_pairs(write_files(tmp_path, good | files))
    assert list(pairs) == ["deu_Latn"] and list(skipped) == ["fra"]
    assert str(tmp_path) in skipped["fra"] and expected in skipped["fra"]


def test_pairs_in_another_form_are_named(tmp_path, write_files):
    names = ["deu-eng.deu", "deu-eng.eng", "deu-eng.deu.bak", "fra-eng.fra.gz", "fra-eng.eng.gz"]
    write_files(tmp_path, {f"tatoeba.{name}": "one\n" for name in names})
    write_files(tmp_path, {"._tatoeba.ita-eng.ita": "\0"})
    pairs, skipped = read_sentence_pairs(tmp_path)
    assert list(pairs) == ["deu_Latn"]
    file = tmp_path / "tatoeba.fra-eng.fra.gz"
    assert skipped == {"fra": f"{file} is not read; expected tatoeba.fra-eng.fra"}


def test_a_language_twice(tmp_path, refused, write_files):
    files = {
        "tatoeba.deu-eng.deu": "eins\n",
        "tatoeba.deu-eng.eng": "one\n",
        "tatoeba.deu_Latn-eng_Latn.deu_Latn": "eins\n",
        "tatoeba.deu_Latn-eng_Latn.eng_Latn": "one\n",
    }
    assert "deu_Latn twice" in refused(read_sentence_pairs, write_files(tmp_path, files))


def test_the_folder_is_missing(tmp_path, refused):
    assert "not found" in refused(read_sentence_pairs, tmp_path / "none")


def test_tatoeba_as_it_is(shared_data):
    pairs, skipped = read_sentence_pairs(shared_data / "tatoeba")
    assert (len(pairs), skipped) == (112, {})
    assert sum(len(pair.pivot) for pair in pairs.values()) == 88_877
    assert all(len(pair.pivot) == len(pair.other) and not pair.missing for pair in pairs.values())
    assert set(published_languages("sr_tatoeba")) <= set(pairs)
    assert sorted(set(pairs) - set(published_languages("sr_tatoeba"))) == [
        "ang_Latn", "arq_Arab", "awa_Deva", "ber_Latn", "cha_Latn", "cor_Latn", "dsb_Latn",
        "jav_Latn", "kzj_Latn", "max_Latn", "nov_Latn", "orv_Cyrl", "swg_Latn", "tzl_Latn",
    ]  # fmt: skip

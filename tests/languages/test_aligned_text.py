"""The corpus: files by language-script, lines as they are, bad bytes by file and line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.io.text_lines import VISIBLE, read_lines
from langsamp_jax.languages.aligned_text import (
    aligned_corpus,
    aligned_lines,
    corpus_files,
    parallel_sentences,
)


def test_text_files_are_found_by_name_and_others_left_alone(tmp_path):
    for name in ("srp_Latn.txt", "deu_Latn.txt", "srp_Cyrl.txt", "README.md", "world.json"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "eng_Latn.txt").write_text("x\n")
    files = corpus_files(tmp_path)
    assert list(files) == ["deu_Latn", "srp_Cyrl", "srp_Latn"]
    assert all(file == tmp_path / f"{name}.txt" for name, file in files.items())
    assert corpus_files(str(tmp_path)) == files


def test_a_missing_or_empty_folder_is_named(tmp_path, refused):
    assert str(tmp_path / "none") in refused(corpus_files, tmp_path / "none")
    (tmp_path / "README.md").write_text("x")
    assert refused(corpus_files, tmp_path).startswith(f"{tmp_path} holds no text")
    assert str(tmp_path / "README.md") in refused(corpus_files, tmp_path / "README.md")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("german.txt", "not of the form iso639-3_Script"),
        ("deu-Latn.txt", "not of the form iso639-3_Script"),
        ("DEU_Latn.txt", "not of the form iso639-3_Script"),
        ("deu_Latn.old.txt", "not of the form iso639-3_Script"),
        ("xxq_Latn.txt", "'xxq' is not an ISO 639-3 language code"),
        ("deu_Lant.txt", "'Lant' is not an ISO 15924 script code; did you mean Latn"),
    ],
)
def test_a_name_that_is_no_language_script_is_named(name, expected, tmp_path, refused):
    for file in ("deu_Latn.txt", name):
        (tmp_path / file).write_text("x\n")
    message = refused(corpus_files, tmp_path)
    assert message.startswith(f"{tmp_path / name}: ") and expected in message


# Separators that Python's splitlines would cut at, and white space that strip takes away.
line = st.text(st.sampled_from("aßд漢 \t\u2028\x85\x0c\u3000\ufeff")) | st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r")
)


@given(
    lines=st.lists(line),
    newline=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_lines_are_read_as_they_are(lines, newline, mark, tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "deu_Latn.txt"
    file.write_bytes((mark + newline.join(lines)).encode("utf-8"))
    expected = newline.join(lines).removeprefix("" if mark else "\ufeff").split("\n")
    if file.read_bytes().removeprefix(b"\xef\xbb\xbf")[-1:] in (b"", b"\n"):  # no line follows
        expected.pop()
    expected = [part.strip() if VISIBLE.search(part) else "" for part in expected]
    assert aligned_lines(file) == expected


def test_lines_stay_aligned(tmp_path):
    file = tmp_path / "deu_Latn.txt"
    file.write_bytes("eins\n\n  drei \r\n\nfünf".encode())
    assert aligned_lines(file) == ["eins", "", "drei", "", "fünf"]
    file.write_bytes(b"")
    assert aligned_lines(file) == []


@pytest.mark.parametrize(
    "bad", [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\xaf", b"\xe6\xbc"]
)
def test_bytes_that_are_not_utf8_are_named_by_file_and_line(bad, tmp_path, refused):
    file = tmp_path / "deu_Latn.txt"
    file.write_bytes(b"one\n\nthree\n" + bad + b"\nfive\n")
    assert refused(aligned_lines, file).startswith(f"{file}, line 4: not UTF-8")


def test_utf16_is_refused_on_its_first_line(tmp_path, refused):
    file = tmp_path / "deu_Latn.txt"
    file.write_bytes("ein Satz\n".encode("utf-16"))
    assert refused(aligned_lines, file).startswith(f"{file}, line 1: not UTF-8")


def test_lines_keep_their_white_space_but_not_their_end(tmp_path):
    file = tmp_path / "eng_Latn.txt"
    file.write_bytes("\ufeffa\t\r\n \u2028b\n\n\tc".encode())
    assert read_lines(file) == ["a\t", " \u2028b", "", "\tc"]


def test_what_is_not_aligned_with_the_pivot_is_left_out_and_named(tmp_path):
    texts = {"eng_Latn": "a\n\nc\n", "deu_Latn": "A\nB\n\n", "fra_Latn": "A\n", "ita_Latn": ""}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "spa_Latn.txt").write_bytes(b"a\n\xff\nc\n")
    lines, skipped = aligned_corpus(tmp_path, "eng_Latn")
    assert lines == {"deu_Latn": ["A", "B", ""], "eng_Latn": ["a", "", "c"]}
    assert skipped["fra_Latn"] == f"{tmp_path / 'fra_Latn.txt'} has 1 lines, eng_Latn.txt 3"
    assert skipped["ita_Latn"] == f"{tmp_path / 'ita_Latn.txt'} has 0 lines, eng_Latn.txt 3"
    assert skipped["spa_Latn"].startswith(f"{tmp_path / 'spa_Latn.txt'}, line 2: not UTF-8")


def test_the_pivot_must_be_there(tmp_path, refused):
    (tmp_path / "eng_Latn.txt").write_text("")
    assert "has no deu_Latn.txt" in refused(aligned_corpus, tmp_path, "deu_Latn")
    assert "eng_Latn.txt is empty" in refused(aligned_corpus, tmp_path, "eng_Latn")
    (tmp_path / "eng_Latn.txt").write_bytes(b"\xff\n")
    assert "line 1: not UTF-8" in refused(aligned_corpus, tmp_path, "eng_Latn")


# The same sentences in every language


def test_sentences_are_those_that_all_languages_have(write_corpus, refused, tmp_path):
    corpus = write_corpus(
        tmp_path / "corpus",
        deu_Latn=["a", "b", "", "d", "e"],
        fra_Latn=["1", "2", "3", "4", ""],
        ita_Latn=["x", "", "", "", ""],
        rus_Cyrl=["я", "ю", "э", "ы", "ь"],
        spa_Latn=["o", "p"],
    )
    sentences, number, skipped = parallel_sentences(corpus, 3)
    assert number.tolist() == [0, 1, 3]
    assert sentences == {
        "deu_Latn": ["a", "b", "d"],
        "fra_Latn": ["1", "2", "4"],
        "rus_Cyrl": ["я", "ю", "ы"],
    }
    assert skipped["ita_Latn"] == "1 lines in common with the others; 3 are needed"
    assert skipped["spa_Latn"].endswith("has 2 lines, most files 5")
    assert len(parallel_sentences(corpus, 1)[0]) == 4  # by then one line in common
    line = refused(parallel_sentences, corpus, 6)
    assert "no two languages with 6 aligned lines in common; " in line

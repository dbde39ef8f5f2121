"""What has the name of a language-script is read or named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.languages.aligned_text import aligned_corpus
from langsamp_jax.languages.unread_text import Unread, carried_name, say_unread, unread_text

NAMES = ["deu_Latn", "fra_Latn", "srp_Cyrl", "qaa_Qaab"]
spelling = st.sampled_from([str, str.lower, str.upper, lambda name: name.replace("_", "-")])
ending = st.sampled_from(["", ".txt", ".txt.zst", ".TXT", "_2.csv", "-part1.jsonl", " (1).txt"])


@given(name=st.sampled_from(NAMES), spelt=spelling, ending=ending)
def test_a_language_script_is_seen_however_it_is_spelt(name, spelt, ending):
    assert carried_name(spelt(name) + ending) == name


@pytest.mark.parametrize(
    "name", ["notes.md", "world.json", "held_out", "the_text.csv", "deu_Latin.txt", "xxq_Latn", ""]
)
def test_other_names_are_not(name):
    assert carried_name(name) is None


@given(
    files=st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(["", "part/", "a/b/"]), ending),
        unique=True,
        max_size=6,
    ),
    read=st.integers(0, 6),
)
def test_every_file_is_read_or_named_once(files, read, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    paths = [folder / name / f"{below}x{end}" for name, below, end in files]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    unread = unread_text(folder, set(paths[:read]))
    assert sorted(path for _, path in unread) == sorted(paths[read:])
    assert all(path.relative_to(folder).parts[0] == name for name, path in unread)


def test_what_is_no_text_is_not_named(tmp_path, write_files):
    quiet = [
        "._deu_Latn.txt",
        ".deu_Latn.txt.swp",
        ".DS_Store",
        "held_out/deu_Latn.txt",
        "notes.md",
    ]
    quiet += [f"deu_Latn/{name}" for name in ("state.json", "dataset_info.json", "README.md")]
    loud = ["train/fra_Latn.txt", "deu-Latn/a.txt", "srp_Cyrl.txt~"]
    write_files(tmp_path, dict.fromkeys([*quiet, *loud], "x"))
    (tmp_path / "ita_Latn").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for _, path in unread_text(tmp_path, [])]
    assert sorted(found) == sorted([*loud, "ita_Latn"])


def test_the_first_are_named_in_one_line(capsys):
    say_unread([Unread("deu_Latn", Path(f"{n}.zst")) for n in range(7)], "deu_Latn.txt")
    line = "not read: 0.zst, 1.zst, 2.zst, 3.zst, 4.zst and 2 more; expected deu_Latn.txt\n"
    assert capsys.readouterr().err == line
    say_unread([], "deu_Latn.txt")
    assert capsys.readouterr().err == ""


def test_aligned_text_in_another_form_is_skipped_with_a_reason(tmp_path, write_files):
    names = ["eng_Latn.txt", "eng_Latn.txt.gz", "deu_Latn.txt.gz", "fra_Latn/a.txt", "ita_Latn.TXT"]
    write_files(tmp_path, dict.fromkeys([*names, "._eng_Latn.txt"], "one\n"))
    lines, skipped = aligned_corpus(tmp_path, "eng_Latn")
    assert lines == {"eng_Latn": ["one"]}
    assert sorted(skipped) == ["deu_Latn", "eng_Latn.txt.gz", "fra_Latn", "ita_Latn"]
    assert skipped["fra_Latn"] == (
        f"{tmp_path / 'fra_Latn' / 'a.txt'} is not read; expected a file such as deu_Latn.txt"
    )

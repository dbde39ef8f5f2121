"""Lines are cleaned as a person would clean them one by one, and everything is counted."""

import gzip
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from fontTools import unicodedata as fonts
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.corpus.cleaning import (
    _INVISIBLE_CLASS,
    CleaningConfig,
    TextCleaner,
    _class_table,
    warnings,
)
from data_pipelines.corpus.sources import LONGEST_LINE, Block
from data_pipelines.packing.prepare import prepare
from data_pipelines.packing.provenance import Provenance
from langsamp_jax.errors import UserError
from langsamp_jax.io.text_lines import VISIBLE


def clean(text: str | bytes, name: str = "deu_Latn", **settings: str) -> list[str]:
    return counted(text, name, **settings)[0]


def counted(
    text: str | bytes, name: str = "deu_Latn", **settings: str
) -> tuple[list[str], dict[str, int]]:
    """The clean lines, and all counts that are not 0."""
    cleaner = TextCleaner(name, CleaningConfig(**settings))
    lines = cleaner.clean(Block(text.encode() if isinstance(text, str) else text, 0))
    return lines, {name: count for name, count in cleaner.counts.items() if count}


# --- characters -------------------------------------------------------------------------------


def plain(text: str, normalize: bool) -> list[str]:
    """The clean lines of a text, one by one and character by character."""
    lines = []
    for line in text.removeprefix("\ufeff").split("\n"):
        characters = []
        for c in line:
            if unicodedata.category(c) == "Cc" and c != "\t":
                characters.append(" " if c.isspace() else "")
            elif c not in "\ufeff\ufffe\uffff":
                characters.append(c)
        line = "".join(characters)
        line = (unicodedata.normalize("NFC", line) if normalize else line).strip()
        lines += [line] if VISIBLE.search(line) else []
    return lines


awkward = st.sampled_from("a\u0301 e\u0308\u0323 \u1100\u1161\u11a8 \u212b \u2126 \u0344 \u0958 ﬁ")
control = st.sampled_from("\0\t\r\x0b\x0c\x1b\x1c\x7f\x85\x9f\ufeff\ufffe\uffff\u200c\u200d\u2028")
texts = st.lists(
    awkward | control | st.just("\n") | st.just("\r\n") | st.characters(codec="utf-8"), max_size=60
).map("".join)


@given(text=texts)
@pytest.mark.parametrize("normalization", ["NFC", "none"])
def test_lines_are_those_of_a_plain_reading(normalization, text):
    lines, counts = counted(text, normalization=normalization)
    assert lines == plain(text, normalization == "NFC")
    assert counts.get("lines", 0) == len(lines)
    assert clean("\n".join(lines), normalization=normalization) == lines
    assert all(line == line.strip() != "" for line in lines)
    if normalization == "NFC":
        assert all(unicodedata.is_normalized("NFC", line) for line in lines)


@pytest.mark.parametrize(
    ("text", "lines", "counts"),
    [
        ("one\ntwo\n", ["one", "two"], {"lines": 2}),
        ("one\r\ntwo\r\n\r\n", ["one", "two"], {"lines": 2}),
        ("\ufeffone\n\ufefftwo\n", ["one", "two"], {"lines": 2, "control": 1}),
        ("one\rtwo\r\n", ["one two"], {"lines": 1, "control": 1}),
        ("a\0b\n\0\n\x07\x07c\n", ["ab", "c"], {"lines": 2, "control": 3}),
        ("a\x0cb\x85c\td\n", ["a b c\td"], {"lines": 1, "control": 1}),
        ("\x0c one \x1f\n", ["one"], {"lines": 1}),  # white space at the ends
        ("می\u200cخواهم क\u094d\u200dष\n", ["می\u200cخواهم क\u094d\u200dष"], {"lines": 1}),
        ("u\u0308ber\nüber\n", ["über", "über"], {"lines": 2, "normalized": 1}),
        ("1 2 3 !\n", ["1 2 3 !"], {"lines": 1}),
        (
            "\u200b \u200b\n\xad\n\ue001\n\u3164\n\u202a\ufe0f\na\u200b\n",
            ["a\u200b"],
            {"invisible": 5, "lines": 1},
        ),
    ],
)
def test_hand_worked_lines_and_counts(text, lines, counts):
    found, met = counted(text)
    met.pop("wrong_script", None)
    assert (found, met) == (lines, counts)


def test_private_letters_are_text_in_a_private_script_alone():
    text = "\ue001\ue002\nword\n\u200b\n"
    assert counted(text, "qaa_Qaab") == (["\ue001\ue002", "word"], {"lines": 2, "invisible": 1})
    assert clean(text, "qaa_Latn") == ["word"]


def test_without_normalization_only_the_characters_stay():
    assert clean("u\u0308\0\n", normalization="none") == ["u\u0308"]


@pytest.mark.parametrize(
    "bad", [b"\xed\xa0\x80", b"\xff\xfe", b"caf\xe9", b"\xc0\xaf", b"\xe6\xbc"]
)
def test_bytes_that_are_not_utf8(bad, corpus, tokenizer_file, tmp_path):
    """Lone surrogates too: named by file and line, or left out, counted, and the rest kept."""
    folder, store = tmp_path / "corpus", tmp_path / "store"
    folder.mkdir()
    lines = [b"line %d" % number for number in range(400)]
    for name, data in (
        ("qaa_Latn.txt", b"\n".join([*lines[:300], b"a " + bad + b" b", *lines[300:]])),
        ("qab_Latn.txt.gz", gzip.compress(b"\n".join([*lines, bad]))),
    ):
        (folder / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        prepare(folder, tokenizer_file, store, 32)
    file = folder / "qaa_Latn.txt"
    assert str(error.value).startswith(f"{file}, line 301: not UTF-8 (")
    assert "--skip_damaged" in str(error.value)
    manifest = prepare(folder, tokenizer_file, store, 32, skip_damaged=True)
    report = Provenance.load(store).report
    for name in ("qaa_Latn", "qab_Latn"):
        assert sum(manifest.counts[split][name].lines for split in manifest.counts) == 400
        met = report[name]["hygiene"]
        assert (met["damaged"], met["lines"]) == (1, 400) and report[name]["left_out"] == []


def test_damaged_files_are_left_out_only_when_asked(corpus, tokenizer_file, tmp_path):
    folder, store = tmp_path / "corpus", tmp_path / "store"
    (folder / "qac_Latn").mkdir(parents=True)
    text = (corpus / "qaa_Latn.txt").read_bytes()
    (folder / "qaa_Latn.txt").write_bytes(text)
    (folder / "qab_Latn.txt.gz").write_bytes(gzip.compress(text)[:-20])
    (folder / "qac_Latn" / "a.txt.gz").write_bytes(b"no gzip")
    (folder / "qac_Latn" / "b.txt").write_bytes(text)
    with pytest.raises(UserError) as error:
        prepare(folder, tokenizer_file, store, 32)
    message = str(error.value)
    assert message.startswith(f"{folder / 'qab_Latn.txt.gz'} is damaged") and "\n" not in message
    assert "--skip_damaged" in message and not store.exists()
    manifest = prepare(folder, tokenizer_file, store, 32, skip_damaged=True)
    assert manifest.names == ("qaa_Latn", "qac_Latn") and list(manifest.skipped) == ["qab_Latn"]
    for split in manifest.counts:
        counts = manifest.counts[split]
        assert counts["qaa_Latn"] == counts["qac_Latn"]
    said = warnings(Provenance.load(store).report)
    assert [line.partition(" is damaged")[0] for line in said] == [
        f"qab_Latn: left out: {folder / 'qab_Latn.txt.gz'}",
        f"qac_Latn: left out: {folder / 'qac_Latn' / 'a.txt.gz'}",
    ]


# --- long lines -------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["a", "й", "漢", "😀"])
def test_lines_up_to_a_mebibyte_are_kept(character):
    size = len(character.encode())
    longest = character * (LONGEST_LINE // size)
    assert LONGEST_LINE - size < len(longest.encode()) <= LONGEST_LINE
    lines, counts = counted("\n".join(["a", longest, "b", longest + character, "c"]))
    assert lines == ["a", longest, "b", "c"]
    assert (counts["lines"], counts["overlong"]) == (5, 1)


MEASURE = r"""
import re, sys
from pathlib import Path
from data_pipelines.packing.prepare import prepare

corpus, tokenizer, output = map(Path, sys.argv[1:])
prepare(corpus, tokenizer, output, 32, 0)
status = Path("/proc/self/status").read_text()  # getrusage would count its parent's memory
print(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_line_of_100_megabytes(corpus, tokenizer_file, tmp_path):
    """It is left out in the memory of a short one, plain and compressed."""
    text = (corpus / "qaa_Latn.txt").read_bytes()
    long = b"".join([text, b"words and " * 10_000_000, b"\n", b"one more line\n"])
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    (tmp_path / "short" / "qaa_Latn.txt").write_bytes(text + b"one more line\n")
    (tmp_path / "short" / "qab_Latn.txt").write_bytes(text + b"one more line\n")
    (tmp_path / "long" / "qaa_Latn.txt").write_bytes(long)
    (tmp_path / "long" / "qab_Latn.txt.gz").write_bytes(gzip.compress(long, 1))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    memory = {}
    for name in ("short", "long"):
        command = [sys.executable, "-c", MEASURE, tmp_path / name, tokenizer_file]
        command.append(tmp_path / f"{name}-store")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        memory[name] = float(done.stdout)
    assert memory["long"] < memory["short"] + 60 and memory["long"] < 700  # MiB
    for name in ("manifest.json", "train/qab_Latn/c/0/0"):
        short, long = ((tmp_path / f"{f}-store" / name).read_bytes() for f in ("short", "long"))
        assert short == long
    report = Provenance.load(tmp_path / "long-store").report
    assert [report[name]["hygiene"]["overlong"] for name in report] == [1, 1]


# --- scripts ----------------------------------------------------------------------------------


def test_the_script_of_every_character():
    """As fontTools looks them up one by one, and as regex has them."""
    regex = pytest.importorskip("regex")
    codes, table = _class_table()
    assert len(table) == sys.maxunicode + 1
    controls = np.flatnonzero(table > _INVISIBLE_CLASS).tolist()  # of no script, not passed over
    marks = {0xFEFF, 0xFFFE, 0xFFFF}
    assert set(controls) == marks | {
        p for p in range(256) if unicodedata.category(chr(p)) == "Cc"
    } - {9}
    invisible = {*np.flatnonzero(table == _INVISIBLE_CLASS).tolist()}  # some have a script
    assert {0x200B, 0xAD, 0xE000, 0x3164} <= invisible
    table = np.where(table < len(codes), table, 0)
    points = [*range(0x3000), *range(0x3000, sys.maxunicode + 1, 37)]
    points = [point for point in points if point not in invisible]
    none = {"Zyyy", "Zinh", "Zzzz"}
    for point in points:
        expected = fonts.script(chr(point))
        assert codes[table[point]] == ("Zyyy" if expected in none else expected)
    for code in ("Latn", "Cyrl", "Grek", "Arab", "Deva", "Hani", "Hang", "Ethi", "Tibt", "Cans"):
        pattern = regex.compile(rf"\p{{Script={code}}}")
        for point in points:
            if unicodedata.category(chr(point)) not in ("Cn", "Cs"):
                assert (codes[table[point]] == code) == bool(pattern.match(chr(point)))


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("deu_Latn", ["Größe 1", "12:30", "ein Wort und слово"], ["слово", "слово und да нет"]),
        ("rus_Cyrl", ["слово", "!!!"], ["Wort", "日本語"]),
        ("jpn_Jpan", ["ひらがな", "カタカナ", "漢字", "ひらがなと漢字"], ["한국어", "English"]),
        ("kor_Hang", ["한국어"], ["漢字", "ひらがな"]),
        ("kor_Kore", ["한국어", "漢字"], ["ひらがな"]),
        ("zho_Hans", ["汉字"], ["ひらがな", "pinyin"]),
        ("zho_Hant", ["漢字"], ["한국어"]),
        ("yue_Hani", ["漢字，AB"], ["ABC，漢"]),
        ("urd_Aran", ["اردو"], ["हिन्दी"]),
        ("hin_Deva", ["हिन्दी"], ["اردو", "Hindi"]),
        ("amh_Ethi", ["አማርኛ"], ["Amharic"]),
        ("und_Zyyy", ["words", "слово"], []),
    ],
)
def test_lines_in_the_wrong_script_are_counted_and_stay(name, right, wrong):
    lines, counts = counted("\n".join([*right, *wrong, *right]), name)
    assert lines == [*right, *wrong, *right]
    assert counts.get("wrong_script", 0) == len(wrong)


def test_the_warning_names_the_shares(tokenizer_file, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    latin = [f"words and words {number}" for number in range(100)]
    cyrillic = [f"слова и слова {number}" for number in range(100)]
    greek = [f"λόγια {number}" for number in range(100)]
    (folder / "srp_Cyrl.txt").write_text("\n".join(cyrillic[:70] + latin[:25] + greek[:5]), "utf-8")
    (folder / "srp_Latn.txt").write_text("\n".join(latin[:90] + cyrillic[:10]), "utf-8")
    prepare(folder, tokenizer_file, tmp_path / "store", 32)
    assert warnings(Provenance.load(tmp_path / "store").report) == [
        "srp_Cyrl: 30.0% of the lines are in another script (Latn 25.0%, Grek 5.0%)"
    ]

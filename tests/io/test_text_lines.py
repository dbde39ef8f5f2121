"""What a line is, and which lines hold text: the same for every file of a user."""

import os
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.io.text_lines import INVISIBLE, VISIBLE, VISIBLE_OR_PRIVATE, read_lines, read_text

# What str.splitlines would cut at, and ordinary letters.
line = st.text(st.sampled_from("aßд漢 \t\u2028\u2029\x85\x0b\x0c\x1c\x1e\ufeff"))
ends = st.sampled_from([b"\n", b"\r\n", b"\r", b"\r\r\n"])


@given(lines=st.lists(line), end=ends, mark=st.booleans())
def test_lines_are_the_same_whatever_ends_them(lines, end, mark, tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    raw = b"".join(text.encode() + end for text in lines)
    file.write_bytes(b"\xef\xbb\xbf" * mark + raw)
    first = [text.removeprefix("" if mark else "\ufeff") for text in lines[:1]]
    assert read_lines(file) == [*first, *lines[1:]]
    file.write_bytes(file.read_bytes() + b"no end")
    assert read_lines(file) == [*first, *lines[1:], "no end"]


def test_cr_among_lf_ends_no_line(tmp_path):
    (tmp_path / "a").write_bytes(b"one\rtwo\nthree\r\n")
    assert read_text(tmp_path / "a") == "one\rtwo\nthree\n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_bytes_that_are_not_utf8_have_a_line(end, tmp_path, refused):
    file = tmp_path / "a"
    file.write_bytes(end.join([b"one", b"two", b"caf\xe9", b"four"]))
    assert refused(read_lines, file).startswith(f"{file}, line 3: not UTF-8")
    assert "at byte 3); convert the file" in refused(read_lines, file)


def test_what_has_no_end_is_not_read(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert "pipe, socket or device" in refused(read_text, path)


def test_invisible_characters_are_those_of_the_standard():
    """Formats (those apart that are drawn), private ones, and what no category tells."""
    drawn = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    drawn |= {*range(0x13430, 0x13456)}  # they place hieroglyphs
    others = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}  # fillers
    others |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
    for point in range(sys.maxunicode + 1):
        character, category = chr(point), unicodedata.category(chr(point))
        if category in ("Cn", "Cs"):
            continue
        hidden = point in others or (category in ("Cf", "Co") and point not in drawn)
        assert bool(INVISIBLE.match(character)) == hidden, hex(point)
        blank = hidden or character.isspace() or category == "Cc"
        assert bool(VISIBLE.match(character)) == (not blank), hex(point)
        assert bool(VISIBLE_OR_PRIVATE.match(character)) == (not blank or category == "Co")


def test_a_pointer_of_git_lfs_is_no_text(tmp_path, refused):
    file = tmp_path / "labels.tsv"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert f"{file} is a Git LFS pointer" in refused(read_text, file)

"""Text is found, and every line of it is read once, however a file is cut into work."""

import gzip
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipelines.corpus import sources
from data_pipelines.corpus.cleaning import CleaningConfig, TextCleaner
from data_pipelines.corpus.sources import (
    TextRange,
    find_sources,
    line_number,
    range_digests,
    read_blocks,
    text_ranges,
)
from langsamp_jax.errors import UserError

# --- lines ------------------------------------------------------------------------------------

line_end = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", b""])
line = st.binary(max_size=6) | st.integers(0, 90).map(lambda size: b"x" * size)
texts = st.lists(st.tuples(line, line_end), max_size=25).map(
    lambda drawn: b"".join(part + end for part, end in drawn)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("text") / "deu_Latn.txt"


def whole_lines(text: bytes) -> list[bytes]:
    return re.findall(rb"[^\n]*\n|[^\n]+\Z", text)


def as_read(text: bytes) -> bytes:
    """A text with LF at the end of its lines; CR alone ends them where there is no LF."""
    return text if b"\n" in text else text.replace(b"\r", b"\n")


def read(file: Path, range_bytes: int, block_bytes: int, longest: int) -> list[sources.Block]:
    """The blocks of all ranges of a file, with these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "RANGE_BYTES", range_bytes)
        patch.setattr(sources, "_BLOCK_BYTES", block_bytes)
        patch.setattr(sources, "LONGEST_LINE", longest)
        return [b for part in text_ranges("deu_Latn", [file]) for b in read_blocks(part)]


sizes = {"range_bytes": st.integers(1, 100), "block_bytes": st.integers(1, 40)}


@given(text=texts, **sizes)
@example(text=b"one\n\n\r\ntwo", range_bytes=1, block_bytes=1)
@example(text=b"0123456789\n0123456789\n", range_bytes=11, block_bytes=11)
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_every_line_is_read_once_and_in_order(suffix, text, range_bytes, block_bytes, file):
    """Whatever the cuts fall on; where each block begins is known."""
    file = file.with_suffix(suffix)
    file.write_bytes(text if suffix == ".txt" else gzip.compress(text))
    blocks, text = read(file, range_bytes, block_bytes, longest=1000), as_read(text)
    assert sum((whole_lines(block.text) for block in blocks), []) == whole_lines(text)
    assert all(text[b.start :].startswith(b.text) and b.overlong == 0 for b in blocks)


@given(text=texts, longest=st.integers(2, 30), **sizes)
def test_long_lines_are_left_out_and_counted_once(text, longest, range_bytes, block_bytes, file):
    """Only what is longer than the limit is left out, and nothing is kept that is longer than the
    limit and a block: the cleaner sorts out those between."""
    file.write_bytes(text)
    blocks, text = read(file, range_bytes, block_bytes, longest), as_read(text)
    kept = sum((whole_lines(block.text) for block in blocks), [])
    everything = whole_lines(text)
    assert sum(block.overlong for block in blocks) == len(everything) - len(kept)
    left = iter(everything)
    for part in kept:  # in order, with long lines left out between
        while (candidate := next(left)) != part:
            assert len(candidate) > longest
    assert all(len(part) > longest for part in left)
    assert all(len(part) <= longest + block_bytes for part in kept)


@given(text=texts, longest=st.integers(2, 1000), **sizes)
def test_lines_have_numbers(text, longest, range_bytes, block_bytes, file):
    file.write_bytes(text)
    position, text = 0, as_read(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK_BYTES", block_bytes)
        patch.setattr(sources, "LONGEST_LINE", longest)
        for number, part in enumerate(whole_lines(text), 1):
            if len(part) <= longest:
                assert line_number(file, position) == number
            position += len(part)


@given(text=texts, **sizes)
def test_digests_of_ranges_are_those_of_the_file(text, range_bytes, block_bytes, file):
    file.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "RANGE_BYTES", range_bytes)
        parts = [range_digests(file, p.start, p.stop) for p in text_ranges("deu_Latn", [file])]
        assert sum(parts, []) == range_digests(file, 0, len(text))


def test_every_byte_changes_the_digest(file):
    text = bytes(range(256))
    file.write_bytes(text)
    seen = {tuple(range_digests(file, 0, len(text)))}
    for place in range(0, 256, 15):
        file.write_bytes(text[:place] + b"?" + text[place + 1 :])
        seen.add(tuple(range_digests(file, 0, len(text))))
    assert len(seen) == 1 + len(range(0, 256, 15))


def test_a_range_of_a_file_is_read_alone(tmp_path):
    """Two ranges of 8 MiB, with a line across the cut, which belongs to the first."""
    file = tmp_path / "deu_Latn.txt"
    text = b"".join(b"line %d\n" % number for number in range(900_000))
    file.write_bytes(text)
    first, second = text_ranges("deu_Latn", [file])
    assert (first.start, first.stop, second.stop) == (0, 8 << 20, len(text))
    assert text[(8 << 20) - 1] != ord("\n")
    parts = [b"".join(block.text for block in read_blocks(part)) for part in (first, second)]
    assert b"".join(parts) == text and parts[0].endswith(b"\n")
    assert 0 <= len(parts[0]) - (8 << 20) < 12


clean_line = st.text(st.sampled_from("aßд漢 \u2028"), min_size=1).filter(str.strip)


@given(
    lines=st.lists(clean_line, max_size=12),
    end=st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b"\r\r"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    suffix=st.sampled_from([".txt", ".txt.gz"]),
    **sizes,
)
def test_clean_lines_are_the_same_whatever_ends_them(
    lines, end, mark, suffix, range_bytes, block_bytes, file
):
    file, data = file.with_suffix(suffix), mark + end.join(line.encode() for line in lines)
    file.write_bytes(data if suffix == ".txt" else gzip.compress(data))
    cleaner, read_again = TextCleaner("deu_Latn", CleaningConfig()), []
    for block in read(file, range_bytes, block_bytes, longest=1000):
        read_again += cleaner.clean(block)
    assert read_again == [line.strip() for line in lines]
    assert cleaner.counts["control"] == 0


def test_a_large_file_that_ends_its_lines_with_cr(tmp_path):
    """Over three ranges; a line number is right, and a stray CR in a file with LF ends no line."""
    file = tmp_path / "deu_Latn.txt"
    lines = [b"line %d" % number for number in range(1_500_000)]
    file.write_bytes(b"\r".join(lines))
    parts = text_ranges("deu_Latn", [file])
    read_again = b"".join(block.text for part in parts for block in read_blocks(part))
    assert len(parts) == 3 and read_again.split(b"\n") == lines
    assert line_number(file, read_again.index(b"line 1400000\n")) == 1_400_001
    file.write_bytes(b"one\n" + b"\r".join(lines[:9]))
    (part,) = text_ranges("deu_Latn", [file])
    assert [block.text.count(b"\n") for block in read_blocks(part)] == [1]


# --- files ------------------------------------------------------------------------------------


def one_line(*names: str) -> dict[str, bytes]:
    """Files of one line each, compressed if their names say so."""
    return {name: gzip.compress(b"one\n") if name.endswith(".gz") else b"one\n" for name in names}


def test_files_are_found_by_language_script(tmp_path, write_files):
    names = ["srp_Latn.txt", "deu_Latn.txt.gz", "notes.md", "world.json", "held_out/a.txt"]
    names += [f"eng_Latn/{name}" for name in ("b.txt", "a.txt.gz", "c.txt", "README.md")]
    write_files(tmp_path, one_line(*names))
    found = find_sources(tmp_path)
    assert list(found) == ["deu_Latn", "eng_Latn", "srp_Latn"]
    assert found["deu_Latn"] == [tmp_path / "deu_Latn.txt.gz"]
    names = ["a.txt.gz", "b.txt", "c.txt"]
    assert found["eng_Latn"] == [tmp_path / "eng_Latn" / name for name in names]
    assert find_sources(str(tmp_path)) == found
    assert all(file.exists() for files in found.values() for file in files)


@pytest.mark.parametrize(
    "pair",
    [
        ("deu_Latn.txt", "deu_Latn.txt.gz"),
        ("deu_Latn.txt", "deu_Latn/part.txt"),
        ("deu_Latn.txt.gz", "deu_Latn/part.txt"),
    ],
)
def test_two_sources_of_one_language_script_are_both_named(pair, tmp_path, refused, write_files):
    write_files(tmp_path, one_line(*pair, "eng_Latn.txt"))
    message = refused(find_sources, tmp_path)
    assert message.startswith("deu_Latn has two sources, ")
    for name in pair:
        path = tmp_path / name.partition("/")[0]
        assert re.search(rf"{re.escape(str(path))}[,; ]", message), message


def test_arrow_files_and_text_in_one_folder(tmp_path, refused, write_files):
    """Neither is left out without a word."""
    write_files(tmp_path, one_line("deu_Latn/data.arrow", "deu_Latn/text.txt", "eng_Latn.txt"))
    message = refused(find_sources, tmp_path)
    assert message.startswith(f"{tmp_path / 'deu_Latn'} has two sources") and "text.txt" in message
    (tmp_path / "deu_Latn" / "text.txt").unlink()
    assert find_sources(tmp_path)["deu_Latn"] == [tmp_path / "deu_Latn" / "data.arrow"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("german.txt", "not of the form iso639-3_Script"),
        ("german.txt.gz", "not of the form iso639-3_Script"),
        ("xxq_Latn.txt.gz", "'xxq' is not an ISO 639-3 language code"),
        ("deu_Lant.txt", "'Lant' is not an ISO 15924 script code; did you mean Latn"),
    ],
)
def test_a_name_that_is_no_language_script_is_named(name, expected, tmp_path, refused, write_files):
    write_files(tmp_path, one_line("deu_Latn.txt", name))
    message = refused(find_sources, tmp_path)
    assert message.startswith(f"{tmp_path / name}: ") and expected in message


def test_what_is_not_read_is_named(tmp_path, capsys, write_files):
    unread = ["deu_Latn.TXT", "fra_Latn.txt.zst", "spa_Latn/train.jsonl", "swh_Latn/part/a.txt"]
    read = ["eng_Latn.txt", "ita_Latn/a.txt"]
    hidden = ["._eng_Latn.txt", "ita_Latn/._a.txt", ".eng_Latn.txt.swp", ".DS_Store"]
    write_files(tmp_path, one_line(*read, *unread, *hidden))
    found = find_sources(tmp_path)
    assert [file for files in found.values() for file in files] == [
        tmp_path / name for name in read
    ]
    names = ", ".join(str(tmp_path / name) for name in unread)
    assert capsys.readouterr().err.startswith(f"not read: {names}; expected deu_Latn.txt, ")


def test_arrow_files_that_are_not_of_the_dataset_are_named(tmp_path, capsys, write_files):
    state = b'{"_data_files": [{"filename": "data.arrow"}]}'
    files = one_line("deu_Latn/data.arrow", "deu_Latn/cache-1.arrow", "deu_Latn/._data.arrow")
    write_files(tmp_path, {**files, "deu_Latn/state.json": state})
    assert find_sources(tmp_path) == {"deu_Latn": [tmp_path / "deu_Latn" / "data.arrow"]}
    assert f"not read: {tmp_path / 'deu_Latn' / 'cache-1.arrow'};" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["deu_Latn.txt", "deu_Latn.txt.gz", "deu_Latn/a.txt"])
def test_a_pipe_in_place_of_text_is_refused(name, tmp_path, refused, write_files):
    write_files(tmp_path, one_line("eng_Latn.txt", "deu_Latn/.keep"))
    os.mkfifo(tmp_path / name)
    assert refused(find_sources, tmp_path).startswith(f"{tmp_path / name} is a pipe")


def test_a_folder_without_text(tmp_path, refused, write_files):
    assert str(tmp_path / "none") in refused(find_sources, tmp_path / "none")
    write_files(tmp_path, one_line("notes.md"))
    assert refused(find_sources, tmp_path).startswith(f"{tmp_path} holds no text")
    assert str(tmp_path / "notes.md") in refused(find_sources, tmp_path / "notes.md")


# --- compressed -------------------------------------------------------------------------------


def read_gzip(file: Path) -> bytes:
    (part,) = text_ranges("deu_Latn", [file])
    return b"".join(block.text for block in read_blocks(part))


def test_a_compressed_file_is_one_range_of_its_text(tmp_path):
    """Also one that was written in several members, as of files joined with cat."""
    file = tmp_path / "deu_Latn.txt.gz"
    text = b"".join(b"line %d\n" % number for number in range(300_000))
    file.write_bytes(gzip.compress(text[:1_000_003]) + gzip.compress(text[1_000_003:]))
    assert read_gzip(file) == text
    for number in (1, 2, 1000, 299_999):
        assert line_number(file, text.index(b"line %d\n" % (number - 1))) == number


def test_a_damaged_compressed_file_is_named(tmp_path):
    file = tmp_path / "deu_Latn.txt.gz"
    text = b"".join(b"line %d\n" % (number**3) for number in range(3000))
    data = gzip.compress(text)
    wrong = [b"plain text\n", data[: len(data) // 2], data[:-1], data[:-8], data[:5]]
    wrong += [data + b"more"]
    for place in (0, 1, 2, len(data) // 3, len(data) // 2, len(data) - 6, len(data) - 1):
        wrong.append(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
    for content in wrong:
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_gzip(file)
        assert str(error.value).startswith(f"{file} is damaged: ")


def test_an_empty_file_has_no_lines(tmp_path):
    for name in ("deu_Latn.txt", "deu_Latn.txt.gz"):
        file = tmp_path / name
        file.write_bytes(b"")
        assert [list(read_blocks(part)) for part in text_ranges("deu_Latn", [file])] == [[]]
    file.write_bytes(gzip.compress(b""))
    assert list(read_blocks(TextRange("deu_Latn", file, 0, file.stat().st_size))) == []

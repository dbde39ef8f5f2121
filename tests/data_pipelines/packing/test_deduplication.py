"""Deduplication, and the rows that are left, against plain lists in memory."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.packing import deduplication, token_chunks
from data_pipelines.packing.deduplication import HASHES, deduplicate, unmasked_tokens
from data_pipelines.packing.rows import number_of_rows, token_stream
from data_pipelines.packing.token_chunks import ChunkWriter
from langsamp_jax.data.manifest import SPLITS

UNKNOWN = 3
TOKENIZER = SimpleNamespace(vocabulary=SimpleNamespace(unk_id=UNKNOWN), is_text=np.ones(200, bool))

# A line is its text: few texts, so that many are equal. Its hash is anywhere in the range, its
# tokens and its side follow from it, as those of real lines do.
line = st.integers(0, 12)
adds = st.lists(st.lists(line, max_size=8), max_size=6)  # one call of the writer each
parts = st.lists(adds, max_size=4)  # one item of encoding each

HASH_OF = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, *(7919**5 * n % 2**64 for n in range(1, 9))]


def tokens_of(text: int) -> list[int]:
    return [0, *([UNKNOWN] * (text % 3)), *range(10, 10 + text % 4), 100 + text, 2]


def is_validation(text: int) -> bool:
    return text % 3 == 1


def write(folder: Path, drawn: list, hashed: bool = True) -> list[Path]:
    """The chunks of all parts, in order."""
    written = []
    for number, part in enumerate(drawn):
        writer = ChunkWriter(folder / f"part-{number}", TOKENIZER)
        for lines in part:
            ids = [token for text in lines for token in tokens_of(text)]
            hashes = np.array([HASH_OF[text] for text in lines], np.uint64)
            writer.add(
                np.array(ids, np.int32),
                np.array([len(tokens_of(text)) for text in lines], np.int64),
                np.array([is_validation(text) for text in lines], bool),
                hashes if hashed else None,
            )
        written += [folder / name for name in writer.close()]
    return written


def flat(drawn: list) -> list[int]:
    return [text for part in drawn for lines in part for text in lines]


@given(
    drawn=parts,
    known=st.sets(line),
    chunk_tokens=st.integers(1, 60),
    bucket_lines=st.integers(1, 20),
    drop=st.booleans(),
    length=st.integers(1, 12),
)
def test_as_a_set_in_memory(
    drawn, known, chunk_tokens, bucket_lines, drop, length, tmp_path_factory
):
    """The first of equal lines stays, across chunks, parts and buckets; what is known is not
    kept; and the tokens can be read from any place on."""
    folder = tmp_path_factory.mktemp("deduplication")
    masks, known_file = folder / "masks", folder / "known.u64"
    masks.mkdir()
    known = known if drop else set()
    np.array(sorted(HASH_OF[text] for text in known), "<u8").tofile(known_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_chunks, "CHUNK_TOKENS", chunk_tokens)
        patch.setattr(deduplication, "_BUCKET_LINES", bucket_lines)
        written = write(folder, drawn, hashed=drop)
        deduplicated = deduplicate(written, masks, drop, known_file if known else None)

    texts = flat(drawn)
    expected = list(dict.fromkeys(t for t in texts if t not in known)) if drop else texts
    assert deduplicated.duplicates == len(texts) - len(expected)
    if drop:
        hashes = np.fromfile(masks / HASHES, "<u8").tolist()
        assert hashes == sorted(HASH_OF[text] for text in {*texts, *known})
    for split in SPLITS:
        lines = [text for text in expected if is_validation(text) == (split == "validation")]
        tokens = [token for text in lines for token in tokens_of(text)]
        assert deduplicated.lines[split] == len(lines)
        assert deduplicated.unknown[split] == tokens.count(UNKNOWN)
        by_chunk = [part.tolist() for part in unmasked_tokens(written, masks, split)]
        assert sum(by_chunk, []) == tokens
        assert deduplicated.tokens[split] == [len(part) for part in by_chunk]
        for start in range(0, len(tokens) + length, length):
            stream = token_stream(None, 0, written, deduplicated.tokens[split], masks, split, start)
            assert [t for part in stream for t in part.tolist()] == tokens[start:]


def test_chunks_are_as_long_as_they_should_be(tmp_path, monkeypatch):
    monkeypatch.setattr(token_chunks, "CHUNK_TOKENS", 50)
    drawn = [[[1, 2, 3]] * 40]
    written = write(tmp_path, drawn)
    sizes = [len(token_chunks.load(chunk, "tokens")) for chunk in written]
    one = sum(len(tokens_of(text)) for text in (1, 2, 3))
    assert all(50 <= size < 50 + one for size in sizes[:-1]) and sum(sizes) == 40 * one
    assert [chunk.name for chunk in written] == [f"part-0-{n}" for n in range(len(sizes))]
    for chunk in written:
        table = token_chunks.load(chunk, "hashes")
        assert np.all(np.diff(table["hash"].astype(float)) >= 0)
        assert sorted(table["line"].tolist()) == list(range(len(token_chunks.load(chunk, "lines"))))


def test_nothing_at_all(tmp_path):
    (tmp_path / "masks").mkdir()
    deduplicated = deduplicate([], tmp_path / "masks", True, None)
    assert deduplicated.duplicates == 0 and deduplicated.tokens == {split: [] for split in SPLITS}
    assert (tmp_path / "masks" / HASHES).read_bytes() == b""


@given(tokens=st.integers(0, 200), length=st.integers(1, 20))
def test_the_number_of_rows(tokens, length):
    rows = [range(tokens)[start : start + length] for start in range(0, tokens, length)]
    assert number_of_rows(tokens, "validation", length) == len(rows)
    assert number_of_rows(tokens, "train", length) == sum(len(row) == length for row in rows)

"""The row map: every row goes with its piece, new rows start from what spelled them."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.errors import UserError
from langsamp_jax.huggingface import row_map as module
from langsamp_jax.huggingface.row_map import RowMap, new_rows, row_map

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


class Spelling:
    """Spells a string letter by letter; a letter without a piece is ``<unk>`` (3)."""

    def __init__(self, pieces: Sequence[str]):
        self.pieces = list(pieces)

    def segment(self, piece: str) -> list[int]:
        return [self.pieces.index(letter) if letter in self.pieces else 3 for letter in piece]


OLD = Spelling([*SPECIAL, "▁", "a", "b", "<mask>"])
NEW = [*SPECIAL, "▁", "a", "b", "▁ab", "ß", "aß", "aab", "<mask>"]


def table(rows: RowMap, old: np.ndarray, init: str = "mean", seed: int = 0) -> np.ndarray:
    """The whole new table; the chunks must come in order and without gaps."""
    width = old.shape[1] if old.ndim == 2 else None
    chunks, end = [], 0
    for start, chunk in new_rows(rows, lambda ids: old[ids], init, seed, width):
        assert start == end and chunk.dtype == np.float32
        chunks.append(chunk)
        end += len(chunk)
    return np.concatenate(chunks)


def old_table(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(1, 1, shape).astype(np.float32)


def test_pieces_keep_their_rows_and_the_mask_moves_with_its_own():
    rows = row_map(OLD, NEW)
    assert rows.carried.dtype == np.int32
    assert rows.carried.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1, -1, -1, 7]
    assert rows.spelled == {7: (4, 5, 6), 9: (5,), 10: (5, 5, 6)}
    assert rows.unspelled == 1


def test_the_same_vocabulary_is_the_identity():
    rows = row_map(OLD, OLD.pieces)
    assert rows.carried.tolist() == list(range(8)) and not rows.spelled and not rows.unspelled
    old = old_table(8, 4)
    assert table(rows, old).tobytes() == old.tobytes()


def test_rows_are_mapped_by_piece_in_any_order():
    shuffled = NEW[::-1]
    rows = row_map(OLD, shuffled)
    assert [OLD.pieces[row] for row in rows.carried if row >= 0] == OLD.pieces[::-1]
    assert {shuffled[row]: ids for row, ids in rows.spelled.items()} == {
        "▁ab": (4, 5, 6),
        "aß": (5,),
        "aab": (5, 5, 6),
    }


def test_a_tokenizer_that_is_no_extension_is_refused():
    with pytest.raises(UserError) as refused:
        row_map(OLD, [*SPECIAL, "b", "<mask>", "other"])
    assert "lacks 2 of the 8 pieces" in str(refused.value) and "(▁ a)" in str(refused.value)
    with pytest.raises(UserError) as refused:
        row_map(OLD, ["a"])
    assert "lacks 7 of the 8" in str(refused.value)
    assert "(<s> <pad> </s> …)" in str(refused.value) and "\n" not in str(refused.value)


def test_means_by_hand():
    old = np.arange(16, dtype=np.float32).reshape(8, 2)
    new = table(row_map(OLD, NEW), old)
    assert new[[0, 1, 2, 3, 4, 5, 6, 11]].tolist() == old.tolist()
    assert new[7].tolist() == [10, 11]  # (8 + 10 + 12) / 3
    assert new[9].tolist() == [10, 11]  # "a" alone: the other letter is unknown
    np.testing.assert_allclose(new[10], [32 / 3, 35 / 3], rtol=1e-6)  # "a" counts twice
    assert 0 < np.abs(new[8]).max() < 0.2  # nothing known: drawn


def test_a_bias_is_the_mean_or_zero():
    bias = np.arange(8, dtype=np.float32)
    rows = row_map(OLD, NEW)
    np.testing.assert_allclose(table(rows, bias)[7:11], [5, 0, 5, 16 / 3], rtol=1e-6)
    assert table(rows, bias, "normal")[7:11].tolist() == [0, 0, 0, 0]
    for init in ("mean", "normal"):
        assert table(rows, bias, init)[rows.carried >= 0].tolist() == bias.tolist()


def test_drawn_rows_are_normal_and_repeatable(monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 300)
    new = [*OLD.pieces[:-1], *(f"ab{i}" for i in range(2000)), "<mask>"]
    rows, old = row_map(OLD, new), old_table(8, 32)
    drawn = table(rows, old, "normal", seed=3)
    assert drawn[rows.carried >= 0].tobytes() == old.tobytes()
    added = drawn[rows.carried < 0]
    assert abs(added.mean()) < 4 * 0.02 / added.size**0.5
    assert abs(added.std() / 0.02 - 1) < 4 / (2 * added.size) ** 0.5
    assert len(np.unique(added)) > 0.9 * added.size  # no chunk repeats another
    assert table(rows, old, "normal", seed=3).tobytes() == drawn.tobytes()
    assert not np.array_equal(table(rows, old, "normal", seed=4), drawn)


@given(
    words=st.lists(st.text("▁abcß", min_size=1, max_size=5), unique=True, max_size=30),
    chunk=st.integers(1, 40),
    init=st.sampled_from(["mean", "normal"]),
)
def test_any_chunk_size_gives_the_rows_defined_one_by_one(words, chunk, init):
    """Against the definition, piece by piece; what is drawn is left out of the comparison."""
    new = [*OLD.pieces[:-1], *(word for word in words if word not in OLD.pieces), "<mask>"]
    rows, old = row_map(OLD, new), old_table(8, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_AT_ONCE", chunk)
        found = table(rows, old, init)
    for piece, row in zip(new, found, strict=True):
        known = [OLD.pieces.index(letter) for letter in piece if letter in OLD.pieces]
        if piece in OLD.pieces:
            assert row.tobytes() == old[OLD.pieces.index(piece)].tobytes()
        elif known and init == "mean":
            np.testing.assert_allclose(row, old[known].astype(np.float64).mean(0), rtol=1e-5)
        else:
            assert 0 < np.abs(row).max() < 0.2


def test_no_more_old_rows_are_read_than_a_chunk_needs(monkeypatch):
    """A table larger than memory: nothing reads it whole."""
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    asked = []

    def read(ids: np.ndarray) -> np.ndarray:
        assert 0 < len(ids) == len(set(ids.tolist()))
        asked.append(len(ids))
        return old[ids]

    old = old_table(8, 3)
    for _ in new_rows(row_map(OLD, NEW), read, "mean", 0, 3):
        pass
    assert max(asked) <= 4

"""The row map: every row goes with its piece, new rows start from what spelled them."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.errors import UserError
from langsamp_jax.text.row_map import RowMap, new_rows, row_map

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


class Spelling:
    """Spells a string letter by letter; a letter without a piece is ``<unk>`` (3)."""

    def __init__(self, pieces: Sequence[str]):
        self.pieces = list(pieces)

    def speller(self):
        return self._spell

    def _spell(self, piece: str) -> list[int]:
        return [self.pieces.index(letter) if letter in self.pieces else 3 for letter in piece]


OLD = Spelling([*SPECIAL, "▁", "a", "b", "<mask>"])
NEW = [*SPECIAL, "▁", "a", "b", "▁ab", "ß", "aß", "aab", "<mask>"]


def table(
    rows: RowMap, old: np.ndarray, init: str = "mean", seed: int = 0, chunk: int = 3
) -> np.ndarray:
    """The whole new table, read in parts of ``chunk`` rows."""
    columns = (old.shape[1], slice(None)) if old.ndim == 2 else None
    size = len(rows.carried)
    parts = [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]
    read = [new_rows(rows, part, lambda ids: old[ids], init, seed, columns) for part in parts]
    assert all(values.dtype == np.float32 for values in read)
    return np.concatenate(read)


def old_table(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(1, 1, shape).astype(np.float32)


def test_pieces_keep_their_rows_and_the_mask_moves_with_its_own():
    rows = row_map(OLD, NEW)
    assert rows.carried.dtype == np.int32
    assert rows.carried.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1, -1, -1, 7]
    assert rows.spelled == {7: (4, 5, 6), 10: (5, 5, 6)}
    assert rows.unspelled == 2


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
    np.testing.assert_allclose(new[10], [32 / 3, 35 / 3], rtol=1e-6)  # "a" counts twice
    assert (0 < np.abs(new[8:10]).max(axis=1)).all()  # a letter is unknown: drawn
    assert np.abs(new[8:10]).max() < 0.2


def test_a_bias_is_the_mean_or_zero():
    bias = np.arange(8, dtype=np.float32)
    rows = row_map(OLD, NEW)
    np.testing.assert_allclose(table(rows, bias)[7:11], [5, 0, 0, 16 / 3], rtol=1e-6)
    assert table(rows, bias, "normal")[7:11].tolist() == [0, 0, 0, 0]
    for init in ("mean", "normal"):
        assert table(rows, bias, init)[rows.carried >= 0].tolist() == bias.tolist()


def test_a_rare_piece_has_a_lower_bias_than_its_parts():
    """By hand: scores of -2, -4 and -6 for "▁", "a" and "b", of -9 and -8 for the new pieces."""
    bias = np.arange(8, dtype=np.float32)
    scores = {"▁": -2, "a": -4, "b": -6, "▁ab": -9, "aab": -8}
    rows = row_map(OLD, NEW, [scores.get(piece, 0) for piece in NEW])
    assert rows.rarer == pytest.approx({7: -9 + 4, 10: -8 + 14 / 3})
    np.testing.assert_allclose(
        table(rows, bias)[7:11], [5 - 5, 0, 0, 16 / 3 - 8 + 14 / 3], rtol=1e-5, atol=1e-6
    )
    assert table(rows, bias, "normal")[7:11].tolist() == [0, 0, 0, 0]
    old = old_table(8, 3)
    assert table(rows, old).tobytes() == table(row_map(OLD, NEW), old).tobytes()


def test_drawn_rows_are_normal_and_repeatable():
    new = [*OLD.pieces[:-1], *(f"ab{i}" for i in range(2000)), "<mask>"]
    rows, old = row_map(OLD, new), old_table(8, 32)
    drawn = table(rows, old, "normal", seed=3, chunk=300)
    assert drawn[rows.carried >= 0].tobytes() == old.tobytes()
    added = drawn[rows.carried < 0]
    assert abs(added.mean()) < 4 * 0.02 / added.size**0.5
    assert abs(added.std() / 0.02 - 1) < 4 / (2 * added.size) ** 0.5
    assert len(np.unique(added)) > 0.9 * added.size  # no chunk repeats another
    assert table(rows, old, "normal", seed=3, chunk=7).tobytes() == drawn.tobytes()
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
    found = table(rows, old, init, chunk=chunk)
    for piece, row in zip(new, found, strict=True):
        known = "ß" not in piece and "c" not in piece
        if piece in OLD.pieces:
            assert row.tobytes() == old[OLD.pieces.index(piece)].tobytes()
        elif known and init == "mean":
            parts = [OLD.pieces.index(letter) for letter in piece]
            np.testing.assert_allclose(row, old[parts].astype(np.float64).mean(0), rtol=1e-5)
        else:
            assert 0 < np.abs(row).max() < 0.2


def test_no_more_old_rows_are_read_than_a_part_needs():
    """A table larger than memory: nothing reads it whole."""
    asked = []

    def read(ids: np.ndarray) -> np.ndarray:
        assert 0 < len(ids) == len(set(ids.tolist()))
        asked.append(len(ids))
        return old[ids]

    rows, old = row_map(OLD, NEW), old_table(8, 3)
    for start in range(0, 12, 4):
        new_rows(rows, slice(start, start + 4), read, "mean", 0, (3, slice(None)))
    assert max(asked) <= 4


@pytest.mark.parametrize("init", ["mean", "normal"])
def test_some_columns_are_those_of_the_whole_table(init):
    """A device that holds a part of the columns gets the same numbers."""
    rows, old = row_map(OLD, NEW), old_table(8, 6)
    whole, wanted = table(rows, old, init), slice(2, 5)
    part = new_rows(rows, slice(0, 12), lambda ids: old[ids, wanted], init, 0, (6, wanted))
    assert part.tobytes() == np.ascontiguousarray(whole[:, wanted]).tobytes()

"""Batches hold every sentence once, in few shapes, none longer than the model."""

import numpy as np
import pytest

from langsamp_jax.evaluation.batching import (
    bucket_length,
    bucketed_batches,
    padded,
    split_lines,
    truncate,
)

PAD = 1


def sentences(lengths):
    """Of different tokens, so that none can be taken for another."""
    ids = iter(range(10, 10**9))
    return [np.array([next(ids) for _ in range(n)], np.int32) for n in lengths]


def test_lines_are_split_where_they_end():
    found = split_lines(np.arange(6), np.array([1, 0, 3, 2]))
    assert [line.tolist() for line in found] == [[0], [], [1, 2, 3], [4, 5]]
    assert split_lines(np.zeros(0, np.int32), np.zeros(0, np.int64)) == []


def test_what_is_cut_keeps_its_end():
    first, *same = sentences([6, 5, 4, 1])
    kept, longer = truncate([first, *same], 5, eos_id=2)
    assert kept[0].tolist() == [*first[:4], 2] and kept[0].dtype == np.int32
    assert longer.tolist() == [True, False, False, False]
    for before, after in zip(same, kept[1:], strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("tokens_at_once", [1, 100, 2048])
def test_every_sentence_is_there_once(tokens_at_once, devices):
    lengths = np.random.default_rng(0).integers(1, 101, 200)
    given, seen = sentences(lengths), []
    batches = list(bucketed_batches(given, PAD, 100, tokens_at_once, devices))
    for batch in batches:
        rows, length = batch.tokens.shape
        assert batch.attention_mask.shape == (rows, length) and length <= 100
        assert rows % devices == 0 and rows * length <= max(tokens_at_once, devices * length)
        for row, mask, index in zip(batch.tokens, batch.attention_mask, batch.chosen, strict=False):
            n = len(given[index])
            np.testing.assert_array_equal(row[:n], given[index])
            assert mask[:n].all() and not mask[n:].any() and (row[n:] == PAD).all()
        empty = batch.attention_mask[len(batch.chosen) :]
        assert not empty.any()
        seen += batch.chosen.tolist()
    assert sorted(seen) == list(range(200))
    assert [lengths[i] for i in seen] == sorted(lengths, reverse=True)
    assert all(len(batch.chosen) == len(batch.tokens) for batch in batches[:-1])


def test_few_shapes_little_padding():
    lengths = np.random.default_rng(1).integers(3, 513, 5000)
    batches = list(bucketed_batches(sentences(lengths), PAD, 512, 2048, 1))
    assert len({batch.tokens.shape for batch in batches}) <= 20
    assert sum(batch.tokens.size for batch in batches) < 1.2 * lengths.sum()


def test_lengths_are_rounded_up():
    for length in range(1, 2000):
        assert length <= bucket_length(length) < length + max(8, length / 4)
    assert [bucket_length(n) for n in (1, 8, 9, 64, 65, 128, 129, 512, 513)] == [
        *(8, 8, 16, 64, 80, 128, 160, 512, 640)
    ]


def test_nothing_makes_no_batch():
    assert list(bucketed_batches([], PAD, 512, 2048, 1)) == []
    tokens, mask = padded([], 2, 3, PAD)
    assert tokens.tolist() == [[PAD] * 3] * 2 and not mask.any()

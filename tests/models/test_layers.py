"""Dropout: how much, and how independent. Dense layers are tested with the model."""

import jax
import numpy as np

from langsamp_jax.models.layers import Dropout


def test_dropped_values_are_as_many_as_the_rate_says_and_independent():
    def kept(seed, rate=0.1, shape=(64, 7, 500)):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(Dropout(rate).apply({}, np.ones(shape, "f"), False, rngs=rngs))

    a, b = kept(0), kept(1)
    np.testing.assert_array_equal(np.unique(a), np.array([0, 1 / 0.9], "f"))
    size, spread = a.size, (0.1 * 0.9 / a.size) ** 0.5
    for found in (a, b, kept(0)[:, 0]):
        assert abs((found == 0).mean() - 0.1) < 5 * spread * (size / found.size) ** 0.5
    pairs = {  # both dropped: a hundredth, for other keys, rows, columns and neighbours
        "keys": (a == 0) & (b == 0),
        "rows": (a[1:] == 0) & (a[:-1] == 0),
        "columns": (a[:, 1:] == 0) & (a[:, :-1] == 0),
        "neighbours": (a[..., 1:] == 0) & (a[..., :-1] == 0),
    }
    for name, both in pairs.items():
        assert abs(both.mean() - 0.01) < 5 * (0.01 * 0.99 / both.size) ** 0.5, name
    assert (kept(2, rate=0.75, shape=(3, 5)) == 0).any()  # odd sizes too

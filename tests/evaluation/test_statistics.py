"""The cosine: its values, its ties, and rows without a direction."""

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity

from langsamp_jax.evaluation.statistics import cosines


def test_it_is_the_cosine():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(30, 9)), rng.normal(size=(7, 9)) * 1e3
    found = cosines(first.astype(np.float32), second)
    assert found.dtype == np.float64
    expected = cosine_similarity(first.astype(np.float32).astype(np.float64), second)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_equal_rows_tie_wherever_they_stand():
    rng = np.random.default_rng(1)
    features = rng.random((40, 289)) < 0.3
    rows = features[rng.integers(40, size=500)]
    found = cosines(rows, features)
    for row in range(40):
        same = (rows == features[row]).all(axis=1)
        assert (found[same] == found[same][0]).all() and (found[same][:, row] == 1).all()


def test_rows_without_a_direction():
    first = np.array([[0.0, 0.0], [np.nan, 1.0], [2.0, 0.0]])
    found = cosines(first, np.array([[3.0, 0.0], [0.0, -1.0]]))
    np.testing.assert_array_equal(found, [[0, 0], [np.nan, np.nan], [1, 0]])

"""The cosine, as every analysis of vectors here takes it."""

import numpy as np


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine of every row of ``first`` with every row of ``second``, in double precision.

    Rounded to 12 decimals: pairs that are equally near tie, in whatever order the sums were taken.
    A row of zeros has the cosine 0 with all, a row with a NaN the cosine NaN.

    Args:
      first, second: float [n, d] and [m, d].

    Returns:
      float64 [n, m].
    """
    return np.round(_unit(first) @ _unit(second).T, 12)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

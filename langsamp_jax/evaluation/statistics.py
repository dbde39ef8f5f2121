"""Statistics: the cosine, rank correlations, separation of two classes, tests by relabelling,
intervals of means."""

import math
import statistics
from collections.abc import Mapping

import numpy as np
from scipy.stats import bootstrap, rankdata, t, ttest_ind

from langsamp_jax.io.progress import Progress

_FEWEST = 3  # entries that a row's rank correlation needs


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosine of every row of ``first`` with every row of ``second``.

    In double precision, rounded to 12 decimals: pairs that are equally near tie, in whatever order
    the sums were taken. A row of zeros has the cosine 0 with all, a row with a NaN the cosine NaN.

    Args:
      first, second: float [n, d] and [m, d].

    Returns:
      float64 [n, m].
    """
    return np.round(_unit(first) @ _unit(second).T, 12)


def mantel(
    first: np.ndarray,
    second: np.ndarray,
    permutations: int = 9999,
    seed: int = 0,
    strata: np.ndarray | None = None,
) -> tuple[float, float]:
    """Returns Spearman's rank correlation of two distance matrices and its p (Mantel 1967).

    The distances of a matrix depend on each other, so p comes from relabelling: the rows and
    columns of ``second`` are permuted together. p is one-sided, (1 + permutations whose rho is at
    least that found) / (1 + permutations).

    Args:
      first, second: float [n, n], of which what lies above the diagonal counts; neither may be
        constant there.
      strata: int [n]; only pairs within one count then, each with its rank less the mean rank of
        the stratum's pairs, and rows are relabelled within their stratum.

    Returns:
      rho and p.
    """
    strata = np.zeros(len(first), int) if strata is None else strata
    first, second = (centred_ranks(matrix, strata) for matrix in (first, second))
    together = np.argsort(strata, kind="stable")
    order = np.empty(len(strata), int)
    observed = np.einsum("ij,ij", first, second)
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    rng = np.random.default_rng(seed)
    as_high = 0
    with Progress("Mantel test", permutations, "permutations") as progress:
        for _ in range(permutations):
            order[together] = np.lexsort((rng.random(len(strata)), strata))
            permuted = second[order].take(order, axis=1)
            # The margin: permutations that change nothing may not be lost to rounding.
            as_high += np.einsum("ij,ij", first, permuted) >= observed - 1e-10 * scale
            progress.advance(1)
    return float(observed / scale), float((1 + as_high) / (1 + permutations))


def centred_ranks(distances: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Returns the ranks of the pairs less the mean rank of their stratum.

    Args:
      distances: float [n, n], of which what lies above the diagonal counts.
      strata: int [n]; only pairs within one count.

    Returns:
      float64 [n, n], symmetric, 0 where a pair does not count; so relabelling keeps them.
    """
    within, ranks = np.triu(strata[:, None] == strata, 1), np.zeros(distances.shape)
    ranks[within] = rankdata(distances[within])
    for stratum in np.unique(strata):
        pairs = within & (strata == stratum)[:, None]
        ranks[pairs] -= ranks[pairs].mean() if pairs.any() else 0
    return ranks + ranks.T


def rank_correlations(similarity: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns Spearman's rho along each row, over the entries that both have.

    Args:
      similarity, scores: float [rows, columns], NaN where there is no value.

    Returns:
      float64 [rows]; NaN where fewer than 3 entries are left, or all are equal.
    """
    missing = np.isnan(similarity) | np.isnan(scores)
    count = (~missing).sum(axis=1, keepdims=True)
    first, second = (
        np.where(missing, 0, rankdata(masked, axis=1, nan_policy="omit") - (count + 1) / 2)
        for masked in (np.where(missing, np.nan, values) for values in (similarity, scores))
    )
    with np.errstate(invalid="ignore"):  # 0 / 0: all equal
        rho = (first * second).sum(axis=1) / np.sqrt(
            (first**2).sum(axis=1) * (second**2).sum(axis=1)
        )
    return np.where(count[:, 0] < _FEWEST, np.nan, rho)


def relabelling_test(
    similarity: np.ndarray, scores: np.ndarray, permutations: int = 9999, seed: int = 0
) -> float:
    """Returns p of the mean of ``rank_correlations``, one-sided, by relabelling the columns.

    A column that is high in all rows makes the correlations of the rows depend on each other, so
    each permutation moves the columns of all rows together. Flipping the signs of the rows'
    correlations would take one lucky column for as many findings as there are rows. p is (1 +
    permutations whose mean is at least that observed) / (1 + permutations); with d columns it
    cannot fall below about 1 / d!.
    """
    similarity = np.where(np.isnan(scores), np.nan, similarity)  # an entry without score stays out
    observed = np.nanmean(rank_correlations(similarity, scores))
    rng = np.random.default_rng(seed)
    lower = 0
    with Progress("relabelling test", permutations, "permutations") as progress:
        for _ in range(permutations):
            order = rng.permutation(similarity.shape[1])
            rho = rank_correlations(similarity[:, order], scores)
            rho = rho[~np.isnan(rho)]
            lower += bool(len(rho)) and rho.mean() < observed - 1e-10
            progress.advance(1)
    return float((1 + permutations - lower) / (1 + permutations))


def bootstrap_interval(values: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """Returns the ends of the 95 % percentile bootstrap of the mean.

    Args:
      values: float [n], n at least 2.
    """
    sample = bootstrap((values,), np.mean, n_resamples=resamples, method="percentile", rng=seed)
    return float(sample.confidence_interval.low), float(sample.confidence_interval.high)


def auroc(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns how often a positive has the higher value of a positive and a negative; a tie is one
    half: the area under the ROC curve, exactly (Mann and Whitney 1947).

    Args:
      values: float [n, units].
      labels: bool [n], of which both occur.

    Returns:
      float64 [units].
    """
    positives = int(labels.sum())
    ranks = rankdata(values, axis=0)[labels].sum(axis=0)
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


def average_precisions(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the average precision of each unit as a detector of each concept.

    It is the mean over the positives of the precision among all that are at least as high, which is
    the sum of (R_k - R_(k-1)) P_k over the different values.

    Args:
      values: float [n, units].
      labels: bool [n, concepts], of which each occurs.

    Returns:
      float64 [units, concepts].
    """
    above = rankdata(-values, "max", axis=0).T.astype(np.int32)  # one sort serves all concepts
    return np.stack([_precisions(np.sort(above[:, chosen])) for chosen in labels.T], axis=1)


def _precisions(above: np.ndarray) -> np.ndarray:
    """Returns the mean over positives of the precision among all that are at least as high.

    Args:
      above: int [units, positives], how many are, in order; of those that tie the same.
    """
    count = above.shape[1]
    hits = np.broadcast_to(np.arange(1, count + 1), above.shape).copy()
    hits[:, :-1][above[:, 1:] == above[:, :-1]] = count
    return (np.minimum.accumulate(hits[:, ::-1], axis=1)[:, ::-1] / above).mean(axis=1)


def max_test(observed: np.ndarray, null: np.ndarray) -> tuple[float, float]:
    """Tests a family of cells by its maximum, which allows for its size and for dependence between
    cells (Westfall and Young 1993).

    Args:
      observed: float [...], the cells.
      null: float [permutations, ...], the same under each permutation, all cells together.

    Returns:
      the 95 % quantile of the maximum under the null; and p, (1 + permutations whose maximum is at
      least that observed) / (1 + permutations).
    """
    highest = null.reshape(len(null), -1).max(axis=1)
    as_high = (highest >= observed.max() - 1e-12).sum()
    return float(np.quantile(highest, 0.95)), float((1 + as_high) / (1 + len(null)))


def mean_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float]
) -> tuple[float, float | None, float | None, bool]:
    """Returns the difference of two means over seeds with its 95 % interval by Student's t.

    Paired where both have the same seeds, else Welch's.

    Returns:
      it, the ends of the interval (None where a single run gives none), and whether it is paired.
    """
    between = statistics.fmean(ours.values()) - statistics.fmean(theirs.values())
    paired = ours.keys() == theirs.keys()
    if min(len(ours), len(theirs)) < 2:
        return between, None, None, paired
    if paired:
        deviation = statistics.stdev([ours[seed] - theirs[seed] for seed in ours])
        half = t.ppf(0.975, len(ours) - 1) * deviation / math.sqrt(len(ours))
        return between, between - half, between + half, True
    sides = [np.array(list(side.values())) for side in (ours, theirs)]
    if all(np.ptp(side) == 0 for side in sides):
        return between, between, between, False
    interval = ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
    return between, float(interval.low), float(interval.high), False


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

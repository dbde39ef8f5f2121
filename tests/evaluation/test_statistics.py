"""Statistics against SciPy, scikit-learn and the enumeration of all relabellings."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kstest, rankdata, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from langsamp_jax.evaluation.statistics import (
    auroc,
    average_precisions,
    bootstrap_interval,
    cosines,
    mantel,
    max_test,
    mean_difference,
    rank_correlations,
    relabelling_test,
)


def distances(rng: np.random.Generator, n: int, width: int = 6) -> np.ndarray:
    return squareform(pdist(rng.normal(size=(n, width))))


# The cosine


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


# The Mantel test


@pytest.mark.parametrize("n", [4, 9, 40])
@pytest.mark.parametrize("ties", [False, True])
def test_rho_is_that_of_scipy(n, ties):
    rng = np.random.default_rng(n)
    first, second = distances(rng, n), distances(rng, n)
    if ties:
        first, second = first.round(), second.round()
    rho, _ = mantel(first, second, permutations=0)
    expected = spearmanr(squareform(first), squareform(second)).statistic
    np.testing.assert_allclose(rho, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_p_is_the_share_of_all_relabellings(seed):
    """Five languages have 120, some of which change nothing: these count as high as is found."""
    rng = np.random.default_rng(seed)
    first, points = distances(rng, 5), rng.normal(size=(4, 6))
    second = squareform(pdist(points[[0, 0, 1, 2, 3]]))

    def correlation(order) -> float:
        moved = second[np.ix_(order, order)]
        return spearmanr(squareform(first), squareform(moved)).statistic

    every = np.array([correlation(list(order)) for order in itertools.permutations(range(5))])
    exact = np.mean(every >= every[0] - 1e-9)
    _, p = mantel(first, second, permutations=4000, seed=seed)
    assert abs(p - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000)


def test_relabellings_that_change_nothing_count():
    """One language is far from three, which are equally far: 6 of the 24 leave it where it is."""
    star = np.array([[0, 7, 7, 7], [7, 0, 1, 1], [7, 1, 0, 1], [7, 1, 1, 0]])
    rho, p = mantel(star, star, permutations=4000)
    assert rho == pytest.approx(1) and abs(p - 6 / 24) < 4 * np.sqrt(6 / 24 * 18 / 24 / 4000)


def test_p_is_uniform_where_nothing_is_related():
    rng = np.random.default_rng(0)
    pairs = [(distances(rng, 10), distances(rng, 10)) for _ in range(300)]
    p = [mantel(*pair, permutations=99, seed=number)[1] for number, pair in enumerate(pairs)]
    assert kstest(p, "uniform").pvalue > 0.05
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_p_is_small_where_the_signal_is_real():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(25, 6))
    noisy = points + rng.normal(size=points.shape)
    rho, p = mantel(squareform(pdist(points)), squareform(pdist(noisy)), permutations=999)
    assert rho > 0.3 and p == 1 / 1000
    _, opposite = mantel(squareform(pdist(points)), -squareform(pdist(noisy)), permutations=999)
    assert opposite == 1


def test_the_seed_settles_p():
    rng = np.random.default_rng(3)
    pair = distances(rng, 12), distances(rng, 12)
    found = [mantel(*pair, permutations=200, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] and found[0] != found[2]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_within_strata_only_their_pairs_count(seed):
    """Two strata of three languages and one of two: 7 pairs, and 3! 3! 2! relabellings."""
    strata = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    pairs = np.array([(0, 3), (0, 6), (3, 6), (1, 4), (1, 7), (4, 7), (2, 5)]).T
    rng = np.random.default_rng(seed)
    first, second = distances(rng, 8), distances(rng, 8)

    def centred(matrix) -> np.ndarray:
        ranks = rankdata(matrix[tuple(pairs)])
        return ranks - np.repeat([ranks[:3].mean(), ranks[3:6].mean(), ranks[6]], [3, 3, 1])

    def correlation(order) -> float:
        return np.corrcoef(centred(first), centred(second[np.ix_(order, order)]))[0, 1]

    every = []
    for a, b, c in itertools.product(*map(itertools.permutations, ([0, 3, 6], [1, 4, 7], [2, 5]))):
        order = np.empty(8, int)
        order[[0, 3, 6]], order[[1, 4, 7]], order[[2, 5]] = a, b, c
        every.append(correlation(order))
    exact = np.mean(np.array(every) >= every[0] - 1e-9)
    rho, p = mantel(first, second, permutations=4000, seed=seed, strata=strata)
    assert rho == pytest.approx(every[0], abs=1e-12)
    assert abs(p - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000)


def test_one_stratum_is_none():
    pair = distances(np.random.default_rng(0), 9), distances(np.random.default_rng(1), 9)
    assert mantel(*pair, 99, strata=np.full(9, 7)) == mantel(*pair, 99)


# Rank correlations of rows


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlations_are_those_of_scipy(ties):
    rng = np.random.default_rng(0)
    similarity, scores = rng.normal(size=(2, 50, 9))
    if ties:
        similarity, scores = similarity.round(), scores.round()
    for values in (similarity, scores):
        values[rng.random(values.shape) < 0.1] = np.nan
    found = rank_correlations(similarity, scores)
    both = ~np.isnan(similarity + scores)
    assert not both.all() and both.sum(axis=1).min() > 2
    expected = [spearmanr(similarity[row][both[row]], scores[row][both[row]]) for row in range(50)]
    np.testing.assert_allclose(found, [each.statistic for each in expected], rtol=0, atol=1e-12)


def test_rank_correlation_of_too_little_is_none():
    similarity = np.array([[1, 2, np.nan], [1, 1, 1], [np.nan] * 3, [1, 2, 3.0]])
    scores = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [6, 5, 4.0]])
    np.testing.assert_allclose(rank_correlations(similarity, scores), [np.nan, np.nan, np.nan, -1])


def test_p_of_correlations_is_the_share_of_all_relabellings():
    rng = np.random.default_rng(1)
    similarity, noise = rng.normal(size=(2, 6, 4))
    scores = similarity + 3 * noise

    def correlation(order) -> float:
        rows = zip(similarity[:, list(order)], scores, strict=True)
        return np.mean([spearmanr(*row).statistic for row in rows])

    every = [correlation(order) for order in itertools.permutations(range(4))]
    exact = np.mean(np.array(every) >= every[0] - 1e-9)
    p = relabelling_test(similarity, scores, permutations=3000)
    assert 0 < exact < 1 and abs(p - exact) < 4 * np.sqrt(exact * (1 - exact) / 3000)


@pytest.mark.slow
def test_p_is_uniform_where_columns_differ_and_nothing_is_related():
    """Columns that are high in all rows make no finding."""
    rng = np.random.default_rng(0)
    p = []
    for seed in range(150):
        similarity, scores = rng.normal(size=(2, 12, 7)) + 3 * rng.normal(size=(2, 1, 7))
        np.fill_diagonal(scores, np.nan)
        p.append(relabelling_test(similarity, scores, permutations=99, seed=seed))
    assert kstest(p, "uniform").pvalue > 0.05
    assert np.mean(np.array(p) <= 0.05) < 0.1


# The difference of two means


def test_the_same_seeds_are_paired():
    rng = np.random.default_rng(0)
    for n in (2, 3, 10):
        ours, theirs = rng.normal(1, 0.2, n), rng.normal(0, 1, n)
        found = mean_difference(dict(enumerate(ours)), dict(reversed([*enumerate(theirs)])))
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        expected = (ours.mean() - theirs.mean(), interval.low, interval.high)
        np.testing.assert_allclose(found[:3], expected, rtol=1e-9)
        assert found[3] is True


def test_other_seeds_are_two_samples():
    rng = np.random.default_rng(1)
    for n, m in ((2, 2), (3, 5), (10, 2)):
        ours, theirs = rng.normal(1, 0.2, n), rng.normal(0, 1, m)
        found = mean_difference(dict(enumerate(ours)), dict(enumerate(theirs, start=1)))
        test = stats.ttest_ind(ours, theirs, equal_var=False)
        interval = test.confidence_interval(0.95)
        expected = (ours.mean() - theirs.mean(), interval.low, interval.high)
        np.testing.assert_allclose(found[:3], expected, rtol=1e-9)
        assert found[3] is False


def test_a_single_run_has_no_interval():
    assert mean_difference({0: 3.0}, {0: 1.0}) == (2.0, None, None, True)
    assert mean_difference({0: 3.0, 1: 5.0}, {0: 1.0}) == (3.0, None, None, False)


def test_runs_that_all_say_the_same():
    assert mean_difference({0: 3.0, 1: 3.0}, {0: 1.0, 1: 1.0}) == (2.0, 2.0, 2.0, True)
    assert mean_difference({0: 3.0, 1: 3.0}, {2: 1.0, 3: 1.0}) == (2.0, 2.0, 2.0, False)


# The bootstrap


def test_the_interval_of_a_mean():
    """Close to Student's for many values that are nearly normal."""
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = bootstrap_interval(values, seed=1, resamples=4000)
    expected = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    np.testing.assert_allclose((low, high), expected, atol=0.02)
    assert (low, high) == bootstrap_interval(values, seed=1, resamples=4000)


# Separation of two classes


@pytest.fixture(params=[None, 6], ids=["continuous", "ties"])
def responses(request) -> tuple[np.ndarray, np.ndarray]:
    """Of 200 sentences the values of 30 units, and which of 7 concepts each has."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(200, 30)) if request.param is None else rng.integers(0, 6, (200, 30))
    return values.astype(np.float32), rng.random((200, 7)) < rng.uniform(0.02, 0.6, 7)


def test_auroc_is_that_of_scikit_learn(responses):
    values, concepts = responses
    for labels in concepts.T:
        expected = [roc_auc_score(labels, unit) for unit in values.T]
        np.testing.assert_allclose(auroc(values, labels), expected, rtol=0, atol=1e-12)


def test_average_precision_is_that_of_scikit_learn(responses):
    values, concepts = responses
    expected = [[average_precision_score(labels, u) for labels in concepts.T] for u in values.T]
    np.testing.assert_allclose(average_precisions(values, concepts), expected, rtol=0, atol=1e-12)


def test_the_maximum_is_tested_with_all_cells_that_depend_on_each_other():
    """Of copies of one cell, the maximum is that of one; of independent cells it is higher."""
    rng = np.random.default_rng(0)
    one, many = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 6, 5))
    high, _ = max_test(np.zeros((6, 5)), np.tile(one[..., None], (1, 6, 5)))
    assert high == pytest.approx(np.quantile(one, 0.95))
    assert high == pytest.approx(stats.norm.ppf(0.95), abs=0.1)
    high, p = max_test(np.full((6, 5), stats.norm.ppf(0.99)), many)
    assert high == pytest.approx(stats.norm.ppf(0.95 ** (1 / 30)), abs=0.1)
    assert p == pytest.approx(1 - 0.99**30, abs=0.03)


def test_p_of_the_maximum_is_uniform_under_the_null():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(300, 100, 4))
    assert kstest([max_test(d[0], d[1:])[1] for d in draws], "uniform").pvalue > 0.01

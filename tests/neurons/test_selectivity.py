"""Separability and its nulls against scikit-learn and loops; LAPE against its loop."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from langsamp_jax.evaluation.statistics import auroc, max_test
from langsamp_jax.neurons.selectivity import (
    Draws,
    depth_contrasts,
    language_entropy,
    make_draws,
    matched_neurons,
    ranks,
    rate_selectivity,
    separate,
)

N, UNITS = 60, 7


def separability(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    labels = np.repeat([1, 0], [len(a), len(b)])
    both = np.concatenate([a, b])
    return np.array([abs(2 * roc_auc_score(labels, column) - 1) for column in both.T])


def separated(a: np.ndarray, b: np.ndarray, draws: Draws):
    return separate(a, b, ranks(a), ranks(b), draws)


@pytest.fixture(scope="module")
def draws():
    return make_draws(N)


@pytest.fixture(scope="module")
def translations():
    """Two languages that share content; the units differ in how far they tell them apart, and
    the last three have ties, the very last nothing else."""
    rng = np.random.default_rng(1)
    content = rng.normal(size=(N, UNITS))
    a, b = (content + rng.normal(size=(N, UNITS)) for _ in range(2))
    a += np.linspace(0, 2.5, UNITS)
    a[:, 4:6], b[:, 4:6] = a[:, 4:6].round(), b[:, 4:6].round()
    a[:, 6], b[:, 6] = 3, 3
    return a.astype(np.float32), b.astype(np.float32)


def test_ranks_are_scipys(translations):
    both = np.concatenate(translations)
    np.testing.assert_array_equal(ranks(both), rankdata(both, axis=0).T)


def test_separability_is_that_of_scikit_learn(translations, draws):
    found = separated(*translations, draws)
    expected = separability(*translations)
    np.testing.assert_allclose(found.separability, expected, atol=1e-12)
    assert expected[0] < 0.2 and expected[3] > 0.3 and expected[6] == 0


def test_the_null_swaps_the_labels_of_translations(translations, draws):
    a, b = translations
    found = separated(a, b, draws)
    for swaps, null in zip(draws.swaps[:5], found.null, strict=False):
        swapped = np.where(swaps[:, None] < 0, b, a), np.where(swaps[:, None] < 0, a, b)
        assert null == pytest.approx(separability(*swapped).mean(), abs=1e-6)
    assert found.null.mean() == pytest.approx(found.expected, rel=0.05)


def test_the_bootstrap_is_that_which_ranks_again(translations, draws):
    """Of each resample nearly the same, so the same standard deviation."""
    a, b = translations
    found, again = separated(a, b, draws), []
    for weights in draws.weights:
        rows = np.repeat(np.arange(N), weights.astype(int) + 1)
        areas = auroc(np.concatenate([a[rows], b[rows]]), np.arange(2 * N) < N)
        again.append(np.abs(2 * areas - 1).mean())
    assert np.corrcoef(found.resampled, again)[0, 1] > 0.97
    assert found.resampled.std() == pytest.approx(np.std(again), rel=0.1)


@pytest.mark.parametrize(("shift", "high"), [(0.0, False), (0.5, True)])
def test_languages_that_differ_in_nothing_lie_in_the_null(shift, high):
    """Content is in common; its share decides how wide the null is, not where languages lie."""
    rng, draws, p = np.random.default_rng(3), make_draws(100), []
    for _ in range(20):
        content = 3 * rng.normal(size=(100, 30))
        a, b = (content + rng.normal(size=content.shape) for _ in range(2))
        found = separated(a + shift, b, draws)
        p.append(max_test(np.array([found.separability.mean()]), found.null[:, None])[1])
    assert (np.mean(p) < 0.01) if high else (np.mean(np.array(p) < 0.05) <= 0.15)


def test_draws_are_the_same_every_time(draws):
    again = make_draws(N)
    for one, other in zip(draws, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(np.unique(draws.swaps)) == {-1, 1} and abs(draws.swaps.mean()) < 0.05
    assert (draws.weights.sum(axis=1) == 0).all() and draws.weights.min() == -1


def test_lape_is_its_loop():
    rng = np.random.default_rng(0)
    rates = rng.beta(0.3, 1, size=(2, 100, 5))
    rates[0, 0] = 0  # never fires
    rates[1, 7] = [0.99, 0, 0, 0, 0]
    rates[1, 8] = [0.99, 0.99, 0, 0, 0]
    found, own = language_entropy(rates)
    bar = sorted(rates.ravel())[round(0.95 * rates.size) - 1]  # kthvalue counts from 1
    entropy = np.full((2, 100), np.inf)
    for layer, neuron in np.ndindex(2, 100):
        rate = rates[layer, neuron]
        if (rate > bar).any():
            shares = rate / rate.sum()
            entropy[layer, neuron] = -sum(q * math.log(q) for q in shares if q)
    np.testing.assert_allclose(found, entropy, atol=1e-12)
    lowest = sorted(np.ndindex(2, 100), key=lambda place: entropy[place])[:2]
    for place in np.ndindex(2, 100):
        assert (own[place] == ((rates[place] > bar) & (place in lowest))).all(), place
    assert own[1, 7].tolist() == [True, *[False] * 4] and lowest[0] == (1, 7)
    even = language_entropy(np.ones((1, 100, 4)))  # none exceeds the bar
    assert not even[1].any() and np.isinf(even[0]).all()


def test_matched_neurons_have_rates_near_by():
    rng = np.random.default_rng(0)
    rates, chosen = rng.random((2, 200)), np.zeros((2, 200), bool)
    chosen[0, [3, 50, 90]] = True
    sets = [matched_neurons(rates, chosen, seed) for seed in range(40)]
    for matched in sets:
        assert matched.sum(axis=1).tolist() == [3, 0] and not (matched & chosen).any()
        distance = np.abs(np.sort(rates[0, matched[0]]) - np.sort(rates[0, chosen[0]]))
        assert distance.max() < 0.1
    assert len({matched.tobytes() for matched in sets}) == 40
    np.testing.assert_array_equal(sets[7], matched_neurons(rates, chosen, 7))
    all_but_one = np.arange(200) < 199
    assert matched_neurons(rates, np.tile(all_but_one, (2, 1)), 0).sum(axis=1).tolist() == [1, 1]


def test_contrasts_are_of_thirds():
    assert depth_contrasts(2) is None
    for layers, outer in ((3, 1), (4, 1), (5, 2), (6, 2), (12, 4), (24, 8)):
        values = np.random.default_rng(layers).random(layers)
        first, middle, last = values[:outer], values[outer:-outer], values[-outer:]
        expected = [
            (first.mean() + last.mean()) / 2 - middle.mean(),
            first.mean() - middle.mean(),
            last.mean() - middle.mean(),
        ]
        assert depth_contrasts(layers) @ values == pytest.approx(expected)


def test_rate_selectivity_by_hand():
    found = rate_selectivity(np.array([0.2, 0.0, 0.5]), np.array([0.6, 0.0, 0.5]))
    assert found == pytest.approx([0.5, 0, 0])

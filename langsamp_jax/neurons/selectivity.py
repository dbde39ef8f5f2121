"""How well neurons tell languages apart: measures and their nulls, of arrays.

Sentences come as translations: row i of every language says the same. The separability of a neuron
is |2 AUROC - 1| of its values in two languages, ties counted as a half (exact).
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

DRAWS = 200  # of each null, and of each bootstrap
NEAREST = 10  # neurons in firing rate, of which a matched one is drawn
RATE, BAR = 0.01, 0.95  # of LAPE: the share of neurons that are kept, the quantile of "active"
SELECTIVE = 0.8  # separability from which on a neuron counts as selective


class Draws(NamedTuple):
    """Random draws over sentences: the same at every step, layer and pair, so that maxima over
    them can be tested together."""

    swaps: np.ndarray  # float32 [DRAWS, n], -1 where the two languages of a sentence change places
    weights: np.ndarray  # float32 [DRAWS, n], how often a resample has a sentence, less 1
    first: np.ndarray  # bool [n], one half of the sentences, at random


class Separation(NamedTuple):
    """Two languages at one layer."""

    separability: np.ndarray  # float64 [units]
    null: np.ndarray  # float64 [DRAWS], its mean over units with the labels swapped at random
    resampled: np.ndarray  # float64 [DRAWS], its mean over units of resampled sentences
    expected: float  # the mean of ``null`` in theory


def make_draws(sentences: int) -> Draws:
    """Draws from a constant seed."""
    rng = np.random.default_rng(0)
    swaps = rng.choice(np.float32([-1, 1]), (DRAWS, sentences))
    weights = rng.multinomial(sentences, np.full(sentences, 1 / sentences), DRAWS) - 1
    first = rng.permutation(sentences) < sentences // 2
    return Draws(swaps, weights.astype(np.float32), first)


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks of each unit's values from 1 on, ties averaged: float32 [units, n].

    As SciPy's, which ranks the few units with ties; the others take a seventh of its time.
    """
    columns = np.ascontiguousarray(values.T)
    order = columns.argsort(axis=1)
    ordered = np.take_along_axis(columns, order, axis=1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    ranks = np.empty(columns.shape, np.float32)
    count = np.arange(1, len(values) + 1, dtype=np.float32)
    np.put_along_axis(ranks, order, np.broadcast_to(count, columns.shape), axis=1)
    if tied.any():
        ranks[tied] = rankdata(columns[tied], axis=1)
    return ranks


def separate(
    a: np.ndarray, b: np.ndarray, within_a: np.ndarray, within_b: np.ndarray, draws: Draws
) -> Separation:
    """Measures how well each unit tells two languages apart.

    With r the ranks among both, d_i = r(a_i) - r(b_i) and n sentences, 2 AUROC - 1 = sum d_i / n^2.
    To swap the two languages of sentence i is to change the sign of d_i: the pooled sample, and so
    the ranks, stay. The bootstrap moves 2 AUROC - 1 by the placements of each sentence (DeLong
    1988), its first-order term, and ranks nothing again.

    Args:
      a, b: float [n, units], translations in the same rows.
      within_a, within_b: their ``ranks`` for themselves.
    """
    n = len(a)
    joint = ranks(np.concatenate([a, b]))
    first, second = joint[:, :n], joint[:, n:]
    differences = first - second
    shift = differences.sum(axis=1, dtype=np.float64) / n**2
    placements = first - within_a - second + within_b  # how many of b below, of a not above; / n
    influence = 2 * (placements - placements.mean(axis=1, keepdims=True)) / n
    swapped = np.abs(differences @ draws.swaps.T, dtype=np.float64) / n**2
    moved = shift[:, None] + influence @ draws.weights.T / n
    theory = np.sqrt(2 / np.pi) * np.sqrt((differences.astype(np.float64) ** 2).sum(axis=1)) / n**2
    means = swapped.mean(axis=0), np.abs(moved).mean(axis=0), float(theory.mean())
    return Separation(np.abs(shift), *means)


def language_entropy(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes LAPE, the entropy of a neuron's firing rates over languages (arXiv 2402.16438).

    The neurons with the lowest entropy are specific, of those that are active anywhere: whose rate
    exceeds in a language the ``BAR`` quantile of all rates. Such a neuron is one of every language
    in which it is active.

    Args:
      rates: float [layers, neurons, languages].

    Returns:
      entropy in nats, float64 [layers, neurons], inf where a neuron is active nowhere; and bool
      [layers, neurons, languages], whose neurons the ``RATE`` of them with the lowest are.
    """
    rates = rates.astype(np.float64)
    total = rates.sum(axis=-1, keepdims=True)
    shares = rates / np.where(total > 0, total, 1)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1)
    place = max(0, round(BAR * rates.size) - 1)
    active = rates > np.partition(rates, place, axis=None)[place]
    entropy = np.where(active.any(axis=-1), entropy, np.inf)
    kept = max(1, round(RATE * entropy.size))
    lowest = np.argsort(entropy, axis=None, kind="stable")[:kept]
    specific = np.zeros(entropy.size, bool)
    specific[lowest] = np.isfinite(entropy.ravel()[lowest])
    return entropy, active & specific.reshape(entropy.shape)[..., None]


def matched_neurons(rates: np.ndarray, chosen: np.ndarray, seed: int) -> np.ndarray:
    """Draws as many other neurons of each layer, each of the ``NEAREST`` in rate to one of the
    chosen that are not taken yet: bool [layers, neurons].

    Args:
      rates: float [layers, neurons].
      chosen: bool [layers, neurons].
    """
    rng, matched = np.random.default_rng(seed), np.zeros_like(chosen)
    for layer, (rate, own) in enumerate(zip(rates, chosen, strict=True)):
        for neuron in np.flatnonzero(own):
            free = np.flatnonzero(~own & ~matched[layer])
            near = free[np.argsort(np.abs(rate[free] - rate[neuron]), kind="stable")[:NEAREST]]
            if len(near):
                matched[layer, rng.choice(near)] = True
    return matched


def depth_contrasts(layers: int) -> np.ndarray | None:
    """Returns the weights of layers in three contrasts, float [3, layers]; None of fewer than 3.

    Of thirds of the layers (the outer ones of round(layers / 3)), fixed beforehand: (first + last)
    / 2 - middle, first - middle, last - middle.
    """
    if layers < 3:
        return None
    outer = round(layers / 3)
    thirds = np.zeros((3, layers))
    for row, part in enumerate((slice(outer), slice(outer, -outer), slice(-outer, None))):
        thirds[row, part] = 1 / len(thirds[row, part])
    first, middle, last = thirds
    return np.stack([(first + last) / 2, first, last]) - middle


def rate_selectivity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns |p_A - p_B| / (p_A + p_B + 1e-9) of firing rates in two languages, of any shape."""
    return np.abs(first - second) / (first + second + 1e-9)

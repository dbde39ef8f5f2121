"""Concept experts: the units that tell best which sentences have a concept, and whose they are.

A unit is a detector of a concept by its response to each sentence; the experts of a concept in a
language are the units of the highest average precision there (Suau et al. 2020, lang_neuron). How
many are the same in two languages is compared with the experts of two different concepts in them:
units that detect anything at all look shared, and are not. That null and what is made of it here
are ours.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

SHARE = 0.01  # of the units are experts
FEWEST = 5  # experts, at least

PERMUTATIONS = 500
BY_LAYER = (
    *("chance", "overlap", "overlap_other", "shared", "low", "high"),
    *("cross_ap", "cross_ap_other", "reliability", "expert_ap"),
)
_RESAMPLES = 2000


def expert_count(units: int) -> int:
    """Returns K, how many of the units are experts of a concept."""
    return min(units, max(FEWEST, round(SHARE * units)))


def experts(precisions: np.ndarray, count: int) -> np.ndarray:
    """Returns which units are the experts; of equals the first.

    Args:
      precisions: float [..., units, concepts].

    Returns:
      bool [..., concepts, units], ``count`` of each row.
    """
    by_concept = np.swapaxes(precisions, -1, -2)
    order = np.argsort(-by_concept, axis=-1, kind="stable")[..., :count]
    chosen = np.zeros(by_concept.shape, bool)
    np.put_along_axis(chosen, order, True, axis=-1)
    return chosen


class Shared(NamedTuple):
    """A measure of the experts of a concept in language A, taken in B; A's are found on one half of
    the lines, B's on the other.

    Attributes:
      same: float [A, B, concepts], for the same concept.
      other: the same, the mean over the experts of all other concepts in A.
      between: from pairs (A, B), int [pairs, 2], to the mean over them for each two concepts,
        float [concepts in A, concepts in B].
    """

    same: np.ndarray
    other: np.ndarray
    between: Callable[[np.ndarray], np.ndarray]


def shared(first: np.ndarray, second: np.ndarray, count: int) -> Shared:
    """Returns the mean of what ``second`` has at the experts ``first``: of B's experts the overlap
    O = |E_A and E_B| / K, of B's average precisions (the threshold-free) cross-AP.

    Args:
      first: bool [languages, concepts, units], the experts of A.
      second: bool or float of the same shape, of B.
    """
    languages, concepts, units = first.shape
    mine, theirs = first.astype(np.float32), second.astype(np.float32)
    same = np.zeros((languages, languages, concepts))
    other = np.zeros_like(same)
    for a in range(languages):
        matrix = mine[a] @ theirs.reshape(-1, units).T / count
        matrix = matrix.reshape(concepts, languages, concepts)
        same[a] = np.einsum("cbc->bc", matrix)
        other[a] = (matrix.sum(axis=0) - same[a]) / (concepts - 1)

    def between(pairs: np.ndarray) -> np.ndarray:
        total = np.zeros((concepts, concepts))
        for a in np.unique(pairs[:, 0]):
            total += mine[a] @ theirs[pairs[pairs[:, 0] == a, 1]].sum(axis=0).T
        return total / (count * len(pairs))

    return Shared(same, other, between)


def excess(same: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns O* = (O_same - O_other) / (1 - O_other): 0 where concepts do not matter, 1 where all
    experts are shared."""
    return (same - other) / np.maximum(1 - other, 1e-9)


def over_concepts(same: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Returns O* of means over concepts, and the ends of its 95 % percentile bootstrap over
    concepts.

    Args:
      same, other: float [concepts].
    """
    drawn = np.random.default_rng(0).integers(len(same), size=(_RESAMPLES, len(same)))
    resampled = excess(same[drawn].mean(axis=1), other[drawn].mean(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(excess(same.mean(), other.mean())), float(low), float(high)


def relabelled(between: np.ndarray, permutations: int) -> np.ndarray:
    """Returns O* as if each concept were another one in B, float64 [permutations].

    Args:
      between: float [concepts, concepts], see ``Shared``. The permutations are always the same.
    """
    concepts = len(between)
    rng, rows = np.random.default_rng(1), np.arange(concepts)
    same = np.stack([between[rows, rng.permutation(concepts)] for _ in range(permutations)])
    same = same.mean(axis=1)
    return excess(same, (between.sum() / concepts - same) / (concepts - 1))


def sharing(
    precisions: np.ndarray, null: np.ndarray, prevalence: np.ndarray, pairs: Mapping[str, Any]
) -> dict[str, Any]:
    """Takes every measure of the experts among some units.

    Args:
      precisions: float [languages, 2 halves of the lines, units, concepts].
      null: the same with the labels permuted over the lines, jointly for all languages.
      prevalence: float [concepts], in the second half.
      pairs: kinds of pairs of languages, each int [pairs, 2].

    Returns:
      the number of ``experts`` K and the ``chance`` K / N; ``overlap``, ``overlap_other`` and
      ``shared`` (O*) with ``low`` and ``high``; ``cross_ap`` and ``cross_ap_other`` above the
      prevalence; ``reliability``, the mean over languages and concepts of the best unit's average
      precision, and ``expert_ap``, of the K best, both less the same under the null;
      ``between_languages``, O* [languages, languages], on the diagonal between the halves of one;
      ``between_concepts``, O [concepts, concepts]; O* by kind of ``pairs``; ``permuted``, O* with
      the labels of B permuted; ``null`` [permutations], see ``relabelled``.
    """
    languages, _, units, _ = precisions.shape
    count = expert_count(units)
    chosen = experts(precisions, count)
    overlap = shared(chosen[:, 0], chosen[:, 1], count)
    cross = shared(chosen[:, 0], np.swapaxes(precisions[:, 1], 1, 2), count)
    broken = shared(chosen[:, 0], experts(null[:, 1], count), count)
    everyone = np.argwhere(~np.eye(languages, dtype=bool))
    main, between = _over_pairs(overlap, everyone), overlap.between(everyone)
    same, other = (x.mean(axis=2) for x in (overlap.same, overlap.other))
    return {
        "experts": count,
        "chance": count / units,
        "overlap": float(same[*everyone.T].mean()),
        "overlap_other": float(other[*everyone.T].mean()),
        **{name: main[name] for name in ("shared", "low", "high")},
        "cross_ap": float((cross.same[*everyone.T] - prevalence).mean()),
        "cross_ap_other": float((cross.other[*everyone.T] - prevalence).mean()),
        "reliability": float((precisions.max(axis=2) - null.max(axis=2)).mean()),
        "expert_ap": float((_highest(precisions, count) - _highest(null, count)).mean()),
        "between_languages": excess((same + same.T) / 2, (other + other.T) / 2),
        "between_concepts": between,
        "pairs": {kind: _over_pairs(overlap, where) for kind, where in pairs.items()},
        "permuted": _over_pairs(broken, everyone),
        "null": relabelled(between, PERMUTATIONS),
    }


def _over_pairs(overlap: Shared, pairs: np.ndarray) -> dict[str, float]:
    """Returns O* of the mean over pairs, int [pairs, 2], each in both directions: ``shared``, its
    ``low`` and ``high``, and the standard ``error`` of 0, which relabelled concepts have."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    means = (part[*both.T].mean(axis=0) for part in (overlap.same, overlap.other))
    found = dict(zip(("shared", "low", "high"), over_concepts(*means), strict=True))
    null = relabelled(overlap.between(both), PERMUTATIONS)
    return {**found, "error": float(null.std(ddof=1))}


def _highest(precisions: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean of the highest over the units, which are the third axis."""
    return np.partition(precisions, -count, axis=2)[:, :, -count:].mean(axis=2)

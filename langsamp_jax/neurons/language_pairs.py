"""Neurons in several languages, and how well they tell pairs of them apart."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from langsamp_jax.evaluation.encoder import Read, sentence_reader
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import auroc, rank_correlations
from langsamp_jax.io.progress import Progress
from langsamp_jax.models.edits import detectors
from langsamp_jax.models.taps import sum_over_positions
from langsamp_jax.neurons.activations import Positions, among, firing, over_tokens, pieces_of
from langsamp_jax.neurons.selectivity import Draws, ranks, separate

FEWEST = 20  # sentences of a measure
COMPARED = 8  # languages of which all pairs are compared: 28
SHARED = 6  # pairs that are compared over the pieces that both use
_FIRING, _SUMS = (("neurons", firing),), (("neurons", sum_over_positions),)
_LINEAR = 10.0  # GELU gives x itself there, to 7 digits
_RIDGE = 1e-2  # of the mean variance: there may be more dimensions than sentences

Lines = Mapping[str, Sequence[str]]  # by language-script, translations of each other


class Pairs(NamedTuple):
    """Pairs of languages. The last axis of the two in the middle is that of ``Draws``."""

    separability: np.ndarray  # float32 [pairs, layers, neurons]
    null: np.ndarray  # float64 [pairs, layers, DRAWS], means over neurons of swapped labels
    resampled: np.ndarray  # float64 [pairs, layers, DRAWS], of resampled sentences
    expected: np.ndarray  # float64 [pairs, layers], the mean of the null in theory


def compared_languages(names: Sequence[str]) -> list[str]:
    """Chooses at most ``COMPARED`` language-scripts, sorted.

    Two are taken of each script in turn, then two more of each. Scripts with a language that is
    there in another script too come first, then those with the most languages; within a script,
    such languages, then by name.
    """
    twins = collections.Counter(name.partition("_")[0] for name in names)
    scripts: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (twins[name.partition("_")[0]] < 2, name)):
        scripts.setdefault(name.partition("_")[2], []).append(name)

    def place(script: str) -> tuple[bool, int, str]:
        own = scripts[script]
        return twins[own[0].partition("_")[0]] < 2, -len(own), script

    order = [
        name
        for first in range(0, len(names), 2)
        for script in sorted(scripts, key=place)
        for name in scripts[script][first : first + 2]
    ]
    return sorted(order[:COMPARED])


def kind_of_pair(one: str, other: str) -> str:
    """Returns ``two_scripts`` of one language, ``within_script`` or ``across_scripts``."""
    (language, _, script), (second, _, other_script) = one.partition("_"), other.partition("_")
    if language == second:
        return "two_scripts"
    return "within_script" if script == other_script else "across_scripts"


def activation_reader(model: LoadedModel, positions: Positions) -> Read:
    """Returns a function from sentences to ``firing`` of their neurons at some positions."""
    return sentence_reader(model, _FIRING, positions)


def read_languages(
    read: Read, lines: Lines, means: Mapping[str, np.ndarray], left_out: int = 0
) -> dict[str, Any]:
    """Reads every language.

    Args:
      left_out: the first so many sentences are not counted in the rates.
      means: of some languages the place for the mean activations [layers, sentences, neurons].

    Returns:
      by language: ``rates`` [layers, neurons], means over sentences of how often a neuron fires;
      ``flatness`` [layers, 2]; ``tokens`` that were read, ``truncated`` sentences.

    Raises:
      UserError: as ``read``.
    """
    languages = {}
    with Progress("reading neurons", len(lines), "languages") as progress:
        for name, text in lines.items():
            readings, truncated = read(text, name)
            values = readings["neurons"]
            if name in means:
                means[name][:] = values["mean"]
            languages[name] = {
                "rates": values["share"][:, left_out:].mean(axis=1),
                "flatness": over_tokens(values),
                "tokens": int(values["count"][0].sum()),
                "truncated": int(truncated.sum()),
            }
            progress.advance(1)
    return languages


def measure_pairs(means: np.ndarray, pairs: Sequence[tuple[int, int]], draws: Draws) -> Pairs:
    """Separates pairs of languages.

    Args:
      means: float32 [languages, layers, sentences, neurons].
      pairs: of places among the languages.
    """
    by_layer = []
    with Progress("separating languages", means.shape[1] * len(pairs), "pairs") as progress:
        for layer in range(means.shape[1]):
            values, separated = means[:, layer], []
            within = [ranks(of_language) for of_language in values]
            for a, b in pairs:
                separated.append(separate(values[a], values[b], within[a], within[b], draws))
                progress.advance(1)
            by_layer.append([np.stack(column) for column in zip(*separated, strict=True)])
    stacked = [np.stack(column, axis=1) for column in zip(*by_layer, strict=True)]
    return Pairs(stacked[0].astype(np.float32), *stacked[1:])


def measure_halves(means: np.ndarray, draws: Draws) -> Pairs:
    """Separates a half of the sentences of each language from the other, as if they were two
    languages: what other content alone makes, and a null that must hold, as sentences that stand
    in random order change places.

    Args:
      means: as of ``measure_pairs``.

    Returns:
      as ``measure_pairs``, of each language with itself.
    """
    size = len(draws.first) // 2
    own = Draws(draws.swaps[:, :size], draws.weights[:, :size], draws.first[:size])
    found = [
        measure_pairs(np.stack([of[:, draws.first], of[:, ~draws.first][:, :size]]), [(0, 1)], own)
        for of in means
    ]
    return Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))


def rank_disagreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns 1 - Spearman's rho over neurons of their mean activations in two texts, float64
    [layers]; of two arrays [layers, sentences, neurons]."""
    return 1 - rank_correlations(first.mean(axis=1), second.mean(axis=1))


def measure_shared_pieces(
    model: LoadedModel,
    lines: Lines,
    pairs: Sequence[tuple[str, str]],
    positions: Positions,
    draws: Draws,
) -> list[dict[str, Any]]:
    """Separates pairs over those positions whose piece both languages use: what is left is not the
    vocabulary.

    Of the pairs, those with the most pieces in common are taken, and of their sentences those that
    have such a position in both languages; pairs with fewer than ``FEWEST`` are left out.

    Returns:
      for each pair: ``pair``, its place among the pairs; ``pieces`` in common; ``sentences``;
      ``tokens`` of both that were read; ``separability`` and its ``null``, means over neurons
      [layers].
    """
    used = {name: pieces_of(model.tokenizer, text) for name, text in lines.items()}
    common = [used[one] & used[other] for one, other in pairs]
    most = sorted(range(len(pairs)), key=lambda place: (-common[place].sum(), place))[:SHARED]
    measured = []
    for place in sorted(most):
        read = sentence_reader(model, _SUMS, among(positions, common[place]))
        sides = [read(lines[name], name).values["neurons"] for name in pairs[place]]
        counts = np.stack([count[0, :, 0] for _, count in sides])
        kept = (counts > 0).all(axis=0)
        if kept.sum() < FEWEST:
            continue
        own = Draws(draws.swaps[:, kept], draws.weights[:, kept], draws.first[kept])
        means = np.stack([total[:, kept] / count[:, kept] for total, count in sides])
        found = measure_pairs(means, [(0, 1)], own)
        measured.append(
            {
                "pair": place,
                "pieces": int(common[place].sum()),
                "sentences": int(kept.sum()),
                "tokens": int(counts[:, kept].sum()),
                "separability": found.separability[0].mean(axis=1).tolist(),
                "null": found.null[0].mean(axis=1).tolist(),
            }
        )
    return measured


def planted_neuron(model: LoadedModel, lines: Lines, positions: Positions) -> float:
    """Returns the separability of a neuron that is made to tell two languages apart, on the odd
    sentences, of which it has seen nothing.

    It is a neuron of the first layer without effect on others, whose weights are the difference of
    the two languages' mean inputs at the even sentences, in units of their covariance: Fisher's
    direction. The inputs are read by neurons too: x = gelu(x) - gelu(-x).

    Args:
      lines: of the two languages.
    """
    hidden, width = model.config.hidden_size, model.config.intermediate_size // 2
    plus = np.eye(hidden, min(hidden, width), dtype=np.float32)
    size = plus.shape[1]

    def first_layer(kernel: np.ndarray, bias: np.ndarray, which: slice) -> np.ndarray:
        """Returns the means of neurons with these weights, float32 [2, sentences, neurons]."""
        changed = dataclasses.replace(model, params=detectors(model.params, 0, kernel, bias))
        read = sentence_reader(changed, _SUMS, positions)  # all layers: that is compiled
        sides = [read(text[which], name).values["neurons"] for name, text in lines.items()]
        return np.stack([total[0] / np.maximum(count[0], 1) for total, count in sides])

    opposite = np.concatenate([plus, -plus], axis=1), np.zeros(2 * size, np.float32)
    both = first_layer(*opposite, slice(0, None, 2))[..., : 2 * size]
    inputs = both[..., :size] - both[..., size:]
    centre, difference = inputs.mean(axis=(0, 1)), inputs[0].mean(axis=0) - inputs[1].mean(axis=0)
    within = (inputs - inputs.mean(axis=1, keepdims=True)).reshape(-1, size)
    covariance = within.T @ within / len(within)
    ridge = _RIDGE * np.trace(covariance) / size * np.eye(size)
    direction = np.linalg.solve(covariance + ridge, difference)
    direction /= max(float(((inputs - centre) @ direction).std()), 1e-12)
    bias = np.array([_LINEAR - centre @ direction], np.float32)
    odd = slice(1, None, 2)
    planted = first_layer((plus @ direction)[:, None].astype(np.float32), bias, odd)[..., 0]
    labels = np.repeat([True, False], planted.shape[1])
    return float(abs(2 * auroc(planted.reshape(-1, 1), labels)[0] - 1))

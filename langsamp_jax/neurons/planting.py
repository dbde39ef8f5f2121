"""A planted expert: a neuron that all languages must share, put into a copy of the model.

It is the positive control of ``concepts.py``, and goes the whole way from the parameters over the
reading of sentences to the experts. The concept is a token that all languages have, such as a
comma. The neuron is in the first layer: its weights are the difference of the mean inputs of the
feed-forward at that token and at others, in all languages together, in units of their covariance
(Fisher's discriminant); its threshold is between the two means.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.evaluation.batching import split_lines
from langsamp_jax.evaluation.encoder import sentence_reader
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import average_precisions
from langsamp_jax.models.edits import detectors
from langsamp_jax.models.taps import mean_over_positions
from langsamp_jax.neurons.activations import all_tokens
from langsamp_jax.neurons.experts import expert_count, experts

SENTENCES = 100  # of each language
_LEARNED = 50  # of those, from which the weights are
_SHARES = 0.05, 0.6  # of the lines of a language that have the token
_LINEAR = 8.0  # with this bias GELU gives back its argument
_GAIN = 20.0  # of the neuron, from the mean input at other tokens to that at the token


def planted(model: LoadedModel, lines: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Plants a neuron and looks for it among the experts of the first layer.

    Args:
      lines: by language-script.

    Returns:
      ``token``; by language-script, on lines that it was not made from, the average ``precision``
      of the neuron, and whether it is an ``expert``. Or ``left_out``, the reason why there is none.
    """
    lines = {name: text[:SENTENCES] for name, text in lines.items()}
    tokenizer = model.tokenizer
    ids = {name: split_lines(*tokenizer.encode(text)) for name, text in lines.items()}
    parts = slice(_LEARNED), slice(_LEARNED, None)
    shares = np.array([
        [_shares_of_lines(rows[part], len(tokenizer.pieces)) for part in parts]
        for rows in ids.values()
    ])  # fmt: skip
    among = (shares >= _SHARES[0]) & (shares <= _SHARES[1]) & tokenizer.is_text
    fits = among.all(axis=1)  # [languages, pieces]
    token = int(np.lexsort((shares.min(axis=(0, 1)), fits.sum(axis=0)))[-1])
    names = [name for name, fit in zip(lines, fits[:, token], strict=True) if fit]
    config = model.config
    if len(names) < 2 or config.intermediate_size < config.hidden_size:
        return {"left_out": "no token is in a part of the lines of two languages"}
    params = detectors(model.params, 0, *_neuron(model, {n: lines[n] for n in names}, token))
    read = _reader(model, params, mean_over_positions, all_tokens(model.tokenizer))
    precision, expert = {}, {}
    for name in names:
        tested = lines[name][_LEARNED:]
        has = np.array([token in row[: model.max_length - 1] for row in ids[name][_LEARNED:]])
        values = average_precisions(read(tested, name).values["neurons"][0], has[:, None])
        precision[name] = round(float(values[0, 0]), 4)
        expert[name] = bool(experts(values, expert_count(len(values)))[0, 0])
    return {"token": tokenizer.surfaces[token].strip(), "precision": precision, "expert": expert}


def _shares_of_lines(lines: Sequence[np.ndarray], pieces: int) -> np.ndarray:
    """Returns the share of the lines that have each piece, float [pieces]; 0 of no lines."""
    found = np.concatenate([np.unique(line) for line in lines] or [np.zeros(0, int)])
    return np.bincount(found, minlength=pieces) / max(1, len(lines))


def _neuron(
    model: LoadedModel, lines: Mapping[str, Sequence[str]], token: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights [hidden_size, 1] and the bias [1] of the neuron."""
    width = model.config.hidden_size
    params = detectors(model.params, 0, np.eye(width), np.full(width, _LINEAR))
    means, spread = [], 0.0
    for there in (True, False):
        read = _reader(model, params, _moments(width), lambda ids, there=there: (
            all_tokens(model.tokenizer)(ids) & ((ids == token) == there)))  # fmt: skip
        found = [read(text[:_LEARNED], name).values["neurons"] for name, text in lines.items()]
        sums = [np.sum([x[i][0].sum(axis=0, dtype=float) for x in found], axis=0) for i in range(3)]
        mean = sums[1] / sums[0]
        means.append(mean)
        spread = spread + sums[2] / sums[0] - np.outer(mean, mean)
    at, elsewhere = means
    ridge = 1e-3 * np.trace(spread) / width * np.eye(width)
    direction = np.linalg.solve(spread + ridge, at - elsewhere)
    weights = _GAIN * direction / (direction @ (at - elsewhere))
    return weights[:, None], -(weights @ ((at + elsewhere) / 2))[None]


@functools.cache  # one function for all steps, which is compiled once
def _moments(width: int) -> Any:
    """Returns a tap: of the first neurons the number of positions, sums, and sums of products."""

    def moments(values: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        weight = positions[..., None].astype(jnp.float32)
        given = (values[..., :width].astype(jnp.float32) - _LINEAR) * weight
        products = jnp.einsum("rlv,rlw->rvw", given, given, precision="highest")
        return weight.sum(axis=1), given.sum(axis=1), products

    return moments


def _reader(model: LoadedModel, params: Any, tap: Any, positions: Any) -> Any:
    return sentence_reader(
        dataclasses.replace(model, params=params), (("neurons", tap),), positions, top=1
    )

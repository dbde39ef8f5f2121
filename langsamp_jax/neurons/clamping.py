"""Whether neurons of a language matter to it: the loss of every language while they are clamped."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from langsamp_jax.data.feed import Batch
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import bucketed_batches
from langsamp_jax.evaluation.encoder import sentence_ids
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.hardware.environment import random_key
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.edits import clamp
from langsamp_jax.neurons.selectivity import DRAWS, matched_neurons, random_neurons
from langsamp_jax.objectives.masked_lm import MaskedExamples, MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.sharding import use_mesh

SENTENCES = 100  # of each language; a loss is computed for each language and set of neurons
KINDS = ("own", "matched", "random")
_MASKING = ObjectiveConfig(mask_share=1.0, random_share=0.0)  # 15 % of the tokens, all hidden


class Losses(NamedTuple):
    """Losses of hidden tokens by sentence."""

    sums: np.ndarray  # float64 [sets of neurons, languages, sentences], in nats
    counts: np.ndarray  # float64 [languages, sentences]


def clamp_own(
    model: LoadedModel,
    lines: Mapping[str, Sequence[str]],
    rates: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Measures how the loss of every language rises with the neurons of each held at 0.

    Args:
      lines: of each language as many, translations of each other.
      rates: of each language how often neurons fire, float [layers, neurons].
      own: of each language which neurons it has, bool [layers, neurons].

    Returns:
      ``left_out``, why there is no such measure; or ``edited`` and ``tested``, languages;
      ``neurons`` of each of the edited; the ``loss`` of each of the tested, in nats; by kind of
      neurons its rise [edited][tested]: of the language's ``own``, ``matched`` in firing rate, and
      ``random`` ones, as many of the same layers; ``excess`` over the latter two (see
      ``diagonal_excess``); ``sentences``; and ``skipped``, languages that are not edited and why.
    """
    if not model.has_head:
        return {"left_out": "the model is a plain encoder, which predicts no pieces"}
    tested, skipped = {}, {}
    for name, text in lines.items():
        try:
            model.head_ids(name)
            tested[name] = text[:SENTENCES]
        except UserError as error:
            skipped[name] = str(error)
    edited = [name for name in tested if own[name].any()]
    skipped |= {name: "it has no neurons of its own" for name in tested if name not in edited}
    if len(tested) < 2:
        return {"left_out": f"the model predicts in fewer than 2 of the languages; {skipped}"}
    if not edited:
        return {"left_out": "no language that the model predicts in has neurons of its own"}
    sets = [np.zeros_like(own[edited[0]])]
    for seed, name in enumerate(edited):
        chosen = own[name]
        sets += [chosen, matched_neurons(rates[name], chosen), random_neurons(chosen, seed)]
    losses = clamped_losses(model, tested, sets)
    rises = _rises(losses, len(KINDS))
    diagonal = [[*tested].index(name) for name in edited]
    return {
        "edited": edited,
        "tested": [*tested],
        "neurons": [int(chosen.sum()) for chosen in sets[1 :: len(KINDS)]],
        "loss": losses.sums[0].sum(axis=1) / np.maximum(losses.counts.sum(axis=1), 1),
        **{kind: rises[0, place] for place, kind in enumerate(KINDS)},
        "excess": {
            kind: diagonal_excess(rises[:, 0], rises[:, place], diagonal)
            for place, kind in enumerate(KINDS)
            if place
        },
        "sentences": losses.counts.shape[1],
        "skipped": skipped,
    }


def clamped_losses(
    model: LoadedModel, lines: Mapping[str, Sequence[str]], sets: Sequence[np.ndarray]
) -> Losses:
    """Measures the loss of hidden tokens of every language with each set of neurons held at 0.

    The same tokens are hidden whatever is clamped; all sets run in one compilation.

    Args:
      lines: of each language as many.
      sets: bool [layers, neurons] each.
    """
    vocabulary, sentences, tables = model.tokenizer.vocabulary, [], []
    objective = MaskedLm(model.model, vocabulary, _MASKING)
    for name, text in lines.items():
        sentences += sentence_ids(model, text)[0]
        tables += [model.head_ids(name)] * len(text)
    shape = len(lines), len(sentences) // len(lines)
    limits = model.max_length, model.tokens_at_once, model.mesh.size
    sums, counts = np.zeros((len(sets), len(sentences))), np.zeros(len(sentences))
    with use_mesh(model.mesh):
        batches = []
        for batch in bucketed_batches(sentences, vocabulary.pad_id, *limits):
            empty = len(batch.tokens) - len(batch.chosen)
            rows = [tables[i] for i in batch.chosen] + [TableIds(0, 0)] * empty
            ids = TableIds(*np.array(rows, np.int32).T)
            keys = np.pad(batch.chosen, (0, empty)).astype(np.uint32)
            inputs = model.place((keys, Batch(batch.tokens, batch.attention_mask, ids)))
            batches.append((batch.chosen, _hidden(objective, *inputs)))
        for number, chosen in enumerate(sets):
            params = clamp(model.params, chosen, 0.0) if chosen.any() else model.params
            found = [(rows, _losses(objective, params, examples)) for rows, examples in batches]
            for rows, (losses, weights) in found:
                sums[number, rows] = np.asarray(losses)[: len(rows)]
                counts[rows] = np.asarray(weights)[: len(rows)]
    return Losses(sums.reshape(len(sets), *shape), counts.reshape(shape))


def diagonal_excess(own: np.ndarray, other: np.ndarray, diagonal: Sequence[int]) -> dict[str, Any]:
    """Returns mean_A [D_AA - mean_B D_AB] of the rises D of the languages' own neurons, less the
    same of other neurons: ``value``, ``low`` and ``high``, a 95 % interval.

    Args:
      own, other: float [1 + resamples, edited, tested]; the first is observed.
      diagonal: the place of each edited language among the tested.
    """
    excess = [
        np.mean([rise[:, k, at] - rise[:, k].mean(axis=1) for k, at in enumerate(diagonal)], axis=0)
        for rise in (own, other)
    ]
    value, *resampled = excess[0] - excess[1]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _rises(losses: Losses, kinds: int) -> np.ndarray:
    """Returns by how much the loss of a token rises, float64 [1 + DRAWS, kinds, edited, tested]:
    observed, and with resampled sentences, the same of all languages."""
    sentences = losses.counts.shape[1]
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(sentences, np.full(sentences, 1 / sentences), DRAWS)
    weights = np.concatenate([np.ones((1, sentences)), drawn])
    counts = weights @ losses.counts.T
    mean = np.einsum("ws,els->wel", weights, losses.sums) / np.maximum(counts, 1)[:, None]
    rises = mean[:, 1:] - mean[:, :1]
    return rises.reshape(len(weights), -1, kinds, rises.shape[-1]).swapaxes(1, 2)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(objective: MaskedLm, numbers: jax.Array, batch: Batch) -> MaskedExamples:
    """Hides tokens of each row, by the number of its sentence."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, random_key(0)))(numbers)
    return objective.prepare(keys, batch)


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all sets and all checkpoints
def _losses(
    objective: MaskedLm, params: Any, examples: MaskedExamples
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of each row and its number of hidden tokens, float32 [rows]."""
    return objective.loss(params, examples, None)[1]

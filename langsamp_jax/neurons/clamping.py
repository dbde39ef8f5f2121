"""Whether neurons of a language matter to it: the loss of every language while they are clamped."""

import functools
import zlib
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
from langsamp_jax.neurons.selectivity import DRAWS, matched_neurons
from langsamp_jax.objectives.masked_lm import MaskedExamples, MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.sharding import use_mesh

SENTENCES = 80  # of each language; a loss is computed for each language and set of neurons
MATCHED = 4  # sets of matched neurons for each language
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
      lines: of each language as many, translations of each other; none in which ``own`` was found.
      rates: of each language how often neurons fire, float [layers, neurons].
      own: of each language which neurons it has, bool [layers, neurons].

    Returns:
      ``left_out``, why there is no such measure; or ``edited`` and ``tested``, languages;
      ``neurons`` of each of the edited; the ``loss`` of each of the tested, in nats; by kind of
      neurons its rise [edited][tested]: of the language's ``own``, and ``matched``, the mean over
      random sets of as many of the same layers at firing rates near by; the ``excess`` of the first
      (see ``diagonal_excess``); ``sentences``; and ``skipped``, languages that are not edited and
      why.
    """
    if not model.has_head:
        return {"left_out": "the model is a plain encoder, which predicts no pieces"}
    tested, skipped = {}, {}
    for name, text in lines.items():
        try:
            model.head_ids(name)
            tested[name] = text
        except UserError as error:
            skipped[name] = str(error)
    edited = [name for name in tested if own[name].any()]
    skipped |= {name: "it has no neurons of its own" for name in tested if name not in edited}
    if len(tested) < 2:
        return {"left_out": f"the model predicts in fewer than 2 of the languages; {skipped}"}
    if not edited:
        return {"left_out": "no language that the model predicts in has neurons of its own"}
    sets = [np.zeros_like(own[edited[0]])]
    for name in edited:  # the seed is the language's, at every step and beside any others
        seeds = range(zlib.crc32(name.encode()), zlib.crc32(name.encode()) + MATCHED)
        sets += [own[name], *(matched_neurons(rates[name], own[name], seed) for seed in seeds)]
    losses = clamped_losses(model, tested, sets)
    rises = _rises(losses)
    return {
        "edited": edited,
        "tested": [*tested],
        "neurons": [int(own[name].sum()) for name in edited],
        "loss": losses.sums[0].sum(axis=1) / np.maximum(losses.counts.sum(axis=1), 1),
        "own": rises[0, :, 0],
        "matched": rises[0, :, 1:].mean(axis=1),
        "excess": diagonal_excess(rises, [[*tested].index(name) for name in edited]),
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


def diagonal_excess(rises: np.ndarray, diagonal: Sequence[int]) -> dict[str, float]:
    """Returns the mean over the edited languages A of E_AA - mean over B other than A of E_AB,
    where E is the rise with A's own neurons less that with matched ones: ``value``, ``low`` and
    ``high``, a 95 % interval over sentences and sets of matched neurons.

    Args:
      rises: float [1 + resamples, edited, 1 + MATCHED, tested], see ``_rises``.
      diagonal: the place of each edited language among the tested.
    """
    number, edited, sets, tested = rises.shape
    own, matched = rises[:, :, 0], rises[:, :, 1:]
    drawn = np.random.default_rng(0).integers(sets - 1, size=(number, edited, sets - 1))
    drawn[0] = np.arange(sets - 1)
    excess = own - np.take_along_axis(matched, drawn[..., None], axis=2).mean(axis=2)
    at = np.arange(edited), np.array(diagonal)
    here = excess[:, *at]
    elsewhere = (excess.sum(axis=2) - here) / (tested - 1)
    value, *resampled = (here - elsewhere).mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _rises(losses: Losses) -> np.ndarray:
    """Returns by how much the loss of a token rises, float64 [1 + DRAWS, edited, 1 + MATCHED,
    tested], with a language's own neurons and the sets of matched ones: observed, and with
    resampled sentences, the same of all languages."""
    sentences = losses.counts.shape[1]
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(sentences, np.full(sentences, 1 / sentences), DRAWS)
    weights = np.concatenate([np.ones((1, sentences)), drawn])
    counts = weights @ losses.counts.T
    mean = np.einsum("ws,els->wel", weights, losses.sums) / np.maximum(counts, 1)[:, None]
    rises = mean[:, 1:] - mean[:, :1]
    return rises.reshape(len(weights), -1, 1 + MATCHED, rises.shape[-1])


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

"""Forcing: are the words of a concept likelier where its experts are held at what they say of it?

The experts of a concept in language A are clamped (see ``models/edits.py``) at the median of their
responses to A's sentences that have it. Read is a mask in neutral contexts of language B, which
have none of the concepts: the log of the summed probability of the concept's words there, less the
same of the unedited model. The readout is ours; the study it follows generated text.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import padded, repeat_ids, split_lines
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import bootstrap_interval
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.edits import clamp
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.parallel.sharding import use_mesh
from langsamp_jax.text.tokenizer import Tokenizer

CONCEPTS, LANGUAGES, CONTEXTS = 8, 6, 50
_LONGEST = 32  # tokens of a context


class Forced(NamedTuple):
    """What is clamped: the experts of some concepts in some languages.

    Attributes:
      concepts: their names.
      languages: those of the experts, A.
      chosen: bool [concepts, languages, layers, neurons].
      value: float32 of the same shape.
    """

    concepts: list[str]
    languages: list[str]
    chosen: np.ndarray
    value: np.ndarray


def force(
    model: LoadedModel,
    forced: Forced,
    words: Sequence[Mapping[str, Sequence[str]]],
    neutral: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Measures how far forcing goes, from the language of the experts to that of the readout.

    Args:
      words: of each concept by language-script.
      neutral: by language-script, sentences that have none of the concepts.

    Returns:
      ``experts`` and ``readout``, languages A and B; in nats, [A][B], the mean over concepts of the
      rise of a concept's words with its own experts (``own``) and with those of another concept
      (``other``); ``random`` [B], with random neurons of the same layers instead, of the first A;
      ``specific``, own less other, ``within`` and ``across`` languages: its mean and the ends of
      its 95 % bootstrap over concepts; ``skipped``, languages without a readout and why. Or
      ``left_out``, the reason why there is none.
    """
    if not model.has_head:
        return {"left_out": f"{model.path} is a plain encoder, which predicts no words"}
    readouts, skipped = {}, {}
    for name, lines in neutral.items():
        pieces = _piece_sets(model.tokenizer, [by_name.get(name, ()) for by_name in words])
        contexts = _contexts(model, lines)
        try:
            if pieces.any(axis=1).sum() < 2:
                raise UserError("fewer than 2 concepts have known words with a piece of their own")
            if contexts is None:
                raise UserError(f"no sentence of {_LONGEST} tokens is free of the concepts")
            readouts[name] = pieces, contexts, model.head_ids(name)
        except UserError as error:
            skipped[name] = str(error)
    if not readouts:
        name, why = next(iter(skipped.items()))
        return {"left_out": f"no language can be read out; {name}: {why}"}
    blank = np.zeros_like(forced.chosen[0, 0]), np.zeros_like(forced.value[0, 0])
    base = _read(model, readouts, *blank)
    rise = np.array([
        [_read(model, readouts, *edit) - base for edit in zip(*edits, strict=True)]
        for edits in zip(forced.chosen, forced.value, strict=True)
    ])  # [forced concept, A, B, read concept]  # fmt: skip
    rng = np.random.default_rng(0)
    random = np.array([
        _read(model, readouts, *_other_neurons(rng, chosen[0], value[0])) - base
        for chosen, value in zip(forced.chosen, forced.value, strict=True)
    ])  # fmt: skip
    own = np.einsum("cabc->cab", rise)
    other = (np.einsum("cabd->dab", rise) - own) / (len(rise) - 1)
    return {
        "concepts": forced.concepts,
        "experts": forced.languages,
        "readout": list(readouts),
        "contexts": {name: len(contexts[0]) for name, (_, contexts, _) in readouts.items()},
        "own": np.nanmean(own, axis=0).round(5).tolist(),
        "other": np.nanmean(other, axis=0).round(5).tolist(),
        "random": np.nanmean(np.einsum("cbc->cb", random), axis=0).round(5).tolist(),
        "specific": _specific(own - other, forced.languages, list(readouts)),
        "skipped": skipped,
    }


def _specific(difference: np.ndarray, experts: list[str], readout: list[str]) -> dict[str, Any]:
    """Returns means over the pairs of one language, and of two, of [concepts, A, B]; a concept
    without a piece of its own in B is NaN."""
    same, found = np.array(experts)[:, None] == np.array(readout), {}
    for name, pairs in (("within", same), ("across", ~same)):
        of_pairs = difference[:, pairs]
        of_pairs = of_pairs[np.isfinite(of_pairs).any(axis=1)]
        if len(of_pairs) > 1:
            by_concept = np.nanmean(of_pairs, axis=1)
            interval = bootstrap_interval(by_concept, seed=0, resamples=2000)
            ends = dict(zip(("low", "high"), interval, strict=True))
            found[name] = {"value": float(by_concept.mean()), **ends}
    return found


def _piece_sets(tokenizer: Tokenizer, words: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns bool [concepts, vocabulary]: the first pieces of a concept's words, or of those that
    are one piece, these alone; without pieces of another concept."""
    sets = np.zeros((len(words), tokenizer.vocab_size), bool)
    for row, forms in zip(sets, words, strict=True):
        pieces = [ids[tokenizer.is_text[ids]] for ids in split_lines(*tokenizer.encode(forms))]
        whole = [ids[0] for ids in pieces if len(ids) == 1]
        row[whole or [ids[0] for ids in pieces if len(ids)]] = True
    return sets & (sets.sum(axis=0) == 1)


def _contexts(
    model: LoadedModel, lines: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns tokens and mask, [contexts, length], and where a word is hidden behind one mask,
    [contexts, 1]; None where no line is short enough."""
    tokenizer, rng = model.tokenizer, np.random.default_rng(0)
    vocabulary, length = tokenizer.vocabulary, min(_LONGEST, model.max_length)
    begins = np.array([surface.startswith(" ") for surface in tokenizer.surfaces])
    rows, positions = [], []
    for ids in split_lines(*tokenizer.encode(lines)):
        starts = np.flatnonzero(begins[ids])
        if len(ids) > length or not len(starts) or len(rows) == CONTEXTS:
            continue
        at = int(rng.choice(starts))
        behind = np.flatnonzero(~tokenizer.is_text[ids] | begins[ids])
        end = int(behind[behind > at][0])
        rows.append(np.concatenate([ids[:at], [vocabulary.mask_id], ids[end:]]))
        positions.append([at])
    count = len(rows) // model.mesh.size * model.mesh.size
    if not count:
        return None
    tokens, mask = padded(rows[:count], count, length, vocabulary.pad_id)
    return tokens, mask, np.array(positions[:count], np.int32)


def _other_neurons(
    rng: np.random.Generator, chosen: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns as many random neurons of the same layers, at the same values."""
    order = np.argsort(rng.random(chosen.shape), axis=1)
    return tuple(np.take_along_axis(part, order, axis=1) for part in (chosen, value))


def _read(
    model: LoadedModel, readouts: Mapping[str, Any], chosen: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """Returns the mean log-probability of each concept's words, float64 [languages, concepts]."""
    with use_mesh(model.mesh):
        found = [
            _log_probabilities(
                *(model.model, model.params, chosen, value, pieces),
                *model.place((*contexts, repeat_ids(ids, len(contexts[0])))),
            )
            for pieces, contexts, ids in readouts.values()
        ]
        return np.array([np.asarray(rows, np.float64).mean(axis=0) for rows in found])


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all neurons and checkpoints
def _log_probabilities(
    model: LangSamp,
    params: Any,
    chosen: jax.Array,
    value: jax.Array,
    pieces: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    positions: jax.Array,
    ids: TableIds,
) -> jax.Array:
    """Returns the log of the summed probability of each set of pieces, float32 [rows, sets]; NaN of
    an empty set."""
    inputs = tokens, mask, ids, positions, True
    clamped = {"params": clamp(params, chosen, value)}
    features, table, bias = model.apply(clamped, *inputs, method=model.predict)
    table = table[0].astype(features.dtype)
    logits = (features[:, 0] @ table.T).astype(jnp.float32) + bias
    logits = logits[:, : model.vocab_size]
    every = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    of_sets = jax.nn.logsumexp(jnp.where(pieces, logits[:, None], -jnp.inf), axis=-1)
    return jnp.where(pieces.any(axis=1), of_sets, jnp.nan) - every

"""Protocol: do two languages have the same experts of a concept, and from which step on?

See ``experts.py`` for what an expert is, ``concept_labels.py`` for what a concept is, and
``forcing.py`` for what experts do. The experts of A are found on one half of the lines, those of B
on the other, so that sentences in common make nothing look shared. Everything is given by layer,
where a layer has K experts of its own, and ``overall``, where all layers compete.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.evaluation.encoder import Read, readable_sentences, sentence_reader
from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import average_precisions
from langsamp_jax.io.progress import Progress
from langsamp_jax.models.taps import sum_over_positions
from langsamp_jax.neurons.activations import all_tokens
from langsamp_jax.neurons.concept_labels import FEWEST, Concepts, halves, label
from langsamp_jax.neurons.concept_steps import measures, over_steps, show
from langsamp_jax.neurons.experts import BY_LAYER, expert_count, experts, sharing
from langsamp_jax.neurons.forcing import CONCEPTS, LANGUAGES, Forced, force
from langsamp_jax.neurons.language_pairs import kind_of_pair
from langsamp_jax.neurons.planting import planted

__all__ = ["evaluate", "measures", "over_steps", "show"]

_SITES = {"neurons": ("neurons",), "all": ("neurons", "attention", "feed_forward")}
_KINDS = {"within_script": "same_script", "across_scripts": "other_script",
          "two_scripts": "two_scripts"}  # fmt: skip
_TRACKED = 3  # concepts whose best units are followed over the steps
_SHOWN = 3  # units of a concept that are named


def evaluate(
    model: LoadedModel,
    data: Path,
    journal: Journal,
    pivot: str,
    units: str | None,
    sentences: int,
    concepts: int,
) -> dict[str, Any]:
    """Measures the experts of one model; see ``over_steps`` for what a result has.

    Args:
      pivot: whose words are the concepts of real text.
      units: None: neurons, behind the activation; ``all``: what attention and the feed-forward add
        as well.
      sentences: at most so many lines that all languages have; a language that would leave fewer
        than half of them is left out.
      concepts: at most so many.

    Raises:
      UserError: as ``readable_sentences`` and ``label``; a response is not finite.
    """
    fewest = max(2 * FEWEST, sentences // 2)
    lines, numbers, skipped = readable_sentences(model, data, fewest)
    lines = {name: text[:sentences] for name, text in lines.items()}
    known = label(data, lines, numbers[:sentences], pivot, concepts)
    labels = with_null(known.labels)
    read = sentence_reader(model, _taps(units or "neurons"), all_tokens(model.tokenizer))
    precisions, typical, truncated = {}, {}, 0
    with Progress("experts", len(lines), "languages") as progress:
        for name, text in lines.items():
            responses, length, cut = _responses(read, text, name)
            precisions[name] = in_halves(without_length(responses, length), labels)
            typical[name] = _medians(responses, known.labels[:, :CONCEPTS])
            truncated += int(cut.sum())
            progress.advance(1)
    names, found = list(lines), np.stack([*precisions.values()])
    return {
        "step": model.step,
        "units": units or "neurons",
        "unit_count": found.shape[2],
        "labels": known.source,
        "concepts": known.names,
        "left_out": known.left_out,
        "languages": names,
        "sentences": len(labels),
        "layers": model.config.num_hidden_layers,
        **compare_languages(found, known, names, model.config.num_hidden_layers),
        "forcing": _force(model, known, lines, found, typical),
        "planted": planted(model, lines),
        "unit_precisions": found[..., :_TRACKED].mean(axis=(0, 1)).T.round(4).tolist(),
        "truncated": truncated,
        "skipped": skipped,
    }


def with_null(labels: np.ndarray) -> np.ndarray:
    """Returns the labels, and as many concepts more: the same permuted over the sentences, always
    in the same way and all together, as they occur together."""
    return np.hstack([labels, labels[np.random.default_rng(2).permutation(len(labels))]])


def without_length(responses: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Returns the responses less what the length of a sentence tells of them, by least squares on
    n and 1 / n: long sentences have more of every concept, and of some more than of others, so that
    units that tell the length would make languages look alike.

    Args:
      responses: float32 [sentences, units].
      length: float [sentences], the number of tokens n.
    """
    known = np.stack([np.ones_like(length), length, 1 / length], axis=1).astype(np.float32)
    weights, *_ = np.linalg.lstsq(known, responses, rcond=None)
    return responses - known @ weights


def in_halves(responses: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the average precisions on each half of the sentences, float32 [2, units, concepts].

    A permuted label that a half lacks has the precision 0 there.
    """
    second, found = halves(len(labels)), []
    for half in (~second, second):
        has = labels[half].any(axis=0)
        precisions = np.zeros((responses.shape[1], labels.shape[1]), np.float32)
        precisions[:, has] = average_precisions(responses[half], labels[half][:, has])
        found.append(precisions)
    return np.stack(found)


def kinds_of_pairs(names: Sequence[str], families: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Returns the pairs of languages of each kind that there is, int [pairs, 2]: one language in
    two scripts; one family, where families are known; else one script, or two."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    for a, b in itertools.combinations(range(len(names)), 2):
        kind, family = _KINDS[kind_of_pair(names[a], names[b])], families.get(names[a])
        if kind != "two_scripts" and family is not None and family == families.get(names[b]):
            kind = "family"
        kinds.setdefault(kind, []).append((a, b))
    return {kind: np.array(pairs) for kind, pairs in kinds.items()}


def _taps(units: str) -> tuple[tuple[str, Callable[..., Any]], ...]:
    return tuple((site, sum_over_positions) for site in _SITES[units])


def _responses(
    read: Read, text: Sequence[str], name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean of each unit over the tokens of a sentence, float32 [sentences, layers *
    units of a layer], neurons first; the number of tokens; and which sentences were cut."""
    readings = read(text, name)
    sites = [readings.values[site] for site in _SITES["all"] if site in readings.values]
    length = np.maximum(sites[0][1][0, :, 0], 1)
    sums = np.concatenate([total for total, _ in sites], axis=2)
    return np.hstack([*sums]) / length[:, None], length, readings.truncated


def _medians(responses: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the median response to the sentences that have a concept, [concepts, units]."""
    return np.stack([np.median(responses[has], axis=0) for has in labels.T])


def compare_languages(
    precisions: np.ndarray, known: Concepts, names: Sequence[str], layers: int
) -> dict[str, Any]:
    """Returns the measures of ``sharing`` of each layer, and of all layers together.

    Args:
      precisions: float [languages, 2, units of all layers, 2 * concepts], see ``with_null``.
    """
    concepts = len(known.names)
    prevalence = known.labels[halves(len(known.labels))].mean(axis=0)
    kinds = kinds_of_pairs(names, known.families)
    scopes = [
        sharing(part[..., :concepts], part[..., concepts:], prevalence, kinds)
        for part in (*np.split(precisions, layers, axis=2), precisions)
    ]
    *by_layer, overall = scopes
    chosen = experts(precisions[..., :concepts], overall["experts"]).mean(axis=(0, 1))
    width = precisions.shape[2] // layers
    return {
        "experts": {"layer": by_layer[0]["experts"], "overall": overall["experts"]},
        **{name: [layer[name] for layer in by_layer] for name in BY_LAYER},
        "overall": {name: overall[name] for name in BY_LAYER},
        "pairs": {
            kind: {"pairs": len(pairs), "by_scope": [scope["pairs"][kind] for scope in scopes]}
            for kind, pairs in kinds.items()
        },
        "between_languages": overall["between_languages"].round(5).tolist(),
        "between_concepts": overall["between_concepts"].round(5).tolist(),
        "expert_share": (
            chosen.reshape(-1, layers, width).sum(axis=(0, 2)) / chosen.sum()
        ).tolist(),
        "shared_units": {
            name: [
                {"layer": int(unit // width), "unit": int(unit % width), "share": float(row[unit])}
                for unit in np.argsort(-row, kind="stable")[:_SHOWN]
            ]
            for name, row in zip(known.names, chosen, strict=True)
        },
        "permuted": [scope["permuted"] for scope in scopes],
        "null_draws": np.stack([scope["null"] for scope in scopes], axis=1).round(6).tolist(),
    }


def _force(
    model: LoadedModel,
    known: Concepts,
    lines: Mapping[str, Sequence[str]],
    precisions: np.ndarray,
    typical: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Forces the experts, among the neurons, of the commonest concepts whose words are known."""
    told = {name for words in known.words for name in words}
    order = sorted(lines, key=lambda name: (name not in told, name))[:LANGUAGES]
    at = [i for i in range(min(CONCEPTS, len(known.names))) if told & set(known.words[i])]
    if len(at) < 2:
        return {"left_out": "the words of fewer than two concepts are known"}
    shape = model.config.num_hidden_layers, -1
    neurons = slice(model.config.intermediate_size)
    chosen, value = [], []
    for name in order:
        mean = precisions[list(lines).index(name)].mean(axis=0)[:, at]
        mean = mean.reshape(*shape, len(at))[:, neurons]
        flat = experts(mean.reshape(-1, len(at)), expert_count(mean[..., 0].size))
        chosen.append(flat.reshape(len(at), *mean.shape[:2]))
        value.append(typical[name][at].reshape(len(at), *shape)[..., neurons])
    stacked = (np.stack(part, axis=1) for part in (chosen, value))
    free = ~known.labels[:, at].any(axis=1)
    neutral = {name: [lines[name][i] for i in np.flatnonzero(free)] for name in order}
    forced = Forced([known.names[i] for i in at], order, *stacked)
    return force(model, forced, [known.words[i] for i in at], neutral)

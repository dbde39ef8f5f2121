"""Protocol: how well the language of a text can be read off one token's state, at every layer.

A sentence of each language gives one random token; a linear probe says the language. All languages
have the same sentences, and no sentence is in both training and test, so what is said is no cue. A
probe can know pieces and not languages: so beside its accuracy stand that on pieces that training
did not have, that among languages of one script, and a control task, in which each piece has a
random class (Hewitt and Liang 2019), with the selectivity, the difference of the two accuracies.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binom

from langsamp_jax.analysis.probes import fit_probes, log_probabilities
from langsamp_jax.evaluation.encoder import sentence_ids, token_reader
from langsamp_jax.evaluation.jobs import Journal, show_controls, show_skipped
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.io.progress import Progress, table
from langsamp_jax.languages.aligned_text import parallel_sentences
from langsamp_jax.languages.inventory import split_language_script

SEEDS = 3  # of the probe: another token of each sentence, another division
TEST = 1 / 3  # of the sentences
FEWEST = 30  # sentences
MEANS = ("accuracy", "cross_entropy", "control", "unseen_pieces", "within_script")
_RESAMPLES = 2000


class Tokens(NamedTuple):
    """One token of each sentence of each language.

    Attributes:
      states: float32 [layers, languages, sentences, width].
      pieces: int32 [languages, sentences].
    """

    states: np.ndarray
    pieces: np.ndarray


def evaluate(model: LoadedModel, data: Path, journal: Journal, sentences: int) -> dict[str, Any]:
    """Fits and tests the probes of one step.

    Args:
      sentences: the most of each language, for training and test together.

    Returns:
      by layer (0 is the embeddings): ``accuracy`` with ``low`` and ``high`` (95 %, bootstrap over
      sentences), ``cross_entropy`` in nats, ``unseen_pieces``, ``within_script`` and ``control``,
      means over the seeds of the probe; ``seeds``, the accuracy of each; ``chance``, and
      ``chance_within_script``; ``controls``.

    Raises:
      UserError: fewer than two languages have enough sentences in common.
    """
    text, _, skipped = parallel_sentences(data, FEWEST)
    names = list(text)
    tokens, truncated = read_tokens(model, {n: lines[:sentences] for n, lines in text.items()})
    scripts = np.array([split_language_script(name)[1] for name in names])
    same_script = scripts[:, None] == scripts
    parts = []
    with Progress("probes", SEEDS, "seeds") as progress:
        for seed, each in enumerate(tokens):
            probe = lambda seed=seed, each=each: probe_seed(each, same_script, seed)  # noqa: E731
            parts.append(journal.part(f"seed {seed}", probe))
            progress.advance(1)
    correct = np.mean([part["correct"] for part in parts], axis=0)  # [layers, sentences]
    rng, number = np.random.default_rng(0), correct.shape[1]
    draws = [correct[:, rng.integers(number, size=number)].mean(axis=1) for _ in range(_RESAMPLES)]
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return {
        **{name: _mean([part[name] for part in parts]) for name in MEANS},
        "low": low.tolist(),
        "high": high.tolist(),
        "seeds": [part["accuracy"] for part in parts],
        "unseen_tokens": sum(part["unseen_tokens"] for part in parts),
        "chance": 1 / len(names),
        "chance_within_script": float((1 / same_script.sum(axis=1)).mean()),
        "languages": names,
        "sentences": tokens[0].pieces.shape[1],
        "truncated": truncated,
        "skipped": skipped,
        "controls": controls(tokens[0]),
    }


def over_steps(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the records of several steps as one, with arrays [step][layer]."""
    last = records[-1]
    controls = {
        (f"{name}, step {record['step']}" if len(records) > 1 else name): control
        for record in records
        for name, control in record["controls"].items()
    }
    same = ("chance", "chance_within_script", "languages", "sentences", "unseen_tokens")
    return {
        "steps": [record["step"] for record in records],
        "layers": len(last["accuracy"]),
        **{name: [record[name] for record in records] for name in (*MEANS, "low", "high", "seeds")},
        **{name: last[name] for name in (*same, "truncated", "skipped")},
        "controls": controls,
    }


def show(record: Mapping[str, Any]) -> str:
    columns = ("accuracy", "low", "high", "control", "unseen_pieces", "within_script")
    last = {name: record[name][-1] for name in columns}
    rows = [
        {"layer": layer, **{name: last[name][layer] for name in columns if last[name]}}
        for layer in range(record["layers"])
    ]
    headers = {"layer": "layer:d", "accuracy": "accuracy:.1%", "low": "from:.1%", "high": "to:.1%"}
    headers |= {"control": "control task:.1%", "unseen_pieces": "unseen pieces:.1%"}
    headers |= {"within_script": "within script:.1%"}
    languages, step = len(record["languages"]), record["steps"][-1]
    lines = [
        table(rows, headers),
        f"{languages} languages{'' if step is None else f', step {step:,}'}; chance "
        f"{record['chance']:.1%}, within a script {record['chance_within_script']:.1%}",
        *show_controls(record),
    ]
    return "\n".join([*lines, *show_skipped(record)])


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    last = record["accuracy"][-1]
    return {
        "last layer/accuracy": last[-1],
        "best layer/accuracy": max(last),
        "last layer/selectivity": last[-1] - record["control"][-1][-1],
    }


def read_tokens(model: LoadedModel, text: Mapping[str, Sequence[str]]) -> tuple[list[Tokens], int]:
    """Returns a random token of each sentence for each seed, never a special one; and how many
    sentences were cut to what the model reads.

    Which tokens those are depends on the ids of the sentence alone: at every step the same.
    """
    special = model.tokenizer.vocabulary.special_ids

    def marked(ids: np.ndarray) -> np.ndarray:
        return np.isin(np.arange(len(ids)), _chosen(ids.tobytes(), special))

    read, states, pieces, cut = token_reader(model, (("states", _at_marks),), marked), [], [], 0
    for name, lines in text.items():
        ids, truncated = sentence_ids(model, lines)
        chosen = [_chosen(sentence.tobytes(), special) for sentence in ids]
        mark = np.array([np.searchsorted(np.unique(at), at) for at in chosen])
        values = read(ids, name)["states"]  # [layers, sentences, marks, width]
        states.append(np.take_along_axis(values, mark[None, ..., None], axis=2))
        pieces.append([sentence[at] for sentence, at in zip(ids, chosen, strict=True)])
        cut += int(truncated.sum())
    states, pieces = np.stack(states, axis=1), np.array(pieces)
    return [Tokens(states[:, :, :, seed], pieces[:, :, seed]) for seed in range(SEEDS)], cut


def probe_seed(tokens: Tokens, same_script: np.ndarray, seed: int) -> dict[str, Any]:
    """Fits and tests the probe of the language and that of the control task.

    Args:
      same_script: bool [languages, languages].

    Returns:
      ``MEANS`` by layer; ``correct``, by layer and test sentence the share of languages that are
      told; ``unseen_tokens``, on how many test tokens ``unseen_pieces`` is (None of none).
    """
    languages, sentences = tokens.pieces.shape
    language = np.repeat(np.arange(languages)[:, None], sentences, axis=1)
    classes = np.random.default_rng(0).integers(languages, size=tokens.pieces.max() + 1)
    test = held_out_sentences(sentences)
    log_p = _tested(tokens.states, language, languages, test, seed)  # [layers, n, classes]
    truth, pieces = language[:, test].ravel(), tokens.pieces[:, test].ravel()
    told = log_p.argmax(axis=-1) == truth
    unseen = ~np.isin(pieces, tokens.pieces[:, ~test])
    within = np.where(same_script[truth], log_p, -np.inf).argmax(axis=-1) == truth
    control = _tested(tokens.states, classes[tokens.pieces], languages, test, seed)
    return {
        "accuracy": told.mean(axis=1).tolist(),
        "cross_entropy": (-log_p[:, np.arange(len(truth)), truth]).mean(axis=1).tolist(),
        "control": (control.argmax(axis=-1) == classes[pieces]).mean(axis=1).tolist(),
        "unseen_pieces": told[:, unseen].mean(axis=1).tolist() if unseen.any() else None,
        "within_script": within.mean(axis=1).tolist(),
        "correct": told.reshape(len(told), languages, -1).mean(axis=1).tolist(),
        "unseen_tokens": int(unseen.sum()),
    }


def held_out_sentences(number: int) -> np.ndarray:
    """Returns bool [number]: which sentences no probe is fitted to, a third of them."""
    return np.random.default_rng(0).permutation(number) < number * TEST


def controls(tokens: Tokens) -> dict[str, dict[str, Any]]:
    """Returns two results that are known: what nothing tells apart, and what anything would.

    - halves of each language drawn at random: one half, within the binomial 95 % over all layers;
    - a vector of each language added to the last layer, as long as its states: all.
    """
    rng, test = np.random.default_rng(1), held_out_sentences(tokens.pieces.shape[1])
    languages, layers = len(tokens.pieces), len(tokens.states)
    half = rng.integers(2, size=tokens.pieces.shape)
    found = _tested(tokens.states, half, 2, test, 0).argmax(axis=-1) == half[:, test].ravel()
    shares = found.mean(axis=1)
    furthest = shares[np.abs(shares - 0.5).argmax()]
    number = found.shape[1]
    low, high = (end / number for end in binom.interval(1 - 0.05 / layers, number, 0.5))
    last = tokens.states[-1:]
    vectors = rng.normal(size=(1, languages, 1, last.shape[-1])) * last.std()
    language = np.repeat(np.arange(languages)[:, None], tokens.pieces.shape[1], axis=1)
    planted = _tested(last + vectors.astype(np.float32), language, languages, test, 0)
    share = float((planted.argmax(axis=-1) == language[:, test].ravel()).mean())
    return {
        "halves of a language": {
            "value": float(furthest),
            "expected": [low, high],
            "ok": bool(low <= furthest <= high),
        },
        "a planted vector": {"value": share, "expected": [0.95, 1.0], "ok": share >= 0.95},
    }


def _tested(
    states: np.ndarray, labels: np.ndarray, classes: int, test: np.ndarray, seed: int
) -> np.ndarray:
    """Returns the log-probabilities of a probe on test sentences, [layers, n, classes].

    Args:
      states: [layers, languages, sentences, width]; ``labels``: int [languages, sentences].
    """
    width = states.shape[-1]
    train, held_out = (states[:, :, rows].reshape(len(states), -1, width) for rows in (~test, test))
    mean, deviation = (stat(axis=1, keepdims=True) for stat in (train.mean, train.std))
    scale = np.where(deviation > 0, deviation, 1)
    probe = fit_probes((train - mean) / scale, labels[:, ~test].ravel(), classes, seed)
    return np.asarray(log_probabilities(probe, jnp.asarray((held_out - mean) / scale)))


def _at_marks(values: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the values at the first ``SEEDS`` marked positions of a row, [rows, SEEDS, width]."""
    first = jnp.argsort(~positions, axis=1, stable=True)[:, :SEEDS]
    return jnp.take_along_axis(values, first[..., None], axis=1)


@functools.cache  # asked for the same sentences at every step
def _chosen(sentence: bytes, special: tuple[int, ...]) -> np.ndarray:
    """Returns a position for each seed, int64 [SEEDS]; different ones where there are so many.

    Args:
      sentence: the bytes of its ids, int32.
    """
    ids = np.frombuffer(sentence, np.int32)
    positions = np.flatnonzero(~np.isin(ids, special))
    positions = positions if len(positions) else np.arange(len(ids))
    rng = np.random.default_rng(zlib.crc32(sentence))
    return rng.choice(positions, SEEDS, replace=len(positions) < SEEDS)


def _mean(parts: Sequence[Any]) -> list[float] | None:
    """Returns the mean by layer over the seeds that have one."""
    given = [part for part in parts if part is not None]
    return np.mean(given, axis=0).tolist() if given else None

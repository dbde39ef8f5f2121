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

from langsamp_jax.analysis.probes import fit_probes, log_probabilities
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.encoder import readable_sentences, sentence_ids, token_reader
from langsamp_jax.evaluation.jobs import Journal, show_controls, show_skipped
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import max_test
from langsamp_jax.io.progress import Progress, table
from langsamp_jax.languages.inventory import split_language_script

SEEDS = 3  # of the probe: another token of each sentence, another division
TEST = 1 / 3  # of the sentences
FEWEST = 30  # sentences
MEANS = ("accuracy", "cross_entropy", "control", "unseen_pieces", "within_script")
_OF_THE_LAST = (
    *("chance", "chance_within_script", "languages_within_script", "languages", "sentences"),
    *("unseen_tokens", "truncated", "skipped"),
)
_RESAMPLES = 2000
_PLANTED = 0.95  # of the languages are told, at least, where a vector of each was added


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
      ``chance_within_script`` over the ``languages_within_script``, those with another of their
      script (None of none); and what ``over_steps`` tests and drops: ``control_states``.

    Raises:
      UserError: too few sentences are asked for or there; fewer than two languages can be read; a
        state is not finite.
    """
    if sentences < FEWEST:
        raise UserError(f"--sentences {sentences}: at least {FEWEST} are needed")
    text, _, skipped = readable_sentences(model, data, max(FEWEST, sentences // 2))
    names = list(text)
    tokens, truncated = read_tokens(model, {n: lines[:sentences] for n, lines in text.items()})
    scripts = np.array([split_language_script(name)[1] for name in names])
    same_script = scripts[:, None] == scripts
    of_script = same_script.sum(axis=1)
    test, parts = held_out(tokens[0].pieces.shape), []
    with Progress("probes", SEEDS, "seeds") as progress:
        for seed, each in enumerate(tokens):

            def probe(each: Tokens = each, seed: int = seed) -> dict[str, Any]:
                return probe_seed(each, same_script, test, seed)

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
        "chance_within_script": chance_within_script(same_script),
        "languages_within_script": int((of_script > 1).sum()),
        "languages": names,
        "sentences": tokens[0].pieces.shape[1],
        "truncated": truncated,
        "skipped": skipped,
        "control_states": control_states(tokens[0], test),
    }


def over_steps(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the records of several steps as one, with arrays [step][layer]."""
    last = records[-1]
    return {
        "steps": [record["step"] for record in records],
        "layers": len(last["accuracy"]),
        **{name: [record[name] for record in records] for name in (*MEANS, "low", "high", "seeds")},
        **{name: last[name] for name in _OF_THE_LAST},
        "controls": judged([record["control_states"] for record in records]),
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
    within, step = record["chance_within_script"], record["steps"][-1]
    lines = [
        table(rows, headers),
        f"{len(record['languages'])} languages, {record['sentences']:,} sentences"
        f"{'' if step is None else f', step {step:,}'}; chance {record['chance']:.1%}, "
        + (
            "no two languages of one script"
            if within is None
            else f"within a script {within:.1%} ({record['languages_within_script']} languages)"
        ),
        f"{record['unseen_tokens']:,} test tokens have a piece that training did not have",
        *show_controls(record),
    ]
    if record["truncated"]:
        lines.append(f"{record['truncated']:,} sentences were longer than the model, and were cut")
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


def probe_seed(
    tokens: Tokens, same_script: np.ndarray, test: np.ndarray, seed: int
) -> dict[str, Any]:
    """Fits and tests the probe of the language and that of the control task.

    Args:
      same_script: bool [languages, languages].
      test: see ``held_out``.

    Returns:
      ``MEANS`` by layer; ``correct``, by layer and test sentence the share of languages that are
      told; ``unseen_tokens``, on how many test tokens ``unseen_pieces`` is. None for
      ``unseen_pieces`` of none, and for ``within_script`` where no script has two languages.
    """
    languages = len(tokens.pieces)
    language = _language(tokens)
    classes = np.random.default_rng(0).integers(languages, size=tokens.pieces.max() + 1)
    log_p = _tested(tokens.states, language, languages, test, seed)  # [layers, n, classes]
    truth, pieces = language[test], tokens.pieces[test]
    told = log_p.argmax(axis=-1) == truth
    unseen = ~np.isin(pieces, tokens.pieces[~test])
    within = np.where(same_script[truth], log_p, -np.inf).argmax(axis=-1) == truth
    with_others = same_script.sum(axis=1)[truth] > 1
    control = _tested(tokens.states, classes[tokens.pieces], languages, test, seed)
    return {
        "accuracy": told.mean(axis=1).tolist(),
        "cross_entropy": (-log_p[:, np.arange(len(truth)), truth]).mean(axis=1).tolist(),
        "control": (control.argmax(axis=-1) == classes[pieces]).mean(axis=1).tolist(),
        "unseen_pieces": told[:, unseen].mean(axis=1).tolist() if unseen.any() else None,
        "within_script": (
            within[:, with_others].mean(axis=1).tolist() if with_others.any() else None
        ),
        "correct": told.reshape(len(told), languages, -1).mean(axis=1).tolist(),
        "unseen_tokens": int(unseen.sum()),
    }


def chance_within_script(same_script: np.ndarray) -> float | None:
    """Returns the chance of a guess among the languages of a script, the mean over languages that
    are not alone in theirs; None where all are.

    Args:
      same_script: bool [languages, languages].
    """
    number = same_script.sum(axis=1)
    return float((1 / number[number > 1]).mean()) if (number > 1).any() else None


def held_out(shape: tuple[int, int]) -> np.ndarray:
    """Returns bool [languages, sentences]: what no probe is fitted to, a third of the sentences,
    the same in all languages."""
    number = shape[1]
    return np.tile(np.random.default_rng(0).permutation(number) < number * TEST, (shape[0], 1))


def control_states(tokens: Tokens, test: np.ndarray) -> dict[str, Any]:
    """Measures what is known beforehand: what nothing tells, and what anything would.

    Args:
      test: see ``held_out``.

    Returns:
      ``excess``: each sentence has a random class of two, the same in all languages; by layer and
      test sentence, the number of languages in which it is told, less half of them. ``planted``:
      the share of languages told from the last layer where a vector of each is added, as long as
      its states.
    """
    rng, (languages, sentences) = np.random.default_rng(1), tokens.pieces.shape
    classes = np.tile(rng.integers(2, size=sentences), (languages, 1))
    told = _tested(tokens.states, classes, 2, test, 0).argmax(axis=-1) == classes[test]
    sentence = np.nonzero(test)[1]
    sums = [np.bincount(sentence, layer - 0.5, minlength=sentences) for layer in told]
    last = tokens.states[-1:]
    vectors = rng.normal(size=(1, languages, 1, last.shape[-1])) * last.std()
    language = _language(tokens)
    planted = _tested(last + vectors.astype(np.float32), language, languages, test, 0)
    return {
        "excess": np.stack(sums)[:, test.any(axis=0)].tolist(),
        "planted": float((planted.argmax(axis=-1) == language[test]).mean()),
    }


def judged(steps: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the controls over all layers and steps, of what ``control_states`` gives of each.

    - random classes of sentences are not told: p of the layer and step that tells them best, by
      flipping the classes of test sentences, one sentence in all languages, layers and steps
      together. A sentence that is in training in another language is told too often;
    - a planted vector is told, at the step where it is told worst.
    """
    excess = np.array([step["excess"] for step in steps])  # [steps, layers, sentences]
    scale = np.sqrt((excess**2).sum(axis=-1, keepdims=True))
    excess /= np.where(scale > 0, scale, 1)  # the standard deviation of a sum over flips is now 1
    flips = np.random.default_rng(0).choice((-1.0, 1.0), size=(_RESAMPLES, excess.shape[-1]))
    _, p = max_test(excess.sum(axis=-1), np.einsum("fs,tls->ftl", flips, excess))
    planted = min(step["planted"] for step in steps)
    return {
        "random classes of sentences, p": {"value": p, "expected": "> 0.05", "ok": p > 0.05},
        "a planted vector": {
            "value": planted,
            "expected": [_PLANTED, 1.0],
            "ok": planted >= _PLANTED,
        },
    }


def _tested(
    states: np.ndarray, labels: np.ndarray, classes: int, test: np.ndarray, seed: int
) -> np.ndarray:
    """Returns the log-probabilities of a probe on test sentences, [layers, n, classes].

    Args:
      states: [layers, languages, sentences, width].
      labels: int [languages, sentences]; ``test``: bool, as many.
    """
    train, tested = states[:, ~test], states[:, test]
    mean, deviation = (stat(axis=1, keepdims=True) for stat in (train.mean, train.std))
    scale = np.where(deviation > 0, deviation, 1)
    probe = fit_probes((train - mean) / scale, labels[~test], classes, seed)
    return np.asarray(log_probabilities(probe, jnp.asarray((tested - mean) / scale)))


def _language(tokens: Tokens) -> np.ndarray:
    """Returns the number of the language of each token, int [languages, sentences]."""
    languages, sentences = tokens.pieces.shape
    return np.repeat(np.arange(languages)[:, None], sentences, axis=1)


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

"""Protocol: how far single neurons of the feed-forward layers belong to single languages.

Every neuron of every layer is averaged over the tokens of each sentence; what is made of that
stands in ``selectivity.py`` and ``language_pairs.py``. Whether what belongs to a language matters
to it, clamping tells (``clamping.py``). Formulas, nulls and controls: docs/inside_neurons.md.
"""

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.encoder import readable_sentences
from langsamp_jax.evaluation.jobs import Journal, show_controls, show_skipped
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.evaluation.statistics import max_test
from langsamp_jax.io.progress import table
from langsamp_jax.neurons import language_pairs
from langsamp_jax.neurons.activations import Positions, all_tokens, word_ends
from langsamp_jax.neurons.clamping import SENTENCES, clamp_own
from langsamp_jax.neurons.language_pairs import rank_disagreement
from langsamp_jax.neurons.selectivity import (
    SELECTIVE,
    Draws,
    depth_contrasts,
    language_entropy,
    make_draws,
    rate_selectivity,
)

KINDS = ("within_script", "across_scripts", "two_scripts")
CONTRASTS = ("outer - middle", "first - middle", "last - middle")
_POSITIONS = {"tokens": all_tokens, "words": word_ends}


def evaluate(
    model: LoadedModel, data: Path, journal: Journal, sentences: int, positions: str | None
) -> dict[str, Any]:
    """Measures a folder of aligned files, at one step; it is one part, unrecorded.

    Args:
      sentences: of each language, the first that all languages have.
      positions: None or ``tokens``, all; ``words``: their last pieces, as published.

    Returns:
      ``by_layer`` {measure: [layers]}, ``by_pair`` {measure: [pairs][layers]}, ``by_language``
      {measure: {language: [layers]}}; ``own_neurons`` of each language as [layer, neuron];
      ``shared_pieces`` and ``clamped``, see ``measure_shared_pieces``, with the number of pairs
      that it leaves out, and ``clamp_own``; what was read; and what ``over_steps`` tests and drops:
      ``draws`` and ``planted``.

    Raises:
      UserError: too few sentences are asked for or there; fewer than two languages can be read;
        an activation is not finite.
    """
    if sentences < language_pairs.FEWEST:
        raise UserError(f"--sentences {sentences}: at least {language_pairs.FEWEST} are needed")
    text, _, skipped = readable_sentences(model, data, sentences)
    lines = {name: of_language[:sentences] for name, of_language in text.items()}
    at, draws = _POSITIONS[positions or "tokens"](model.tokenizer), make_draws(sentences)
    compared = language_pairs.compared_languages(list(lines))
    own_lines = {name: lines[name] for name in compared}
    tested = min(SENTENCES, sentences // 2)  # with neurons clamped that others have shown
    languages, by_pair, draws_of, planted = _compare(model, lines, own_lines, at, draws, tested)
    rates = {name: language["rates"] for name, language in languages.items()}
    entropy, own = language_entropy(np.stack([*rates.values()], axis=-1))
    own_of = {name: own[..., place] for place, name in enumerate(lines)}
    pairs = [*itertools.combinations(compared, 2)]
    by_pair["rate_selectivity"] = np.stack(
        [rate_selectivity(rates[one], rates[other]).mean(axis=1) for one, other in pairs]
    )
    shared = language_pairs.measure_shared_pieces(model, own_lines, pairs, at, draws)
    by_language = {
        "firing_rate": {name: rate.mean(axis=1) for name, rate in rates.items()},
        "flatness": {name: x["flatness"][:, 0] for name, x in languages.items()},
        "flatness_published": {name: x["flatness"][:, 1] for name, x in languages.items()},
        "own": {name: mine.sum(axis=1) for name, mine in own_of.items()},
    }
    by_layer = {
        **_layers_of_pairs(pairs, by_pair, shared),
        **{name: np.mean([*of.values()], axis=0) for name, of in by_language.items()},
        "language_entropy": _finite_mean(entropy),
        "specific": own.any(axis=-1).sum(axis=1),
    }
    record = {
        "languages": [*lines],
        "compared": compared,
        "pairs": pairs,
        "pairs_left_out": math.comb(len(lines), 2) - len(pairs),
        "sentences": sentences,
        "positions": positions or "tokens",
        "tokens": {name: language["tokens"] for name, language in languages.items()},
        "by_layer": by_layer,
        "by_pair": by_pair,
        "by_language": by_language,
        "own_neurons": {name: np.argwhere(mine).tolist() for name, mine in own_of.items()},
        "shared_pieces": shared,
        "shared_pieces_left_out": min(language_pairs.SHARED, len(pairs)) - len(shared),
        "clamped": clamp_own(
            model, {name: text[:tested] for name, text in own_lines.items()}, rates, own_of
        ),
        "draws": draws_of,
        "planted": planted,
        "truncated": sum(language["truncated"] for language in languages.values()),
        "skipped": skipped,
    }
    return _plain(record)


def _compare(
    model: LoadedModel,
    lines: Mapping[str, Sequence[str]],
    compared: Mapping[str, Sequence[str]],
    at: Positions,
    draws: Draws,
    tested: int,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, float]]:
    """Reads all languages and compares pairs of some.

    Args:
      tested: the first so many sentences say nothing about firing rates.

    Returns:
      what ``read_languages`` gives; ``by_pair`` and ``draws`` of the record, [pairs, layers] and
      [draws, layers]; and ``planted``.
    """
    shape = model.config.num_hidden_layers, len(draws.swaps[0]), model.config.intermediate_size
    places, half = [*itertools.combinations(range(len(compared)), 2)], draws.first
    # On disk: 8 languages of 500 sentences are 1.6 GB with XLM-R large.
    with tempfile.TemporaryFile() as file:
        means = np.memmap(file, np.float32, "w+", shape=(len(compared), *shape))
        read = language_pairs.activation_reader(model, at)
        of_compared = dict(zip(compared, means, strict=True))
        languages = language_pairs.read_languages(read, lines, of_compared, tested)
        pairs = language_pairs.measure_pairs(means, places, draws)
        halves = language_pairs.measure_halves(means, draws)
        disagreement = [rank_disagreement(means[a], means[b]) for a, b in places]
        floor = [rank_disagreement(x[:, half], x[:, ~half]) for x in means]
    by_pair = {
        "separability": pairs.separability.mean(axis=2),
        "null": pairs.null.mean(axis=2),
        "selective": (pairs.separability > SELECTIVE).mean(axis=2),
        "rank_disagreement": np.stack(disagreement),
        # The noise of a ranking: two halves of one language, the mean of the two of a pair.
        "rank_disagreement_halves": np.stack([(floor[a] + floor[b]) / 2 for a, b in places]),
    }
    of_draws = {
        "null": pairs.null.mean(axis=0).T,
        "resampled": pairs.resampled.mean(axis=0).T,
        "halves": np.vstack([halves.separability.mean(axis=(0, 2)), halves.null.mean(axis=0).T]),
    }
    first = dict(itertools.islice(compared.items(), 2))
    separability = language_pairs.planted_neuron(model, first, at)
    planted = {
        "separability": separability,
        "null_to_theory": float(pairs.null.mean() / max(pairs.expected.mean(), 1e-12)),
    }
    return languages, by_pair, of_draws, planted


def over_steps(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the records of the steps of a training, or of one model.

    Returns:
      ``steps``; ``layers``; ``selectivity`` [step][layer], the mean separability, with its ``null``
      (mean, ``low`` and ``high`` of 95 %, and ``max95`` and ``p`` of its maximum over layers and
      steps); ``same_language``, the mean separability of two random halves, and the other measures,
      [step][layer]; ``above_step_0``; ``contrasts`` of each step by name, with that of the outer
      and the middle layers of the last step as ``contrast``; ``controls``; and of the last step
      what else its record has.
    """
    last = records[-1]
    by_layer = {name: [record["by_layer"][name] for record in records] for name in last["by_layer"]}
    null = np.stack([record["draws"]["null"] for record in records], axis=1)  # [draws, steps, ...]
    halves = np.stack([record["draws"]["halves"] for record in records], axis=1)
    selectivity = np.array(by_layer["separability"], float)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    high95, p = max_test(selectivity, null)
    _, p_halves = max_test(*_standardised(halves[0], halves[1:]))
    steps = [record.get("step") for record in records]
    contrasts = _contrasts(records, null)
    dropped = ("by_layer", "draws", "planted", "step")
    return {
        **{name: value for name, value in last.items() if name not in dropped},
        "steps": steps,
        "layers": selectivity.shape[1],
        "selectivity": by_layer.pop("separability"),
        "null": {
            "mean": _plain(null.mean(axis=0)),
            "low": _plain(low),
            "high": _plain(high),
            "max95": high95,
            "p": p,
        },
        "same_language": _plain(halves[0]),
        **by_layer,
        "above_step_0": _plain(selectivity - selectivity[0]) if steps[0] == 0 else None,
        "contrasts": contrasts,
        "contrast": contrasts[-1][CONTRASTS[0]],
        "excess": [record["clamped"].get("excess") for record in records],
        "controls": _controls([record["planted"] for record in records], p_halves),
    }


def show(record: Mapping[str, Any]) -> str:
    """Returns a table of the layers at the last step, the contrast, clamping, and controls."""
    columns = {"selectivity": "selectivity:.3f", "shared_pieces_by_layer": "same pieces:.3f"}
    columns |= {"same_language": "halves:.3f"}
    columns |= {kind: f"{kind.replace('_', ' ')}:.3f" for kind in KINDS}
    columns |= {"rank_disagreement": "rank disagreement:.3f", "firing_rate": "firing:.3f"}
    columns |= {"specific": "specific:.0f", "flatness": "flatness:.3f"}
    rows = [
        {
            "layer": layer,
            **{name: record[name][-1][layer] for name in columns},
            "null": record["null"]["mean"][-1][layer],
        }
        for layer in range(record["layers"])
    ]
    selectivity, *others = columns.items()
    headers = {"layer": "layer:d", **dict([selectivity]), "null": "null:.3f", **dict(others)}
    lines = [
        table(rows, headers),
        f"{len(record['pairs']):,} pairs of {len(record['compared'])} languages "
        f"({record['pairs_left_out']:,} pairs left out), {record['sentences']:,} sentences, "
        f"positions: {record['positions']}; the highest null (95 %): {record['null']['max95']:.3f}",
        *_show_contrasts(record),
        *_show_clamped(record["clamped"]),
    ]
    lines += show_controls(record)
    if record["shared_pieces_left_out"]:
        lines.append(
            f"same pieces: {record['shared_pieces_left_out']} pairs are left out, with fewer than "
            f"{language_pairs.FEWEST} sentences that have a piece of both languages"
        )
    if record["truncated"]:
        lines.append(f"{record['truncated']:,} sentences were longer than the model, and were cut")
    return "\n".join([*lines, *show_skipped(record)])


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns, of the last step, means over layers, contrasts, and what clamping shows."""
    above = np.subtract(record["selectivity"][-1], record["null"]["mean"][-1])
    values = {"selectivity": np.mean(record["selectivity"][-1]), "above null": above.mean()}
    values |= {name: contrast["value"] for name, contrast in record["contrasts"][-1].items()}
    excess = record["excess"][-1] or {"value": None}
    values["clamped, above matched"] = excess["value"]
    return {name: float(value) for name, value in values.items() if value is not None}


def _layers_of_pairs(
    pairs: Sequence[tuple[str, str]],
    by_pair: Mapping[str, Any],
    shared: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns means over pairs, [layers]: of all, of each kind (None: there is none), and of those
    that were also compared over the pieces that both use."""
    layers = {name: np.mean(values, axis=0) for name, values in by_pair.items() if name != "null"}
    for kind in KINDS:
        chosen = [language_pairs.kind_of_pair(*pair) == kind for pair in pairs]
        layers[kind] = _mean_of(by_pair["separability"][chosen])
    layers["shared_pieces_by_layer"] = _mean_of([x["separability"] for x in shared])
    layers["shared_pieces_null"] = _mean_of([x["null"] for x in shared])
    layers["shared_pieces_all_tokens"] = _mean_of(
        by_pair["separability"][[x["pair"] for x in shared]] if shared else []
    )
    missing = [None] * by_pair["separability"].shape[1]
    return {name: missing if values is None else _plain(values) for name, values in layers.items()}


def _contrasts(
    records: Sequence[Mapping[str, Any]], null: np.ndarray
) -> list[dict[str, dict[str, float | None]]]:
    """Returns the contrasts of each step, with 95 % intervals from the bootstrap over sentences:
    1.96 of its standard deviations, as a mean of absolute values is biased in resamples."""
    fields = ("value", "low", "high", "null_mean", "null_max95")
    weights = depth_contrasts(null.shape[-1])
    if weights is None:
        none = dict.fromkeys(fields)
        return [{name: dict(none) for name in CONTRASTS} for _ in records]
    of_null = null @ weights.T  # [draws, steps, contrasts]
    highest = np.quantile(of_null.max(axis=1), 0.95, axis=0)
    found = []
    for place, record in enumerate(records):
        value = weights @ np.array(record["by_layer"]["separability"], float)
        half = 1.96 * (np.array(record["draws"]["resampled"]) @ weights.T).std(axis=0, ddof=1)
        columns = value, value - half, value + half, of_null[:, place].mean(axis=0), highest
        rows = [dict(zip(fields, row, strict=True)) for row in np.stack(columns, 1).tolist()]
        found.append(dict(zip(CONTRASTS, rows, strict=True)))
    return found


def _controls(planted: Sequence[Mapping[str, float]], p_halves: float) -> dict[str, Any]:
    """Returns the controls, of the step where each is worst."""
    separability = min(x["separability"] for x in planted)
    ratio = max((x["null_to_theory"] for x in planted), key=lambda ratio: abs(ratio - 1))
    rows = {
        "planted_neuron": (separability, "> 0.9", separability > 0.9),
        "same_language_p": (p_halves, "> 0.05", p_halves > 0.05),
        "swapped_labels_to_theory": (ratio, "0.9 to 1.1", 0.9 <= ratio <= 1.1),
    }
    return {
        name: {"value": float(value), "expected": expected, "ok": bool(ok)}
        for name, (value, expected, ok) in rows.items()
    }


def _standardised(observed: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both less the null's mean, by its standard deviation; 0 where that is 0."""
    mean, deviation = null.mean(axis=0), null.std(axis=0)
    scale = np.where(deviation > 0, deviation, np.inf)
    return (observed - mean) / scale, (null - mean) / scale


def _show_contrasts(record: Mapping[str, Any]) -> list[str]:
    contrasts = record["contrasts"][-1]
    if record["contrast"]["value"] is None:
        return ["no contrast of outer and middle layers: the model has fewer than 3"]
    return [
        f"{name} layers: {x['value']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}], "
        f"null {x['null_mean']:+.3f}, highest {x['null_max95']:+.3f}"
        for name, x in contrasts.items()
    ]


def _show_clamped(clamped: Mapping[str, Any]) -> list[str]:
    if "left_out" in clamped:
        return [f"no neurons were clamped: {clamped['left_out']}"]
    x = clamped["excess"]
    return [
        f"own neurons clamped: the language's own loss rises by {x['value']:+.4f} "
        f"[{x['low']:+.4f}, {x['high']:+.4f}] more than with neurons of like firing rates, and "
        "more than other languages' losses"
    ]


def _finite_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean along the last axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(axis=-1)
    return np.where(finite.any(axis=-1), total, np.nan) / np.maximum(finite.sum(axis=-1), 1)


def _mean_of(rows: Any) -> np.ndarray | None:
    """Returns the mean over rows; None where there are none."""
    return np.mean(rows, axis=0) if len(rows) else None


def _plain(value: Any) -> Any:
    """Returns lists for arrays, of numbers with 6 decimals; None for one that is not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        rounded = np.round(value.astype(np.float64), 6)
        return np.where(np.isfinite(rounded), rounded.astype(object), None).tolist()
    return value

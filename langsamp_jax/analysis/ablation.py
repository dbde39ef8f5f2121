"""Protocol: what a trained model's components are worth to a task.

A component is removed by an edit of the parameters, and the task is measured again. With m0 the
measure of the model as it is, m without the component, and c that of no knowledge at all (for
masked language modelling the unigram loss, for other tasks the model with random weights):

    drop = (m0 - m) / (m0 - c)

0 is no effect, 1 takes all away. It is given only of a model that is better than chance; the
change m - m0 always is. A component of a model that is then fine-tuned restarts from a constant,
and may be learned again; a block that is left out may not.

How a component is removed has to be said: its output can be held at zero, which it never is in
training, or at its mean over a text, or be turned by a random rotation, which leaves its norm; a
block can be left out, or change places with the next one. The correction by c, the modes and the
controls are ours.
"""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from langsamp_jax.analysis.ablation_tasks import FINE_TUNED, Scores, Task, open_task, sample
from langsamp_jax.analysis.influence import influences
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.config import FineTuneConfig
from langsamp_jax.evaluation.encoder import site_means
from langsamp_jax.evaluation.jobs import Journal, show_controls
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.io.progress import Progress, table
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.edits import apply_edits, clamp, constant, parse_edit

PARTS = ("attention", "ffn", "block", "all", "tables", "head", "norm", "run")
ALL_SUBSETS = 6  # the most blocks of which all subsets are left out
RANDOM_ORDERS = 5  # of more
MEAN_SITES = ("attention", "feed_forward", "heads")
_TURNED = ("rotated", "swap")
NO_CHANGE, AT_CHANCE = 1e-4, 1e-3  # of controls: the farthest from nothing, and from chance
_RESAMPLES = 2000
_NAMED = 10  # of the languages that a text lacks


class Removal(NamedTuple):
    """A component and how it is removed.

    Attributes:
      layer: the first one that it is about; None: all, or none.
      edits: what removes it, see ``models/edits.py``.
    """

    component: str
    layer: int | None
    mode: str
    edits: tuple[str, ...]


def removals(config: ModelConfig, parts: Sequence[str], mode: str) -> list[Removal]:
    """Returns what is removed, one at a time.

    Args:
      parts: some of ``PARTS``.
      mode: what the output of sub-layers and heads is held at, and the vectors of tables: zero,
        mean or language-mean.
    """
    layers, found = range(config.num_hidden_layers), []
    how = "zero" if mode == "zero" else "mean"  # of the text of a language or of all
    for part in ("attention", "ffn"):
        if part in parts:
            found += [Removal(part, k, mode, (f"{part}@{k}={how}",)) for k in layers]
            found += [Removal(part, k, "rotated", (f"{part}@{k}=rotated",)) for k in layers]
        if "all" in parts:
            found.append(Removal(f"all {part}", None, mode, (f"{part}@all={how}",)))
    if "block" in parts and len(layers) > 1:
        found += [Removal("block", k, "drop", (f"block@{k}",)) for k in layers]
        found += [Removal("block", k, "swap", (f"block@{k}=swap",)) for k in layers[:-1]]
    if "run" in parts:
        found += [
            Removal(f"run of {n}", k, "drop", (f"block@{k}-{k + n - 1}",))
            for n in range(2, len(layers))
            for k in range(len(layers) - n + 1)
        ]
    if "head" in parts:
        heads = [(k, h) for k in layers for h in range(config.num_attention_heads)]
        found += [Removal(f"head {h}", k, mode, (f"head@{k}.{h}={how}",)) for k, h in heads]
    if "norm" in parts:
        found += [Removal("norm", k, "plain", (f"norm@{k}",)) for k in layers]
        found.append(Removal("all norm", None, "plain", ("norm@all",)))
    if "tables" in parts and config.placement != "none":
        used = {"language": config.use_language, "script": config.use_script}
        tables = [name for name in used if used[name]]
        found += [Removal(f"{name} table", None, how, (f"{name}={how}",)) for name in tables]
        if len(tables) > 1:
            both = tuple(f"{name}={how}" for name in tables)
            found.append(Removal("both tables", None, how, both))
    return found


def evaluate(
    model: LoadedModel,
    data: Path,
    journal: Journal,
    on: str,
    parts: Sequence[str],
    mode: Literal["zero", "mean", "language-mean"],
    reference: Path | None,
    pivot: str,
    config: FineTuneConfig,
) -> dict[str, Any]:
    """Removes each component alone, then blocks one after the other, and measures the task.

    Args:
      on: the name of a task; ``data`` is what it reads.
      mode: see ``removals``; language-mean is the mean over the text of the language that is
        tested, which leaves what the component says of the language.
      reference: a folder of text over which the means are; None: training rows of the run's store.
      pivot: the language-script of the queries, or to fine-tune on.

    Returns:
      ``drops``: a record for each removal, with its ``change`` in the units of the metric;
      ``no_drop``: why no drop is given, or None; ``cumulative``: a record for each number of blocks
      left out in some order; ``subsets``: of few blocks, the values without all choices of so many;
      ``predictors`` by layer, and their rank ``correlations`` with the drops of the same layers;
      ``controls``; ``value`` of the whole model and ``chance``.

    Raises:
      UserError: there is no text for the means, in the mode language-mean of each language that is
        tested, or as the protocol of the task.
    """
    task = open_task(on, model, data, journal, pivot, config)
    if mode == "language-mean" and task.score_each is None:
        raise UserError(f"--mode language-mean needs --on mlm; --on {on} has no rows by language")
    text = dict(sample(model, data, reference))
    bench = _Bench(model, task, journal, text)
    if mode == "language-mean":
        _require_text(text, bench.whole.languages)
    found = removals(model.config, parts, mode)
    predictors = influences(model, text.items())
    orders = removal_orders(predictors["block"]) if "block" in parts else {}
    with Progress("ablation", len(found), "components") as progress:
        drops = []
        for removal in found:
            drops.append(bench.drop(removal))
            progress.advance(1)
    return {
        "on": on,
        "metric": task.metric,
        "fine_tuned": on in FINE_TUNED,
        "mode": mode,
        "value": bench.whole.value,
        "chance": task.chance,
        "no_drop": bench.no_drop,
        "languages": bench.whole.languages,
        "reference": {"languages": len(text), "sentences": sum(map(len, text.values()))},
        "drops": drops,
        "cumulative": [
            {"order": name, "removed": n, **bench.drop(_without_blocks(order[:n]))}
            for name, order in orders.items()
            for n in range(1, len(order))
        ],
        "subsets": bench.subsets() if "block" in parts else [],
        "predictors": predictors,
        "correlations": correlations(predictors, drops),
        "controls": bench.controls(thorough=on not in FINE_TUNED),
    }


def show(record: Mapping[str, Any]) -> str:
    headers = {"component": "component", "layer": "layer:d", "mode": "mode"}
    headers |= {"value": f"{record['metric']}:.3f", "change": "change:+.3f", "drop": "drop:.1%"}
    headers |= {"low": "from:.1%", "high": "to:.1%"}
    meaning = "drop: 0 % no effect, 100 % as good as chance"
    if record["no_drop"]:
        meaning = f"no drops: {record['no_drop']}"
    lines = [
        table(record["drops"], headers),
        f"{record['metric']} {record['value']:.3f} of the whole model, {record['chance']:.3f} at "
        f"chance; {meaning}",
    ]
    for name, rho in record["correlations"].items():
        lines.append(f"{name}: rank correlation with its drop over layers {rho:+.2f}")
    lines += show_controls(record)
    return "\n".join(lines)


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    def name(drop: Mapping[str, Any]) -> str:
        layer = "" if drop["layer"] is None else f" {drop['layer']}"
        return f"{drop['component']}{layer}, {drop['mode']}/drop"

    return {name(drop): drop["drop"] for drop in record["drops"] if drop["drop"] is not None}


def removal_orders(influence: Sequence[float]) -> dict[str, list[int]]:
    """Returns in which orders blocks are left out, one after the other; random ones only where
    not all subsets of the blocks are."""
    number = len(influence)
    drawn = RANDOM_ORDERS if number > ALL_SUBSETS else 0
    middle = (number - 1) / 2
    rng = np.random.default_rng(0)
    return {
        "from the top": list(range(number))[::-1],
        "from the middle": sorted(range(number), key=lambda k: (abs(k - middle), k)),
        "least influence first": np.argsort(influence, kind="stable").tolist(),
        **{f"random {i + 1}": rng.permutation(number).tolist() for i in range(drawn)},
    }


def correlations(
    predictors: Mapping[str, Sequence[float]], drops: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Returns Spearman's rho of each predictor with the drops of the layers that it is about;
    nothing of a model with fewer than three layers, or where all drops are the same."""
    found = {}
    for part, values in predictors.items():
        alone = [d["drop"] for d in drops if d["component"] == part and d["mode"] not in _TURNED]
        if len(alone) == len(values) > 2 and len({*alone}) > 1:
            found[part] = float(spearmanr(values, alone).statistic)
    return found


def relative_drop(whole: float, value: float, chance: float, sign: int) -> float | None:
    """Returns (whole - value) / (whole - chance); None where the whole is no better than chance.

    Args:
      sign: see ``Task``.
    """
    return (whole - value) / (whole - chance) if sign * (whole - chance) > 0 else None


def drop_interval(
    whole: Scores, scores: Scores, chance: float, sign: int, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """Returns the ends of the 95 % percentile bootstrap of a drop over the rows of text, which both
    models are measured on; None where there are none, or where the whole model is no better than
    chance in some resample. The chance level is taken as it is."""
    if whole.sums is None or len(whole.sums) != len(scores.sums):
        return None, None
    rng, number, drops = np.random.default_rng(seed), len(whole.sums), []
    for _ in range(_RESAMPLES):
        weight = np.bincount(rng.integers(number, size=number), minlength=number)
        before, after = (weight @ each.sums / (weight @ each.counts) for each in (whole, scores))
        drops.append(relative_drop(before, after, chance, sign))
        if drops[-1] is None:
            return None, None
    low, high = np.quantile(drops, (0.025, 0.975))
    return float(low), float(high)


def _require_text(text: Mapping[str, Sequence[np.ndarray]], languages: Collection[str]) -> None:
    """Raises UserError where a text has no tokens of some of the languages."""
    missing = [name for name in languages if not any(map(len, text.get(name, ())))]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise UserError(
            "--mode language-mean: the text over which means are taken has nothing of "
            f"{', '.join(missing[:_NAMED])}{more}"
        )


def _without_blocks(blocks: Sequence[int]) -> Removal:
    return Removal("blocks", None, "drop", tuple(f"block@{k}" for k in sorted(blocks)))


def _edited(model: LoadedModel, edits: Sequence[str], means: Mapping[str, Any]) -> LoadedModel:
    changed = apply_edits([*map(parse_edit, edits)], model.model, model.params, means)
    return dataclasses.replace(model, model=changed[0], params=changed[1])


def _control(value: float, expected: float | str, ok: bool) -> dict[str, Any]:
    return {"value": value, "expected": expected, "ok": ok}


class _Bench:
    """A model, a task, and what is measured of the model's edits."""

    def __init__(self, model: LoadedModel, task: Task, journal: Journal, text: Mapping[str, Any]):
        self.model, self.task, self._journal, self._text = model, task, journal, text
        self._means = site_means(model, MEAN_SITES, text.items())
        self._scores: dict[tuple[str, ...], Scores] = {}
        self._language_means: dict[str, Mapping[str, Any]] = {}
        self.whole = self.scores(())

    @property
    def no_drop(self) -> str | None:
        """Returns why no drop can be given; None: it can."""
        whole, chance = self.whole.value, self.task.chance
        if self.task.sign * (whole - chance) > 0:
            return None
        return (
            f"the whole model is not better than chance: {self.task.metric} {whole:.3f}, at chance "
            f"{chance:.3f}"
        )

    def scores(self, edits: tuple[str, ...]) -> Scores:
        """Returns the scores after edits, each set of them measured once."""
        if edits not in self._scores:
            journal = self._journal.under(" ".join(edits) or "whole")
            self._scores[edits] = self.task.score(_edited(self.model, edits, self._means), journal)
        return self._scores[edits]

    def of_language_means(self, edits: tuple[str, ...]) -> Scores:
        def model_of(name: str) -> LoadedModel:
            if name not in self._language_means:
                text = [(name, self._text[name])]
                self._language_means[name] = site_means(self.model, MEAN_SITES, text)
            return _edited(self.model, edits, self._language_means[name])

        return self.task.score_each(model_of)

    def drop(self, removal: Removal) -> dict[str, Any]:
        by_language = removal.mode == "language-mean"
        scores = self.of_language_means if by_language else self.scores
        after, against = scores(removal.edits), (self.task.chance, self.task.sign)
        low, high = drop_interval(self.whole, after, *against)
        return {
            **removal._asdict(),
            "value": after.value,
            "change": after.value - self.whole.value,
            "drop": relative_drop(self.whole.value, after.value, *against),
            "low": low,
            "high": high,
            "languages": after.languages,
        }

    def subsets(self) -> list[dict[str, Any]]:
        """Returns, for each number of blocks, ``min``, ``median`` and ``max`` of the values without
        any so many; nothing of a model with more than ``ALL_SUBSETS`` blocks."""
        layers, found = range(self.model.config.num_hidden_layers), []
        for removed in range(1, len(layers)) if len(layers) <= ALL_SUBSETS else ():
            chosen = [*itertools.combinations(layers, removed)]
            values = [self.scores(_without_blocks(blocks).edits).value for blocks in chosen]
            ends = {"min": min(values), "median": float(np.median(values)), "max": max(values)}
            found.append({"removed": removed, "subsets": len(chosen), **ends})
        return found

    def controls(self, thorough: bool) -> dict[str, dict[str, Any]]:
        """Returns what is known beforehand; without ``thorough`` only that of no edit.

        The same parameters give the same value, and a model that is made to know the language
        alone comes to chance. See also ``_planted``.
        """
        config = self.model.config
        none = np.zeros((config.num_hidden_layers, config.intermediate_size), bool)
        same = dataclasses.replace(self.model, params=clamp(self.model.params, none, 1.0))
        change = self._value(same, "no edit") - self.whole.value
        found = {"no edit": _control(change, 0.0, change == 0)}
        if thorough:
            found |= self._planted()
        if self.task.without_context:
            value, chance = self.task.without_context(self.model).value, self.task.chance
            found["no context"] = _control(value, chance, abs(value - chance) <= AT_CHANCE)
        return found

    def _planted(self) -> dict[str, dict[str, Any]]:
        """Plants a feed-forward that gives one random vector in the first layer, which all tasks
        read: its mean must be worth the same; and zero not, to a loss, which moves where ranks may
        stay."""
        vector = np.random.default_rng(0).normal(size=self.model.config.hidden_size)
        params = constant(self.model.params, "ffn", 0, vector)
        planted = dataclasses.replace(self.model, params=params)
        means, found = site_means(planted, MEAN_SITES, self._text.items()), {}
        whole = self._value(planted, "a constant ffn")
        for how in ("mean", "zero") if self.whole.sums is not None else ("mean",):
            name = f"a constant ffn, {how}"
            change = self._value(_edited(planted, (f"ffn@0={how}",), means), name) - whole
            none = abs(change) <= NO_CHANGE
            expected, ok = (0.0, none) if how == "mean" else ("not 0", not none)
            found[name] = _control(change, expected, ok)
        return found

    def _value(self, model: LoadedModel, name: str) -> float:
        return self.task.score(model, self._journal.under(name)).value

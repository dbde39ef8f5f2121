"""Protocol: what a trained model's components are worth to a task.

A component is removed by an edit of the parameters, and the task is measured again. With m0 the
measure of the model as it is, m without the component, and c that of no knowledge at all (for
masked language modelling the unigram loss, for other tasks the model with random weights):

    drop = (m0 - m) / (m0 - c)

0 is no effect, 1 takes all away. How a component is removed has to be said: its output can be held
at zero, which it never is in training, or at its mean over a text, or be turned by a random
rotation, which leaves its norm; a block can be left out, or change places with the next one. The
correction by c, the modes and the controls are ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
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
from langsamp_jax.models.edits import apply_edits, clamp, parse_edit

PARTS = ("attention", "ffn", "block", "all", "tables", "head", "norm", "run")
RANDOM_ORDERS = 5
MEAN_SITES = ("attention", "feed_forward", "heads")
_TURNED = ("rotated", "swap")
_RESAMPLES = 2000


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
      ``drops``: a record for each removal; ``cumulative``: one for each number of blocks left out
      in some order; ``predictors`` by layer, and their rank ``correlations`` with the drops of the
      same layers; ``controls``; ``value`` of the whole model and ``chance``.

    Raises:
      UserError: there is no text for the means, or as the protocol of the task.
    """
    task = open_task(on, model, data, journal, pivot, config)
    if mode == "language-mean" and task.score_each is None:
        raise UserError(f"--mode language-mean needs --on mlm; --on {on} has no rows by language")
    text = dict(sample(model, data, reference))
    bench = _Bench(model, task, journal, text)
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
        "languages": bench.whole.languages,
        "reference": {"languages": len(text), "sentences": sum(map(len, text.values()))},
        "drops": drops,
        "cumulative": [
            {"order": name, "removed": n, **bench.drop(_without_blocks(order[:n]))}
            for name, order in orders.items()
            for n in range(1, len(order))
        ],
        "predictors": predictors,
        "correlations": correlations(predictors, drops),
        "controls": bench.controls(thorough=on not in FINE_TUNED),
    }


def show(record: Mapping[str, Any]) -> str:
    headers = {"component": "component", "layer": "layer:d", "mode": "mode"}
    headers |= {"value": f"{record['metric']}:.3f", "drop": "drop:.1%"}
    headers |= {"low": "from:.1%", "high": "to:.1%"}
    lines = [
        table(record["drops"], headers),
        f"{record['metric']} {record['value']:.3f} of the whole model, {record['chance']:.3f} at "
        "chance; drop: 0 % no effect, 100 % as good as chance",
    ]
    for name, rho in record["correlations"].items():
        lines.append(f"{name}: rank correlation with its drop over layers {rho:+.2f}")
    lines += show_controls(record)
    return "\n".join(lines)


def measures(record: Mapping[str, Any]) -> dict[str, float]:
    def name(drop: Mapping[str, Any]) -> str:
        layer = "" if drop["layer"] is None else f" {drop['layer']}"
        return f"{drop['component']}{layer}, {drop['mode']}/drop"

    return {name(drop): drop["drop"] for drop in record["drops"]}


def removal_orders(influence: Sequence[float]) -> dict[str, list[int]]:
    """Returns in which orders blocks are left out, one after the other."""
    number = len(influence)
    middle = (number - 1) / 2
    rng = np.random.default_rng(0)
    return {
        "from the top": list(range(number))[::-1],
        "from the middle": sorted(range(number), key=lambda k: (abs(k - middle), k)),
        "least influence first": np.argsort(influence, kind="stable").tolist(),
        **{f"random {i + 1}": rng.permutation(number).tolist() for i in range(RANDOM_ORDERS)},
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


def drop_interval(
    whole: Scores, scores: Scores, chance: float, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """Returns the ends of the 95 % percentile bootstrap of a drop over the rows of text, which both
    models are measured on; None where there are none. The chance level is taken as it is."""
    if whole.sums is None or len(whole.sums) != len(scores.sums):
        return None, None
    rng, number, drops = np.random.default_rng(seed), len(whole.sums), []
    for _ in range(_RESAMPLES):
        weight = np.bincount(rng.integers(number, size=number), minlength=number)
        before, after = (weight @ each.sums / (weight @ each.counts) for each in (whole, scores))
        drops.append((before - after) / (before - chance))
    low, high = np.quantile(drops, (0.025, 0.975))
    return float(low), float(high)


def _without_blocks(blocks: Sequence[int]) -> Removal:
    return Removal("blocks", None, "drop", tuple(f"block@{k}" for k in sorted(blocks)))


class _Bench:
    """A model, a task, and what is measured of the model's edits."""

    def __init__(self, model: LoadedModel, task: Task, journal: Journal, text: Mapping[str, Any]):
        self.model, self.task, self._journal, self._text = model, task, journal, text
        self._means = site_means(model, MEAN_SITES, text.items())
        self._scores: dict[tuple[str, ...], Scores] = {}
        self.whole = self.scores(())

    def edited(self, edits: Sequence[str], means: Mapping[str, Any]) -> LoadedModel:
        changed = apply_edits([*map(parse_edit, edits)], self.model.model, self.model.params, means)
        return dataclasses.replace(self.model, model=changed[0], params=changed[1])

    def scores(self, edits: tuple[str, ...]) -> Scores:
        """Returns the scores after edits, each set of them measured once."""
        if edits not in self._scores:
            journal = self._journal.under(" ".join(edits) or "whole")
            self._scores[edits] = self.task.score(self.edited(edits, self._means), journal)
        return self._scores[edits]

    def of_language_means(self, edits: tuple[str, ...]) -> Scores:
        def model_of(name: str) -> LoadedModel:
            text = [(name, self._text[name])]
            return self.edited(edits, site_means(self.model, MEAN_SITES, text))

        return self.task.score_each(model_of)

    def drop(self, removal: Removal) -> dict[str, Any]:
        by_language = removal.mode == "language-mean"
        scores = self.of_language_means if by_language else self.scores
        after, chance = scores(removal.edits), self.task.chance
        low, high = drop_interval(self.whole, after, chance)
        return {
            **removal._asdict(),
            "value": after.value,
            "drop": self._relative(after.value),
            "low": low,
            "high": high,
            "languages": after.languages,
        }

    def _relative(self, value: float) -> float:
        """Returns the drop to a value: 0 for none, though there were nothing to lose."""
        lost = self.whole.value - value
        return lost / (self.whole.value - self.task.chance) if lost else 0.0

    def controls(self, thorough: bool) -> dict[str, dict[str, Any]]:
        """Returns what must come out exactly; without ``thorough`` only that of no edit."""
        layers = self.model.config.num_hidden_layers
        neurons = (layers, self.model.config.intermediate_size)
        none = np.zeros(neurons, bool)
        same = clamp(self.model.params, none, 1.0)
        same = dataclasses.replace(self.model, params=same)
        again = self.task.score(same, self._journal.under("no edit")).value
        differences = {"no edit": again - self.whole.value}
        if thorough:
            everything = self.scores(("attention@all=zero",)).value
            others = tuple(f"attention@{k}=zero" for k in range(1, layers))
            last = self.scores((*others, "attention@0=zero")).value
            dead = self.scores((f"ffn@{layers - 1}=zero",)).value
            twice = self.scores((f"ffn@{layers - 1}=zero",) * 2).value
            differences |= {"a dead layer": twice - dead, "the last attention": last - everything}
        return {
            name: {"value": value, "expected": 0.0, "ok": value == 0}
            for name, value in differences.items()
        }

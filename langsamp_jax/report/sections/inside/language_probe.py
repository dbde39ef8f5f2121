"""The section about how well a probe reads the language off the states, by layer and by step."""

from collections.abc import Mapping
from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import failed_controls
from langsamp_jax.report.figures import Figure, Section
from langsamp_jax.report.run_results import RunResults

POSITION = 42  # on the page

_TITLE = "The language in the states"


def section(results: RunResults) -> Section:
    """Returns the accuracy by layer with its controls, and over the steps where there are some."""
    fields = (
        "accuracy",
        "control",
        "low",
        "high",
        "chance",
        "chance_within_script",
        "steps",
        "layers",
        "languages",
    )
    stems = [stem for stem in ("language-probe-steps", "language-probe") if stem in
             results.evaluations]  # fmt: skip
    if not stems:
        command = results.evaluate_command("language-probe", "--data CORPUS --step all")
        return Section("language-probe", _TITLE, command=command)
    record = results.evaluation(stems[0], *fields)
    figures = [_by_layer(record)]
    if len(record["steps"]) > 1:
        figures += [_by_step(record), _spread(record)]
    text = (
        f"A linear probe says which of {len(record['languages'])} languages one token is from; the "
        f"same sentences in all, {record['sentences']:,} of them. Chance is {record['chance']:.1%}"
    )
    within = record["chance_within_script"]  # None: each language is alone in its script
    text += "." if within is None else f", within a script {within:.1%}."
    text += failed_controls(record)
    return Section("language-probe", _TITLE, text, figures)


def _by_layer(record: Mapping[str, Any]) -> Figure:
    series = {"accuracy": "accuracy", "low": "95 %, from", "high": "95 %, to"}
    series |= {"unseen_pieces": "on pieces unseen in training", "within_script": "within script"}
    series |= {"control": "control task"}
    records = [
        {"layer": layer, "series": title, "value": value}
        for name, title in series.items()
        for layer, value in enumerate(record[name][-1] or ())
    ]
    records += [
        {"layer": layer, "series": "chance", "value": record["chance"]}
        for layer in range(record["layers"])
    ]
    last = record["accuracy"][-1]
    return Figure(
        "language-probe-by-layer",
        "Languages told apart, by layer",
        "Layer 0 is the embeddings. The control task gives each piece a random class: a probe that "
        "does well on it knows pieces. Only what exceeds it, and holds on pieces that were not in "
        "training and within a script, is knowledge of languages.",
        f"Accuracy by layer: {', '.join(f'{value:.0%}' for value in last)}.",
        records,
        charts.curves(records, "layer", "accuracy", ".0%", zero=True),
    )


def _by_step(record: Mapping[str, Any]) -> Figure:
    cells = [
        {"step": step, "layer": layer, "value": value}
        for step, row in zip(record["steps"], record["accuracy"], strict=True)
        for layer, value in enumerate(row)
    ]
    ends = record["accuracy"][0][-1], record["accuracy"][-1][-1]
    return Figure(
        "language-probe-by-step",
        "Languages told apart, by layer and step",
        "Step 0 is random weights: what is told there, pieces tell.",
        f"Accuracy of the last layer from {ends[0]:.0%} to {ends[1]:.0%}.",
        cells,
        charts.grid(cells, "step", "layer", "accuracy"),
    )


def _spread(record: Mapping[str, Any]) -> Figure:
    kinds = {"highest layer": max, "mean of the layers": lambda row: sum(row) / len(row),
             "lowest layer": min}  # fmt: skip
    records = [
        {"step": step, "series": name, "value": of(row)}
        for name, of in kinds.items()
        for step, row in zip(record["steps"], record["accuracy"], strict=True)
    ]
    return Figure(
        "language-probe-spread",
        "How far layers differ, over the training",
        "Layers that say the same at first and differ later have divided the work.",
        f"The layers span {min(record['accuracy'][-1]):.0%} to {max(record['accuracy'][-1]):.0%} "
        "at the last step.",
        records,
        charts.curves(records, "step", "accuracy", ".0%", zero=True, logarithmic=True),
    )

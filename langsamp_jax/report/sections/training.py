"""The section about the training: loss, speed and time over the steps."""

import statistics
from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.figures import Figure, Section
from langsamp_jax.report.run_results import RunResults

POSITION = 10  # on the page

_POINTS = 600  # the most of a curve; of more, neighbours are averaged
_PHASES = ("step", "input", "validation", "checkpoint")
_CURVES = (  # title, title of the values, format, from zero, series and their keys, caption
    (
        "Loss",
        "cross-entropy (nats)",
        ".3~f",
        False,
        {"training": "train/loss", "validation": "eval/loss"},
        "Lower is better. Validation is on rows held out from training, with masks that never "
        "change.",
    ),
    (
        "Throughput",
        "tokens per second",
        ".3~s",
        True,
        {"with padding": "tokens_per_second", "without padding": "real_tokens_per_second"},
        "Over the time of input and steps; validation and checkpoints are not counted.",
    ),
    (
        "Model FLOPs utilisation",
        "share of the peak",
        ".1%",
        True,
        {"MFU": "mfu"},
        "Useful FLOPs over what the devices could do at their bf16 peak.",
    ),
    (
        "Sentence cosine",
        "mean cosine",
        ".2~f",
        True,
        {"validation rows": "encoder/sentence_cosine"},
        "How alike the encoder's vectors of different texts are; near 1 it tells none apart.",
    ),
    ("Learning rate", "rate", ".2~g", True, {"rate": "learning_rate"}, "Of each update."),
)


def section(results: RunResults) -> Section:
    """Returns loss, speed and time over the steps."""
    possible = [*(_curve(results, *curve) for curve in _CURVES), _step_time(results)]
    figures = [figure for figure in possible if figure]
    command = "" if figures else f"langsamp train --output {results.path_argument} ..."
    return Section("training", "Training", figures=figures, command=command)


def _curve(
    results: RunResults,
    title: str,
    y: str,
    form: str,
    zero: bool,
    series: dict[str, str],
    caption: str,
) -> Figure | None:
    records, averaged = _series(results, series)
    if not records:
        return None
    last = {record["series"]: record["value"] for record in records}
    ends = ", ".join(f"{label} {value:.4g}" for label, value in last.items())
    alt = f"{title} over {results.step:,} steps; at the end: {ends}."
    chart = charts.curves(records, "step", y, form, zero)
    name = title.lower().replace(" ", "-")
    return Figure(name, title, caption + averaged, alt, records, chart)


def _step_time(results: RunResults) -> Figure | None:
    records, averaged = _series(results, {phase: f"time/{phase}" for phase in _PHASES})
    if not records:
        return None
    seconds = {phase: [r["value"] for r in records if r["series"] == phase] for phase in _PHASES}
    means = [
        f"{phase} {statistics.mean(values):.3g}" for phase, values in seconds.items() if values
    ]
    return Figure(
        "step-time",
        "Where the time of a step goes",
        "Step: dispatching, or waiting for the device. Input: waiting for a batch. Validation and "
        f"checkpoints: the loop stands still; their time is spread over the steps.{averaged}",
        f"Seconds a step, on average: {', '.join(means)}.",
        records,
        charts.stacked(records, "step", "seconds a step"),
    )


def _series(results: RunResults, keys: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """Returns the points of each series, and a sentence where neighbours have been averaged."""
    records, together = [], 1
    for series, key in keys.items():
        points = results.column(key)
        many = -(-len(points) // _POINTS)
        together = max(together, many)
        for start in range(0, len(points), max(1, many)):
            steps, values = zip(*points[start : start + many], strict=True)
            mean = statistics.mean(values)
            records.append({"step": steps[-1], "series": series, "value": mean})
    return records, f" A point is the mean of {together} log lines." if together > 1 else ""

"""The section about what was evaluated at many steps of the training."""

from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import task_title
from langsamp_jax.report.figures import Figure, Section
from langsamp_jax.report.run_results import RunResults

POSITION = 75  # on the page

_CURVES = 4  # the first measures of a task


def section(results: RunResults) -> Section:
    """Returns the measures of each series over the steps; snapshots ask for one."""
    figures = [_figure(stem, series) for stem, series in results.series.items()]
    command = ""
    if not figures and results.run.snapshots.is_dir():
        command = results.evaluate_command("mlm", "--data STORE --step all")
    return Section("steps", "Over the training", figures=figures, command=command)


def _figure(stem: str, series: dict[str, Any]) -> Figure:
    title = task_title(stem.removesuffix("-steps"))
    records = [
        {"step": record["step"], "series": name, "value": record["measures"][name]}
        for name in list(series["measures"])[:_CURVES]
        for record in series["records"]
        if name in record["measures"]
    ]
    ends = ", ".join(f"{name} {value:.4g}" for name, value in series["measures"].items())
    return Figure(
        stem,
        title,
        f"At {len(series['steps'])} steps; the axis of the steps is logarithmic from 1 on.",
        f"{title} over the steps of the training; at the end: {ends}.",
        records,
        charts.curves(records, "step", title, ".3~f", zero=False, logarithmic=True),
    )

"""The section about choosing a donor language: what each way of choosing is worth."""

from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import is_share, metric_title, task_title
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 80  # on the page


def section(results: RunResults) -> Section:
    """Returns what each way of choosing a donor language is worth."""
    title = "Choosing a donor language"
    fields = ("metric", "on", "choices.*.choice", "choices.*.mean")
    evaluation = results.evaluation("donors", *fields)
    if evaluation is None:
        return Section("donors", title, command=results.evaluate_command("donors", "--data SIB200"))
    ends = {"oracle": 0, "random": 2}
    records = sorted(
        ({key: choice.get(key) for key in ("choice", "mean", "low", "high", "targets")}
         for choice in evaluation["choices"]),
        key=lambda record: (ends.get(record["choice"], 1), -record["mean"]),
    )  # fmt: skip
    metric = metric_title(evaluation["metric"])
    form = ".1%" if is_share(evaluation["metric"]) else ".2f"
    means = ", ".join(f"{r['choice']} {r['mean']:{form}}" for r in records)
    figure = Figure(
        "donors",
        "Transfer by way of choosing",
        "The mean over target languages and its confidence interval. The oracle picks the best "
        "donor with hindsight; random is what no knowledge gives.",
        f"Mean {metric} by way of choosing: {means}.",
        records,
        charts.intervals(records, f"mean {metric}", form),
    )
    tables = []
    if evaluation.get("correlations"):
        rows = [
            [record["similarity"], format_number(record["rho"], ".2f"), _interval(record, ".2f")]
            for record in evaluation["correlations"]
        ]
        headers = ["similarity", "ρ", "interval"]
        tables.append(Table("Rank correlation of similarity and transfer", headers, rows))
    choices = [choice for choice in evaluation["choices"] if choice.get("chosen")]
    if choices:
        targets = list(dict.fromkeys(target for choice in choices for target in choice["chosen"]))
        rows = [[t, *(choice["chosen"].get(t, "–") for choice in choices)] for t in targets]
        headers = ["target", *(choice["choice"] for choice in choices)]
        tables.append(Table("The donor of each target", headers, rows, True, True))
    task = task_title(evaluation["on"])
    text = f"Zero-shot transfer on {task}: fine-tuned on the donor's data alone."
    return Section("donors", title, text, [figure], tables)


def _interval(record: dict[str, Any], form: str) -> str:
    return f"{format_number(record.get('low'), form)} to {format_number(record.get('high'), form)}"

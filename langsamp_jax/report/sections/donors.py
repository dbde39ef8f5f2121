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
    metric = metric_title(evaluation["metric"])
    form = ".1%" if is_share(evaluation["metric"]) else ".2f"
    choices = _in_order(evaluation["choices"])
    compared = [{"choice": c["choice"], **c["common"]} for c in choices if c.get("common")]
    compared = [record for record in compared if record["mean"] is not None]
    if compared:
        shared = f"the same {compared[0]['targets']} targets"
    else:  # a result of an older version, or no target that all have
        shared = "the targets that each has (in brackets)"
        fields = ("mean", "low", "high", "targets")
        compared = [
            {"choice": f"{c['choice']} ({c.get('targets', '?')})"} | {f: c.get(f) for f in fields}
            for c in choices
        ]
    means = ", ".join(f"{r['choice']} {r['mean']:{form}}" for r in compared)
    figure = Figure(
        "donors",
        "Transfer by way of choosing",
        f"The mean over {shared} and its 95 % interval. The oracle picks the best donor with "
        "hindsight; random is what no knowledge gives.",
        f"Mean {metric} by way of choosing, over {shared}: {means}.",
        compared,
        charts.intervals(compared, f"mean {metric}", form),
    )
    of_each = Table(
        "Over all targets that a way of choosing has; less random: over the same of them",
        ["donor by", "targets", metric, "interval", "less random", "interval"],
        [
            [
                choice["choice"],
                str(choice.get("targets", "–")),
                format_number(choice["mean"], form),
                _interval(choice, form),
                *_less_random(choice, form),
            ]
            for choice in choices
        ],
    )
    tables = [of_each]
    if evaluation.get("correlations"):
        rows = [
            [record["similarity"], format_number(record["rho"], ".2f"), _interval(record, ".2f")]
            for record in evaluation["correlations"]
        ]
        headers = ["similarity", "ρ", "interval"]
        tables.append(Table("Rank correlation of similarity and transfer", headers, rows))
    if chosen := [choice for choice in choices if choice.get("chosen")]:
        targets = list(dict.fromkeys(target for choice in chosen for target in choice["chosen"]))
        rows = [[t, *(choice["chosen"].get(t, "–") for choice in chosen)] for t in targets]
        headers = ["target", *(choice["choice"] for choice in chosen)]
        tables.append(Table("The donor of each target", headers, rows, True, True))
    task = task_title(evaluation["on"])
    text = f"Zero-shot transfer on {task}: fine-tuned on the donor's data alone."
    return Section("donors", title, text, [figure], tables)


def _in_order(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the choices that have a mean: the oracle, the others by it, and random."""
    ends = {"oracle": 0, "random": 2}
    return sorted(
        (choice for choice in choices if choice["mean"] is not None),
        key=lambda choice: (ends.get(choice["choice"], 1), -choice["mean"]),
    )


def _less_random(choice: dict[str, Any], form: str) -> tuple[str, str]:
    against = choice.get("against", {}).get("random", {})
    return format_number(against.get("difference"), f"+{form}"), _interval(against, form)


def _interval(record: dict[str, Any], form: str) -> str:
    """Returns the ends of an interval; a dash where there is none."""
    ends = [record.get(end) for end in ("low", "high")]
    return "–" if None in ends else " to ".join(format_number(end, form) for end in ends)

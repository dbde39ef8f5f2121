"""The section about what the components of the model are worth to a task."""

from collections import defaultdict
from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import at_step, failed_controls
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 55  # on the page

_TITLE = "What the components are worth"
_RANGE = {
    "all choices": "The range is over all choices of so many blocks: an order says something where "
    "it is near one of its ends.",
    "random order": "An order says something where it lies outside the range of random orders.",
}
_SUBSETS = {"lowest": "min", "median": "median", "highest": "max"}


def section(results: RunResults) -> Section:
    """Returns the drop without each component, and what is left as blocks are left out."""
    fields = ("drops.*.component", "drops.*.layer", "drops.*.drop", "drops.*.mode", "cumulative")
    fields += ("drops.*.change", "no_drop", "subsets", "controls")
    record = results.evaluation("ablation", *fields, "metric", "value", "chance", "on")
    if record is None:
        command = results.evaluate_command("ablation", "--data STORE --on mlm")
        return Section("ablation", _TITLE, command=command)
    metric, figures = record["metric"], []
    no_drop = record["no_drop"]
    if cells := _cells(record, "change" if no_drop else "drop"):
        figures.append(_by_layer(cells, metric, no_drop))
    if curve := _left(record):
        chosen = "all choices" if record["subsets"] else "random order"
        figures.append(
            Figure(
                "ablation-blocks-left-out",
                "The task as blocks are left out",
                f"One block after the other, in an order fixed beforehand. {_RANGE[chosen]}",
                f"{metric} from {record['value']:.3f} with all blocks; chance is "
                f"{record['chance']:.3f}.",
                curve,
                charts.curves(curve, "blocks left out", metric, ".3~f", zero=False),
            )
        )
    text = (
        f"{metric} on {record['on']} is {record['value']:.3f} with the whole model and "
        f"{record['chance']:.3f} at chance{at_step(record)}."
    )
    text += f" No drops are given: {no_drop}." if no_drop else ""
    text += failed_controls(record)
    return Section("ablation", _TITLE, text, figures, _tables(record))


def _cells(record: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return [
        {"component": f"{d['component']}, {d['mode']}", "layer": d["layer"], "value": d[field]}
        for d in record["drops"]
        if d["layer"] is not None
    ]


def _by_layer(cells: list[dict[str, Any]], metric: str, no_drop: str | None) -> Figure:
    """Returns the heat map of drops; or, where there are none, of the changes of the metric."""
    what = f"change of {metric}" if no_drop else "drop"
    meaning = (
        f"{metric} without the component less {metric} of the whole model: no drop can be given, "
        f"for {no_drop}."
        if no_drop
        else "How much of what the model knows of the task is gone: 0 is no effect, 1 as good as "
        "chance."
    )
    worst = max(cells, key=lambda cell: abs(cell["value"]) if no_drop else cell["value"])
    return Figure(
        "ablation-by-layer",
        f"{what.capitalize()} without one component of one layer",
        f"{meaning} Single removals understate a component that another makes up for.",
        f"The {what} of {len(cells)} removals; the largest is {worst['value']:.2f} "
        f"({worst['component']}, layer {worst['layer']}).",
        cells,
        charts.grid(cells, "component", "layer", what),
    )


def _left(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the value over the number of blocks left out, in each order; and the range over all
    choices of so many blocks, or over random orders."""
    orders: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in record["cumulative"]:
        orders[entry["order"].rstrip(" 0123456789")][entry["removed"]].append(entry["value"])
    random = orders.pop("random", {})
    series = {name: {n: v[0] for n, v in by_number.items()} for name, by_number in orders.items()}
    for end, of in {"lowest": min, "highest": max}.items() if random else ():
        series[f"random order, {end}"] = {n: of(values) for n, values in random.items()}
    subsets = record["subsets"]
    for end, field in _SUBSETS.items() if subsets else ():
        series[f"all choices, {end}"] = {s["removed"]: s[field] for s in subsets}
    return [
        {"series": name, "blocks left out": removed, "value": value}
        for name, by_number in series.items()
        for removed, value in [(0, record["value"]), *by_number.items()]
    ]


def _tables(record: dict[str, Any]) -> list[Table]:
    everywhere = [d for d in record["drops"] if d["layer"] is None]
    rows = [
        [d["component"], d["mode"], format_number(d["value"]),
         format_number(d["change"], "+.3f"), format_number(d["drop"], ".1%"),
         f"{format_number(d['low'], '.1%')} to {format_number(d['high'], '.1%')}"]
        for d in everywhere
    ]  # fmt: skip
    headers = ["component", "removed by", record["metric"], "change", "drop", "95 % over rows"]
    tables = [Table("Drop without all of one kind", headers, rows)] if rows else []
    if record.get("correlations"):
        rows = [[name, format_number(rho, "+.2f")] for name, rho in record["correlations"].items()]
        title = "Rank correlation of the change that a component makes with its drop, over layers"
        tables.append(Table(title, ["component", "ρ"], rows))
    return tables

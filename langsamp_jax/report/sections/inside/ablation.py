"""The section about what the components of the model are worth to a task."""

from collections import defaultdict
from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import at_step
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 55  # on the page

_TITLE = "What the components are worth"


def section(results: RunResults) -> Section:
    """Returns the drop without each component, and what is left as blocks are left out."""
    fields = ("drops.*.component", "drops.*.layer", "drops.*.drop", "drops.*.mode", "cumulative")
    record = results.evaluation("ablation", *fields, "metric", "value", "chance", "on")
    if record is None:
        command = results.evaluate_command("ablation", "--data STORE --on mlm")
        return Section("ablation", _TITLE, command=command)
    metric, figures = record["metric"], []
    cells = [
        {"component": f"{d['component']}, {d['mode']}", "layer": d["layer"], "value": d["drop"]}
        for d in record["drops"]
        if d["layer"] is not None
    ]
    if cells:
        worst = max(cells, key=lambda cell: cell["value"])
        figures.append(
            Figure(
                "ablation-by-layer",
                "Drop without one component of one layer",
                "How much of what the model knows of the task is gone: 0 is no effect, 1 as good "
                "as chance. Single removals understate a component that another makes up for.",
                f"Drops of {len(cells)} removals; the largest is {worst['value']:.2f} "
                f"({worst['component']}, layer {worst['layer']}).",
                cells,
                charts.grid(cells, "component", "layer", "drop"),
            )
        )
    if curve := _left(record):
        figures.append(
            Figure(
                "ablation-blocks-left-out",
                "The task as blocks are left out",
                "One block after the other, in an order fixed beforehand. An order is worth "
                "something where it lies outside the range of random orders.",
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
    return Section("ablation", _TITLE, text, figures, _tables(record))


def _left(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the value over the number of blocks left out, in each order; of the random ones the
    range."""
    orders: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in record["cumulative"]:
        orders[entry["order"].rstrip(" 0123456789")][entry["removed"]].append(entry["value"])
    ends = {"random order, lowest": min, "random order, highest": max}
    series = {
        **{name: (values, lambda v: v[0]) for name, values in orders.items() if name != "random"},
        **{name: (orders["random"], end) for name, end in ends.items() if "random" in orders},
    }
    return [
        {"series": name, "blocks left out": removed, "value": value}
        for name, (by_number, of) in series.items()
        for removed, value in [(0, record["value"]), *((n, of(v)) for n, v in by_number.items())]
    ]


def _tables(record: dict[str, Any]) -> list[Table]:
    everywhere = [d for d in record["drops"] if d["layer"] is None]
    rows = [
        [d["component"], d["mode"], format_number(d["value"]), format_number(d["drop"], ".1%"),
         f"{format_number(d['low'], '.1%')} to {format_number(d['high'], '.1%')}"]
        for d in everywhere
    ]  # fmt: skip
    headers = ["component", "removed by", record["metric"], "drop", "95 % over rows"]
    tables = [Table("Drop without all of one kind", headers, rows)] if rows else []
    if record.get("correlations"):
        rows = [[name, format_number(rho, "+.2f")] for name, rho in record["correlations"].items()]
        title = "Rank correlation of the change that a component makes with its drop, over layers"
        tables.append(Table(title, ["component", "ρ"], rows))
    failed = [
        [name, format_number(control["value"]), str(control["expected"])]
        for name, control in record.get("controls", {}).items()
        if not control["ok"]
    ]
    if failed:
        tables.append(Table("Controls that failed", ["control", "value", "expected"], failed))
    return tables

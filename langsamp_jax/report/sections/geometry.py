"""The section about the language and script tables: as planes, and whom each row is close to."""

from collections import Counter
from typing import Any

from langsamp_jax.languages.inventory import language_name, scripts_by_language
from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import at_step
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 60  # on the page

_FAMILIES = 5  # so many have a colour and a shape of their own


def section(results: RunResults) -> Section:
    """Returns the two tables as planes, their closest rows, what their distances go along with."""
    title = "The map of languages"
    fields = ("tables.*.names", "tables.*.coordinates", "tables.*.explained")
    evaluation = results.evaluation("geometry", *fields)
    if evaluation is None:
        return Section(
            "map", title, command=results.evaluate_command("geometry", "--references URIEL.npz")
        )
    figures, tables = [], []
    for name, table in evaluation["tables"].items():
        records, kinds = _points(results, table)
        if not records:
            continue
        x, y = (
            f"component {k} ({share:.0%} of the variance)"
            for k, share in enumerate(table["explained"], 1)
        )
        figures.append(
            Figure(
                f"map-of-{name}s",
                f"The {name} table",
                "The two directions in which the vectors differ most. Near means alike to the "
                "model; where other directions carry much, near on the map says little.",
                f"The first two principal components of {len(records)} {name} vectors"
                + (f", by family: {', '.join(kinds)}." if len(kinds) > 1 else "."),
                records,
                charts.scatter(records, kinds, x, y),
            )
        )
        if table.get("correlations"):
            tables.append(_correlations(name, table["correlations"]))
        if table.get("neighbours"):
            rows = [
                [row, ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)]
                for row, near in table["neighbours"].items()
            ]
            headers = [name, "closest, with their cosines"]
            tables.append(Table(f"Closest in the {name} table", headers, rows, True, True))
    text = "The vectors that are added to the encoder's output, seen from above"
    return Section("map", title, f"{text}{at_step(evaluation)}.", figures, tables)


def _points(results: RunResults, table: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of a table as points, and their kinds: the largest families."""
    families = table.get("families") or [None] * len(table["names"])
    sizes = Counter(family for family in families if family)
    largest = [family for family, _ in sizes.most_common(_FAMILIES)]
    scripts = scripts_by_language(results.run.inventory.language_scripts)
    records = []
    for code, family, (x, y) in zip(table["names"], families, table["coordinates"], strict=True):
        record = {"label": code, "kind": family if family in largest else "other", "x": x, "y": y}
        if table.get("families"):
            record["name"], record["family"] = language_name(code), family or "unknown"
            record["script"] = scripts.get(code, "unknown")
        records.append(record)
    others = ["other"] if any(record["kind"] == "other" for record in records) else []
    return records, largest + others


def _correlations(table: str, correlations: list[dict[str, Any]]) -> Table:
    rows = [
        [record["with"], format_number(record["rho"], ".2f"), format_number(record.get("p"), ".4f"),
         format_number(record.get("languages"), ",")]
        for record in correlations
    ]  # fmt: skip
    headers = ["distance by", "ρ", "p", "rows"]
    return Table(f"Rank correlation of distances in the {table} table", headers, rows)

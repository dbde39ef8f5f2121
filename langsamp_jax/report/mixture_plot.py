"""The mixture as a picture: what each language-script has, what is drawn of it, how often."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import require_file, write_bytes
from langsamp_jax.report import charts
from langsamp_jax.report.figures import draw, finite

FORMATS = (".png", ".svg", ".pdf")

_HEADS = (0.01, 0.1, 0.5)  # where head and tail are cut, by rank
_MARKED = 5  # of those repeated most, so many are named in a larger mixture
_WIDTH, _SHARES, _EPOCHS = 640, 300, 200  # pixels
_IN_STORE, _BY_STEP = 60, 240  # pixels: the widths of the two charts of head and tail
_LETTERS = 0.025  # the height of a written share
_STORE = "share of the rows"
# A PDF with a second font, or with opacity, has not the same bytes each time.
_PLAIN = {"fontWeight": "normal", "fontSize": 13}


def require_plot(file: Path) -> None:
    """Raises UserError where no plot can be written to ``file``."""
    if file.suffix not in FORMATS:
        raise UserError(f"--plot {file}: expected a file name that ends in {', '.join(FORMATS)}")
    require_file(file)


def plot_mixture(records: Sequence[dict[str, Any]], num_steps: int, file: Path) -> None:
    """Draws ``mixture_chart`` into a file; the same mixture gives the same bytes.

    Raises:
      UserError: the name of the file ends in none of ``FORMATS``.
    """
    require_plot(file)
    spec = finite(mixture_chart(records, num_steps).to_dict())
    write_bytes(file, draw(spec, file.suffix[1:]))


def mixture_chart(records: Sequence[dict[str, Any]], num_steps: int) -> alt.HConcatChart:
    """Returns the chart of the records of ``mixture_table`` for a run of ``num_steps``.

    Language-scripts stand in order of their rows, the largest first. Above: their share of the
    rows and their p (log scale); below: epochs; on the right: the shares of head and tail, in the
    store and at every step.
    """
    records = sorted(records, key=lambda record: (-record["rows"], record["language"]))
    records = [{**record, "rank": rank} for rank, record in enumerate(records, 1)]
    rows, drawn = (sum(record[field] for record in records) for field in ("rows", "drawn"))
    text = f"{len(records):,} language-scripts, {rows:,} rows; {num_steps:,} steps draw {drawn:,}"
    title = alt.Title(text, anchor="middle", **_PLAIN)
    of_each = alt.vconcat(_shares(records), _epochs(records), spacing=8)
    in_store, by_step = _groups(records, num_steps)
    return (
        alt.hconcat(of_each, in_store, by_step, spacing=12, title=title)
        .resolve_scale(color="independent", shape="independent")
        .resolve_legend(color="independent", shape="independent")
    )


def _shares(records: list[dict[str, Any]]) -> alt.LayerChart:
    """Returns share of the rows, p at the end of the run, and at its start where it is another."""
    steps, rows = list(records[0]["rates"]), sum(record["rows"] for record in records)
    shares = {_STORE: [record["rows"] / rows for record in records]}
    for step in sorted({steps[-1], steps[0]}, reverse=True):
        series = "p" if len(steps) == 1 else f"p from step {step:,}"
        shares[series] = [record["rates"][step] for record in records]
    points = [
        {**_place(record), "series": series, "share": share}
        for series, values in shares.items()
        for record, share in zip(records, values, strict=True)
        if share > 0  # a logarithm has no place for 0
    ]
    never = [_place(record) for record in records if not record["drawn"]]
    series_never = f"never drawn ({len(never):,})"
    names = [*shares, *([series_never] if never else [])]
    shapes = ["diamond", "circle", "cross"][: len(shares)] + ["triangle-down"] * bool(never)
    kinds = charts.by_kind("series", names, shapes)
    x = _rank(records, labels=False)
    size = _mark_size(records)
    y = _log("share", "share (log scale)", "~%")

    def marks(places: list[dict[str, Any]], size: float, y: Any) -> alt.Chart:
        mark = alt.Chart(charts.data(places)).mark_point(size=size, filled=False, strokeWidth=1.3)
        return mark.encode(x=x, y=y, **kinds)

    layers = [  # what the store has is larger and lies behind, so that it shows where p is the same
        marks([point for point in points if point["series"] == _STORE], 3 * size, y),
        marks([point for point in points if point["series"] != _STORE], size, y),
    ]
    if never:
        places = [{**place, "series": series_never} for place in never]
        layers.append(marks(places, size, alt.value(_SHARES - 5)))
    return alt.layer(*layers).properties(width=_WIDTH, height=_SHARES)


def _epochs(records: list[dict[str, Any]]) -> alt.LayerChart:
    """Returns epochs of the run, a line where it is one, and who is repeated most."""
    points = [
        {**_place(record), "epochs": record["epochs"]} for record in records if record["epochs"] > 0
    ]
    title = "epochs in the run (log scale)"
    once = alt.Chart(charts.data([{"once": 1}])).mark_rule(style="reference")
    layers = [
        once.encode(y=_log("once", title, ",~g")),
        alt.Chart(charts.data(points))
        .mark_point(size=_mark_size(records))
        .encode(x=_rank(records, labels=True), y=_log("epochs", title, ",~g")),
    ]
    by_epochs = sorted(points, key=lambda point: -point["epochs"])  # of equal ones the larger first
    most = [point for point in by_epochs[:_MARKED] if point["epochs"] > 1]
    if most and len(records) > charts.NAMED:
        lines = [f"{point['language']}  {point['epochs']:,.1f}" for point in most]
        text = alt.Chart(charts.data([{"most": ["repeated most", *lines]}]))
        at = {"x": alt.value(_WIDTH - 6), "y": alt.value(_EPOCHS - 6 - 14 * len(lines))}
        place = {"align": "right", "baseline": "bottom", "lineHeight": 14, "fontSize": 11}
        halo = text.mark_text(**place, stroke="white", strokeWidth=4)
        layers += [mark.encode(text="most:N", **at)
                   for mark in (halo, text.mark_text(**place, style="label"))]  # fmt: skip
    return alt.layer(*layers).properties(width=_WIDTH, height=_EPOCHS)


def _groups(records: list[dict[str, Any]], num_steps: int) -> tuple[alt.LayerChart, alt.LayerChart]:
    """Returns the shares of head and tail, stacked: of the rows, and of what each step draws."""
    edges = sorted({0, *(round(len(records) * part) for part in _HEADS), len(records)})
    steps = [*records[0]["rates"], num_steps]
    rows = np.array([record["rows"] for record in records], np.float64)
    p = np.array([list(record["rates"].values()) for record in records])
    of_rows = np.append(0, np.cumsum(rows / rows.sum()))[edges]
    of_p = np.vstack([np.zeros(p.shape[1]), np.cumsum(p, axis=0)])[edges]
    of_p = np.column_stack([of_p, of_p[:, -1]])  # the last rates hold to the end
    names = [
        f"{'largest' if low == 0 else 'next' if high < len(records) else 'smallest'} {high - low:,}"
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    stored = [
        {"group": name, "low": low, "high": high}
        for name, low, high in zip(names, of_rows, of_rows[1:], strict=False)
    ]
    drawn = [
        {"group": name, "step": step, "low": low, "high": high}
        for name, lows, highs in zip(names, of_p, of_p[1:], strict=False)
        for step, low, high in zip(steps, lows, highs, strict=True)
    ]
    height = _SHARES + _EPOCHS + 8
    scale = alt.Scale(domain=[0, 1], reverse=True)
    span = {"y": alt.Y("low:Q", scale=scale, axis=None), "y2": "high:Q"}
    legend = alt.Legend(title=None, columns=2)
    colour = alt.Color("group:O", scale=alt.Scale(domain=names))
    bars = alt.Chart(charts.data(stored)).mark_bar(width=_IN_STORE)
    areas = alt.Chart(charts.data(drawn)).mark_area(interpolate="step-after", opacity=1)
    x = alt.X(
        "step:Q",
        title="what is drawn, by step",
        scale=alt.Scale(domain=[0, num_steps], nice=False),
        axis=alt.Axis(format=",d", tickCount=4, tickMinStep=1, grid=False),
    )
    in_store = alt.layer(
        bars.encode(x=alt.value(_IN_STORE / 2), color=colour.legend(None), **span),
        _written(stored, _IN_STORE / 2, "center"),
    )
    by_step = [
        areas.encode(x=x, color=colour.legend(legend), **span),
        _written([record for record in drawn if record["step"] == steps[0]], 5, "left"),
    ]
    if len(steps) > 2:
        ends = [record for record in drawn if record["step"] == steps[-1]]
        by_step.append(_written(ends, _BY_STEP - 5, "right"))
    title = alt.Title("rows", orient="bottom", **_PLAIN)
    return (
        in_store.properties(width=_IN_STORE, height=height, title=title),
        alt.layer(*by_step).properties(width=_BY_STEP, height=height),
    )


def _written(records: list[dict[str, Any]], x: float, align: str) -> alt.Chart:
    """Returns the shares of groups as text, where there is room for it."""
    texts = [
        {"middle": (record["low"] + record["high"]) / 2, "part": record["high"] - record["low"]}
        for record in records
        if record["high"] - record["low"] > _LETTERS
    ]
    marks = alt.Chart(charts.data(texts)).mark_text(align=align, fontSize=11, style="label")
    y = alt.Y("middle:Q", scale=alt.Scale(domain=[0, 1], reverse=True), axis=None)
    return marks.encode(x=alt.value(x), y=y, text=alt.Text("part:Q", format=".0%"))


def _place(record: dict[str, Any]) -> dict[str, Any]:
    return {"language": record["language"], "rank": record["rank"]}


def _log(field: str, title: str, form: str) -> alt.Y:
    scale, axis = alt.Scale(type="log", nice=True), alt.Axis(format=form, tickCount=3)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)


def _rank(records: list[dict[str, Any]], labels: bool) -> alt.X:
    """Returns the axis of language-scripts: by name as long as they are few, else by rank."""
    if len(records) <= charts.NAMED:
        names = [record["language"] for record in records]
        axis = alt.Axis(title=None, labelAngle=-90, labels=labels, ticks=False, labelOverlap=False)
        return alt.X("language:N", scale=alt.Scale(domain=names), sort=None, axis=axis)
    title = "language-scripts by rows, the largest first" if labels else None
    axis = alt.Axis(title=title, format=",d", labels=labels, grid=False)
    domain = [0, len(records) + 1]
    return alt.X("rank:Q", scale=alt.Scale(domain=domain, nice=False), axis=axis)


def _mark_size(records: list[dict[str, Any]]) -> float:
    return 60 if len(records) <= charts.NAMED else 10

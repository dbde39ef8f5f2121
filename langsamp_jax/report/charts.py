"""From records to charts: pure functions, each giving an Altair chart as wide as its container.

A series, a group or a family is told by colour and by shape or dash, never by colour alone.
Language-scripts have a row each as long as they are few; many stand along an axis by rank, and
say who they are when they are pointed at.
"""

import re
from collections.abc import Sequence
from typing import Any

import altair as alt

Record = dict[str, Any]

NAMED = 40  # the most language-scripts that have a row of their own
_LINE, _ROW = 260, 19  # pixels: the height of a chart, and of a row
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
_SHAPES = ["circle", "triangle-up", "square", "diamond", "cross", "triangle-down"]


def curves(
    records: Sequence[Record], x: str, y: str, form: str, zero: bool, logarithmic: bool = False
) -> alt.LayerChart:
    """Draws lines over ``x`` (field and title), one for each ``series``; of few points, dots too.

    Args:
      records: ``x``, ``series``, ``value``, in order.
      y: the title of the values, which are shown in the format ``form``.
      zero: whether the values' axis begins there.
      logarithmic: whether ``x``, which may be 0, is.
    """
    names = list(dict.fromkeys(record["series"] for record in records))
    few = [name for name in names if sum(record["series"] == name for record in records) <= 30]
    near = alt.selection_point(nearest=True, on="pointerover", fields=[x], empty=False)
    legend = alt.Legend(title=None, symbolType="stroke", symbolSize=500) if len(names) > 1 else None
    dashes = alt.Scale(domain=names, range=_DASHES[: len(names)])
    base = alt.Chart(data(records)).encode(
        x=_along(x, "symlog" if logarithmic else "linear"),
        y=alt.Y("value:Q", title=y, scale=alt.Scale(zero=zero), axis=_axis(form)),
        color=alt.Color("series:N", scale=alt.Scale(domain=names), legend=legend),
        tooltip=[
            alt.Tooltip(f"{x}:Q", format=",d"),
            alt.Tooltip("series:N"),
            alt.Tooltip("value:Q", title=y, format=form),
        ],
    )
    shown = alt.when(alt.FieldOneOfPredicate(field="series", oneOf=few)).then(alt.value(1))
    lines = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash("series:N", scale=dashes, legend=legend)
    )
    dots = base.mark_point(size=46).encode(opacity=shown.when(near).then(alt.value(1))
                                           .otherwise(alt.value(0)))  # fmt: skip
    return _wide(lines + dots.add_params(near), _LINE)


def band(records: Sequence[Record], x: str) -> alt.Chart:
    """Draws the area between ``low`` and ``high`` over ``x``, to lie behind ``curves``."""
    area = alt.Chart(data(records)).mark_area(style="reference", opacity=0.2)
    return area.encode(x=_along(x), y="low:Q", y2="high:Q")


def stacked(records: Sequence[Record], x: str, y: str) -> alt.Chart:
    """Draws parts of a whole over ``x``, one upon the other. Records as for ``curves``."""
    names = list(dict.fromkeys(record["series"] for record in records))
    parts = [{**record, "place": names.index(record["series"])} for record in records]
    chart = alt.Chart(data(parts)).mark_area(opacity=0.9)
    return _wide(
        chart.encode(
            x=_along(x),
            y=alt.Y("value:Q", title=y, stack="zero"),
            order=alt.Order("place:Q"),
            color=alt.Color(
                "series:N",
                scale=alt.Scale(domain=names),
                legend=alt.Legend(title="from below"),
            ),
            tooltip=["series:N"],
        ),
        _LINE,
    )


def by_language(
    records: Sequence[Record], y: str, form: str, what: dict[str, str]
) -> alt.LayerChart:
    """Draws a ``value`` of each language-script, perhaps a ``second``, and a ``reference``.

    Args:
      records: ``language``, ``name``, ``group`` and what ``what`` names, in the order in which
        they are to stand.
      y: the title of the values, which are shown in the format ``form``.
      what: the titles of those of the three fields that there are.
    """
    records = _ranked(records)
    tooltip = ["language:N", "name:N", "group:N"]
    tooltip += [alt.Tooltip(f"{k}:Q", title=title, format=form) for k, title in what.items()]
    base = alt.Chart(data(records)).encode(tooltip=tooltip)
    axis = _axis(form)
    groups = sorted({record["group"] for record in records})

    def at(field: str) -> alt.Chart:
        return base.encode(**_placed(records, f"{field}:Q", title=y, axis=axis))

    named = len(records) <= NAMED
    size = 70 if named else 24
    layers = [at("value").mark_point(size=size).encode(**by_kind("group", groups))]
    if "second" in what:
        hollow = at("second").mark_point(size=size / 2, filled=False, strokeWidth=1.5)
        layers.append(hollow.encode(**by_kind("group", groups)))
    if "reference" in what:
        reference = at("reference").mark_point(shape="diamond", size=size / 2, style="reference")
        layers.insert(0, reference)
        if named:
            span = at("value").mark_rule(style="stem", strokeWidth=2).encode(x2="reference:Q")
            layers.insert(0, span)
    return _wide(alt.layer(*layers), _height(records))


def against(records: Sequence[Record], x: str, y: str, form: str) -> alt.LayerChart:
    """Draws ``value`` over ``reference`` of each language-script, and the line of equality."""
    groups = sorted({record["group"] for record in records})
    ends = [record[field] for record in records for field in ("value", "reference")]
    diagonal = alt.Chart(data([{"at": min(ends)}, {"at": max(ends)}]))
    line = diagonal.mark_line(style="reference", strokeDash=[4, 4])
    scale, axis = alt.Scale(zero=False, nice=True), _axis(form)
    dots = (
        alt.Chart(data(records))
        .mark_point(size=70)
        .encode(
            x=alt.X("reference:Q", title=x, scale=scale, axis=axis),
            y=alt.Y("value:Q", title=y, scale=scale, axis=axis),
            tooltip=[
                *("language:N", "name:N", "group:N"),
                alt.Tooltip("reference:Q", title=x, format=form),
                alt.Tooltip("value:Q", title=y, format=form),
            ],
            **by_kind("group", groups),
        )
    )
    return _wide(line.encode(x=alt.X("at:Q", title=x), y=alt.Y("at:Q", title=y)) + dots, 340)


def shares(records: Sequence[Record]) -> alt.Chart:
    """Draws shares of each language-script on a log scale, a mark for each ``series``.

    Args:
      records: ``language``, ``name``, ``series``, ``share``, in the order in which the
        language-scripts are to stand.
    """
    names = list(dict.fromkeys(record["series"] for record in records))
    positive = [record for record in _ranked(records) if record["share"] > 0]
    scale = alt.Scale(type="log", nice=True)
    axis = alt.Axis(format="~%", tickCount=6, grid=False)
    tooltip = ["language:N", "name:N", "series:N", alt.Tooltip("share:Q", format=".3%")]
    chart = alt.Chart(data(positive)).mark_point(size=52, filled=False, strokeWidth=1.8)
    return _wide(
        chart.encode(
            **_placed(records, "share:Q", title="share (log scale)", scale=scale, axis=axis),
            **by_kind("series", names, ["diamond", "circle", "cross"]),
            tooltip=tooltip,
        ),
        _height(records),
    )


def heat_map(records: Sequence[Record], order: Sequence[str], value: str) -> alt.Chart:
    """Draws a colour for the ``value`` of each pair ``one``, ``other`` of language-scripts."""
    return _cells(records, {"one": order, "other": order}, value).encode(
        x=alt.X("one:N", axis=_names(order), sort=list(order)),
        y=alt.Y("other:N", axis=_names(order), sort=list(order)),
    )


def grid(records: Sequence[Record], x: str, y: str, value: str) -> alt.Chart:
    """Draws a colour for the ``value`` of each ``x`` and ``y``, fields and titles; both stand in
    the order in which they first occur, ``y`` from below."""
    order = {field: list(dict.fromkeys(record[field] for record in records)) for field in (x, y)}
    return _cells(records, order, value).encode(
        x=alt.X(f"{x}:O", axis=_names(order[x], x), sort=order[x]),
        y=alt.Y(f"{y}:O", axis=_names(order[y], y), sort=order[y][::-1]),
    )


def _cells(records: Sequence[Record], order: dict[str, Sequence[Any]], value: str) -> alt.Chart:
    """Returns rectangles with a colour for ``value``; ``order`` has the two fields, y last."""
    chart = alt.Chart(
        data(records), usermeta={"embedOptions": {"renderer": "canvas"}}
    ).mark_rect()  # thousands of cells: a canvas draws them at once
    legend = alt.Legend(title=value, gradientLength=180, format="~f")
    rows = len([*order.values()][-1])
    return _wide(
        chart.encode(
            color=alt.Color("value:Q", scale=alt.Scale(scheme="viridis"), legend=legend),
            tooltip=[
                *(f"{field}:N" for field in order),
                alt.Tooltip("value:Q", title=value, format=".4f"),
            ],
        ),
        max(200, 18 * rows) if rows <= NAMED else 560,
    )


def _names(order: Sequence[Any], title: str | None = None) -> alt.Axis:
    """Returns an axis of names, which are written where they are few."""
    few = len(order) <= NAMED
    return alt.Axis(title=title, labels=few, ticks=False, domain=False, grid=False)


def scatter(records: Sequence[Record], kinds: Sequence[str], x: str, y: str) -> alt.LayerChart:
    """Draws points of a plane, by ``kind``; if they are few, with their ``label`` beside them.

    Args:
      records: ``label``, ``name``, ``script``, ``family``, ``kind``, ``x``, ``y``.
    """
    base = alt.Chart(data(records)).encode(
        x=alt.X("x:Q", title=x, axis=_axis("~f"), scale=alt.Scale(padding=24)),
        y=alt.Y("y:Q", title=y, axis=_axis("~f"), scale=alt.Scale(padding=24)),
    )
    details = [field for field in ("name", "family", "script") if field in records[0]]
    dots = base.mark_point(size=80).encode(
        tooltip=[alt.Tooltip("label:N", title="code"), *(f"{field}:N" for field in details)],
        **(by_kind("kind", kinds) if len(kinds) > 1 else {}),
    )
    names = base.mark_text(style="label", fontSize=11, dy=-11).encode(text="label:N")
    return _wide(dots + names if len(records) <= NAMED else alt.layer(dots), 420)


def intervals(records: Sequence[Record], x: str, form: str) -> alt.LayerChart:
    """Draws a mean and its interval ``low`` to ``high`` for each ``choice``, the first on top."""
    row = alt.Y("choice:N", sort=None, title=None, axis=alt.Axis(grid=True, labelLimit=170))
    base = alt.Chart(data(records)).encode(
        y=row,
        tooltip=[
            "choice:N",
            *(alt.Tooltip(f"{field}:Q", format=form) for field in ("mean", "low", "high")),
        ],
    )
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title=x, scale=alt.Scale(zero=False), axis=_axis(form)), x2="high:Q"
    )
    means = base.mark_point(size=90).encode(x=alt.X("mean:Q", title=x))
    return _wide(bars + means, 34 * len(records) + 20)


def _axis(form: str) -> alt.Axis:
    """Returns an axis in a number format, but for its decimals: where none are given, Vega takes
    as many as tell each tick from the next."""
    return alt.Axis(format=re.sub(r"\.\d+", "", form))


def _along(x: str, kind: str = "linear") -> alt.X:
    """Returns an axis of whole numbers, from the first to the last there is."""
    axis = alt.Axis(format="~s", tickMinStep=1, grid=False)
    scale = alt.Scale(type=kind, zero=False, nice=False)
    return alt.X(f"{x}:Q", title=x, scale=scale, axis=axis)


def by_kind(field: str, names: Sequence[str], shapes: Sequence[str] = _SHAPES) -> Record:
    """Returns colour and shape by ``field``, with one legend for both; for one kind none."""
    legend = alt.Legend(title=None) if len(names) > 1 else None
    scale = alt.Scale(domain=list(names), range=list(shapes[: len(names)]))
    return {
        "color": alt.Color(f"{field}:N", scale=alt.Scale(domain=list(names)), legend=legend),
        "shape": alt.Shape(f"{field}:N", scale=scale, legend=legend),
    }


def _placed(records: Sequence[Record], field: str, **value: Any) -> Record:
    """Places a field along a row for each language-script; or, of many, over their rank."""
    if len(_languages(records)) <= NAMED:
        names = alt.Axis(grid=True, domain=False, ticks=False)
        return {
            "y": alt.Y("language:N", sort=None, title=None, axis=names),
            "x": alt.X(field, **{"scale": alt.Scale(zero=False), **value}),
        }
    rank = alt.X(
        "rank:Q",
        title="language-scripts by rank",
        scale=alt.Scale(nice=False, padding=6),
        axis=alt.Axis(grid=False, format=",d", tickMinStep=1),
    )
    return {"x": rank, "y": alt.Y(field, **{"scale": alt.Scale(zero=False), **value})}


def _languages(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["language"] for record in records))


def _ranked(records: Sequence[Record]) -> list[Record]:
    rank = {name: place for place, name in enumerate(_languages(records), 1)}
    return [{**record, "rank": rank[record["language"]]} for record in records]


def _height(records: Sequence[Record]) -> int:
    number = len(_languages(records))
    return _ROW * number + 10 if number <= NAMED else 340


def data(records: Sequence[Record]) -> alt.InlineData:
    return alt.InlineData(values=list(records))


def _wide(chart: Any, height: int) -> Any:
    return chart.properties(width="container", height=height)

"""The charts: rows by name or by rank, and axes whose labels differ."""

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langsamp_jax.report import charts
from langsamp_jax.report.figures import draw


@pytest.mark.parametrize("number", [charts.NAMED, charts.NAMED + 1])
def test_many_languages_stand_by_rank_few_by_name(number):
    records = [
        {"language": f"l{k}", "name": f"l{k}", "group": "tail", "value": 1 / k, "reference": 2.0}
        for k in range(1, number + 1)
    ]
    titles = {"value": "loss", "reference": "entropy"}
    spec = charts.by_language(records, "nats", ".1f", titles).to_dict()
    fields = {layer["encoding"][axis]["field"] for layer in spec["layer"] for axis in "xy"}
    assert ("language" in fields) == (number <= charts.NAMED)
    assert ("rank" in fields) == (number > charts.NAMED)


def axis_labels(chart: Any) -> list[list[str]]:
    """The labels of each axis of numbers of a chart, as Vega writes them."""
    svg = ElementTree.fromstring(draw({**chart.to_dict(), "width": 640}, "svg"))
    of_axes = [part for part in svg.iter() if "role-axis-label" in part.get("class", "")]
    texts = [["".join(text.itertext()) for text in part if text.tag.endswith("text")]
             for part in of_axes]  # fmt: skip
    return [labels for labels in texts if labels and all(re.match(r"[−\d.]", t) for t in labels)]


@settings(max_examples=6)
@example(".0%", 0.002, 0.012, 10, False)
@example(".3~f", 4.0, 1e-4, 10, False)
@given(
    st.sampled_from([".1%", ".3f", ".3~f", ".2~g", ".3~s"]),
    st.floats(0, 1),
    st.floats(-4, 0).map(lambda power: 10**power),
    st.sampled_from([10, charts.NAMED + 1]),
    st.booleans(),
)
def test_no_axis_has_a_label_twice(form, low, span, number, zero):
    """Whatever the values: accuracies below 1 % are not 0 %, 1 %, 1 %."""
    values = low + span * np.linspace(0, 1, number)
    records = [
        {"language": f"l{k:02}", "choice": f"c{k}", "name": "x", "group": "tail", "series": "s",
         "layer": k, "value": value, "reference": low, "mean": value, "low": value, "high": value}
        for k, value in enumerate(values.tolist())
    ]  # fmt: skip
    drawn = [
        charts.curves(records, "layer", "y", form, zero),
        charts.by_language(records, "y", form, {"value": "v", "reference": "r"}),
        charts.against(records, "x", "y", form),
        charts.intervals(records, "x", form),
    ]
    for chart in drawn:
        axes = axis_labels(chart)
        assert axes
        for labels in axes:
            assert len(labels) == len(set(labels)) > 1, (chart.to_dict()["layer"][0], labels)

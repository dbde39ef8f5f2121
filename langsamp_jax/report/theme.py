"""The look of the charts: one Vega-Lite config for light, one for dark, one for paper.

Charts name no colour of their own. They take categories in the order of the palette and named
styles (``reference``, ``stem``, ``label``), so that a page changes its look by another config.
"""

from typing import Any

# Okabe and Ito (2008): told apart with any colour vision. On dark the light ones come first.
_ON_LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
_ON_DARK = ["#56B4E9", "#E69F00", "#1FBF92", "#E08FBF", "#F0E442", "#F0743E"]
_WRITTEN_UPON = ["#56B4E9", "#009E73", "#F0E442", "#CC79A7"]  # ranks, with text in their areas

_ON_PAGE = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def light() -> dict[str, Any]:
    """Returns the look on a white page."""
    return _config("#20252b", "#57606a", "#c9ced4", "#e7e9ec", _ON_LIGHT, _ON_PAGE)


def dark() -> dict[str, Any]:
    """Returns the look on a page that is nearly black."""
    return _config("#e8eaed", "#a3abb5", "#4a525c", "#2d333b", _ON_DARK, _ON_PAGE)


def paper() -> dict[str, Any]:
    """Returns the look of PNG, SVG and PDF files: as light, in a font that is everywhere."""
    look = light()
    look["range"]["ordinal"] = _WRITTEN_UPON
    return {**look, "background": "white", "padding": 8, "font": "Arial, Helvetica, sans-serif"}


def _config(
    ink: str, quiet: str, stem: str, faint: str, palette: list[str], font: str
) -> dict[str, Any]:
    return {
        "background": "transparent",
        "padding": {"left": 2, "right": 6, "top": 4, "bottom": 4},
        "font": font,
        "view": {"stroke": None},
        "range": {"category": palette, "ramp": {"scheme": "viridis"}},
        "mark": {"color": palette[0]},
        "rule": {"color": palette[0]},
        "point": {"size": 64, "filled": True, "opacity": 1},
        "axis": {
            "labelColor": quiet,
            "titleColor": quiet,
            "gridColor": faint,
            "domainColor": faint,
            "tickColor": faint,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelPadding": 5,
            "labelOverlap": "greedy",
        },
        "axisQuantitative": {"tickCount": 6},
        "legend": {
            "orient": "top",
            "direction": "horizontal",
            "labelColor": ink,
            "titleColor": quiet,
            "titleFontWeight": "normal",
            "labelFontSize": 12,
            "titleFontSize": 12,
            "symbolSize": 80,
            "columns": 4,
            "labelLimit": 120,
            "columnPadding": 16,
            "offset": 12,
        },
        "style": {
            "reference": {"color": quiet},
            "stem": {"color": stem},
            "label": {"color": ink},
        },
    }

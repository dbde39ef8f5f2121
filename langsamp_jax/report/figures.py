"""What a page consists of, and the files of its figures."""

import csv
import dataclasses
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langsamp_jax.io.files import write_bytes, write_text
from langsamp_jax.report import theme

_PAPER_WIDTH = 640  # pixels; charts on the page are as wide as it
_PNG_SCALE = 3.0  # about 300 dots an inch at 17 cm


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart with all that is said of it.

    Attributes:
      name: of its files.
      caption: how it is to be read.
      alt: for those who do not see it: what it shows, with its main numbers.
      records: its numbers; the CSV.
      chart: an Altair chart of them, as wide as its container.
    """

    name: str
    title: str
    caption: str
    alt: str
    records: Sequence[dict[str, Any]]
    chart: Any

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """Returns the chart as Vega-Lite, without a number that JSON has no word for."""
        return finite({**self.chart.to_dict(), "description": self.alt})

    def save(self, folder: Path) -> None:
        """Writes ``name``.png, .svg and .csv."""
        spec = {**self.spec, "width": _PAPER_WIDTH}
        for form in ("png", "svg"):
            write_bytes(folder / f"{self.name}.{form}", draw(spec, form))
        write_text(folder / f"{self.name}.csv", _csv(self.records))


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; the first column is a heading of its row."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    words: bool = False  # the columns are text, not numbers
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page; without its input it has the ``command`` that makes it, no content."""

    name: str
    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    command: str = ""


def draw(spec: dict[str, Any], form: str) -> bytes:
    """Returns a chart as the content of a file for a paper: ``png``, ``svg`` or ``pdf``."""
    import vl_convert

    config = theme.paper()
    if form == "png":
        return vl_convert.vegalite_to_png(spec, scale=_PNG_SCALE, config=config)
    if form == "pdf":
        return vl_convert.vegalite_to_pdf(spec, config=config)
    return vl_convert.vegalite_to_svg(spec, config=config).encode()


def finite(value: Any) -> Any:
    """Returns Vega-Lite with six digits a number, None for one that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def format_number(value: float | None, form: str = ",.3f") -> str:
    """Returns the text of a cell; a dash where there is no number."""
    return "–" if value is None else format(value, form).replace("-", "−")


def _csv(records: Sequence[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(field for record in records for field in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()

"""The mixture as a picture: what each language-script has, what is drawn of it, how often."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import write_bytes

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito (2008): told apart with any colour vision, and in print.
_HAS, _NEVER = "#999999", "#D55E00"
_DRAWN = ("#0072B2", "#E69F00")  # p at the end of the run, and at its start where it is another
_GROUPS = ("#56B4E9", "#009E73", "#F0E442", "#CC79A7")
_HEADS = (0.01, 0.1, 0.5)  # where head and tail are cut, by rank
_NAMED = 40  # the most language-scripts that are named on the axis; more are a curve
_MARKED = 5  # of those repeated most, so many are named in a larger mixture


def require_plot(file: Path) -> None:
    """Raises UserError where no plot can be written to ``file``."""
    if file.suffix not in FORMATS:
        raise UserError(f"--plot {file}: expected a file name that ends in {', '.join(FORMATS)}")


def plot_mixture(records: Sequence[dict[str, Any]], num_steps: int, file: Path) -> None:
    """Draws ``mixture_figure`` into a file; the same mixture gives the same bytes."""
    require_plot(file)
    import matplotlib

    picture = io.BytesIO()
    dated = {".png": "Creation Time", ".svg": "Date", ".pdf": "CreationDate"}[file.suffix]
    with matplotlib.rc_context({"svg.hashsalt": "langsamp"}):
        figure = mixture_figure(records, num_steps)
        figure.savefig(picture, format=file.suffix[1:], dpi=150, metadata={dated: None})
    write_bytes(file, picture.getvalue())


def mixture_figure(records: Sequence[dict[str, Any]], num_steps: int) -> Any:
    """A matplotlib figure of the records of ``mixture_table`` for a run of ``num_steps``.

    Language-scripts stand in order of their rows, the largest first. Above: their share of the
    rows and their p (log scale); below: epochs; on the right: the shares of head and tail, in the
    store and at every step.
    """
    from matplotlib.figure import Figure  # without pyplot: no state, no window

    records = sorted(records, key=lambda record: (-record["rows"], record["language"]))
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(10, 1, 4), height_ratios=(3, 2))
    shares = figure.add_subplot(grid[0, 0])
    _draw_shares(shares, records)
    _draw_epochs(figure.add_subplot(grid[1, 0], sharex=shares), records)
    in_store = figure.add_subplot(grid[:, 1])
    by_step = figure.add_subplot(grid[:, 2], sharey=in_store)
    _draw_groups(in_store, by_step, records, num_steps)
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside lower right", ncols=4)
    figure.suptitle(
        f"{len(records):,} language-scripts, {sum(r['rows'] for r in records):,} rows; "
        f"{num_steps:,} steps draw {sum(r['drawn'] for r in records):,}"
    )
    return figure


def _draw_shares(axes: Any, records: list[dict[str, Any]]) -> None:
    rank, rows = np.arange(1, len(records) + 1), _column(records, "rows")
    steps, size = list(records[0]["rates"]), _marker_size(records)
    shares = _positive(rows / rows.sum())
    axes.plot(rank, shares, "o", color=_HAS, markersize=1.6 * size, label="share of the rows")
    for step, colour in zip(sorted({steps[-1], steps[0]}, reverse=True), _DRAWN, strict=False):
        p = np.array([record["rates"][step] for record in records])
        label = "p" if len(steps) == 1 else f"p from step {step:,}"
        axes.plot(rank, _positive(p), "o", color=colour, markersize=size, label=label)
    never = _column(records, "drawn") == 0
    if never.any():
        at_the_bottom = {"transform": axes.get_xaxis_transform(), "color": _NEVER}
        label = f"never drawn ({never.sum():,})"
        axes.plot(rank[never], np.full(never.sum(), 0.02), "|", label=label, **at_the_bottom)
    axes.set(yscale="log", ylabel="share (log scale)", xlim=(0, len(records) + 1))
    axes.tick_params(labelbottom=False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, markerscale=5 / size)


def _draw_epochs(axes: Any, records: list[dict[str, Any]]) -> None:
    rank, epochs = np.arange(1, len(records) + 1), _column(records, "epochs")
    size = _marker_size(records)
    axes.plot(rank, _positive(epochs), "o", color=_DRAWN[0], markersize=size)
    axes.axhline(1, color=_HAS, linewidth=1, zorder=0)
    axes.set(yscale="log", ylabel="epochs in the run (log scale)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", alpha=0.3)
    names = [record["language"] for record in records]
    if len(records) <= _NAMED:
        axes.set_xticks(rank, names, rotation=90, fontsize=8)
        return
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("language-scripts by rows, the largest first")
    most = [index for index in np.argsort(-epochs, kind="stable")[:_MARKED] if epochs[index] > 1]
    axes.annotate(
        "\n".join(["repeated most", *(f"{names[i]}  {epochs[i]:,.1f}" for i in most)]),
        (0.99, 0.07),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def _draw_groups(
    in_store: Any, by_step: Any, records: list[dict[str, Any]], num_steps: int
) -> None:
    """The shares of head and tail, stacked: of the rows, and of what is drawn at each step."""
    edges = sorted({0, *(round(len(records) * part) for part in _HEADS), len(records)})
    steps = [*records[0]["rates"], num_steps]
    rows = _column(records, "rows")
    p = np.array([list(record["rates"].values()) for record in records])
    of_rows = np.append(0, np.cumsum(rows / rows.sum()))[edges]
    of_p = np.vstack([np.zeros(p.shape[1]), np.cumsum(p, axis=0)])[edges]
    of_p = np.column_stack([of_p, of_p[:, -1]])  # the last rates hold to the end
    for group, colour in enumerate(_GROUPS[: len(edges) - 1]):
        low, high = of_rows[group : group + 2]
        in_store.bar(0, high - low, 1, low, color=colour)
        _write_share(in_store, 0, low, high, "center")
        low, high = of_p[group : group + 2]
        which = "largest" if group == 0 else "next" if group < len(edges) - 2 else "smallest"
        label = f"{which} {edges[group + 1] - edges[group]:,}"
        by_step.fill_between(steps, low, high, step="post", color=colour, lw=0, label=label)
        _write_share(by_step, 0.02 * num_steps, low[0], high[0], "left")
        if len(steps) > 2:
            _write_share(by_step, 0.98 * num_steps, low[-1], high[-1], "right")
    in_store.set(xlim=(-0.5, 0.5), ylim=(1, 0), xticks=[], yticks=[], xlabel="rows")
    by_step.set(xlim=(0, num_steps), xlabel="what is drawn, by step")
    by_step.locator_params(axis="x", nbins=4)
    by_step.xaxis.set_major_formatter("{x:,.0f}")


def _write_share(axes: Any, x: float, low: float, high: float, where: str) -> None:
    if high - low > 0.025:  # the height of the letters
        axes.text(x, (low + high) / 2, f"{high - low:.0%}", ha=where, va="center", fontsize=8)


def _column(records: list[dict[str, Any]], field: str) -> np.ndarray:
    return np.array([record[field] for record in records], np.float64)


def _positive(values: np.ndarray) -> np.ndarray:
    """With gaps where a logarithm has no value."""
    return np.where(values > 0, values, np.nan)


def _marker_size(records: list[dict[str, Any]]) -> float:
    return 6 if len(records) <= _NAMED else 2

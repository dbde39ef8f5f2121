"""The page: its parts, its head, and the one HTML file that they become."""

import functools
import math
import statistics
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from langsamp_jax.io.files import write_text
from langsamp_jax.io.progress import Progress
from langsamp_jax.io.storage import absolute
from langsamp_jax.report import evaluated, theme, training
from langsamp_jax.report.figures import Section
from langsamp_jax.report.run_results import RunResults, read_evidence

_PARTS = (
    training.curves,
    training.validation,
    training.mixture,
    evaluated.neutrality,
    evaluated.retrieval,
    evaluated.geometry,
    evaluated.tasks,
    evaluated.donors,
    training.configuration,
)


def write_report(run: Path) -> Path:
    """Writes RUN/report/index.html and, for a paper, RUN/report/figures/ with a PNG, an SVG and a
    CSV of each chart. Files of an earlier report are replaced.

    Returns:
      the page.

    Raises:
      UserError: ``run`` is no run, or a file of it is damaged.
    """
    evidence = read_evidence(run)
    parts = [make(evidence) for make in _PARTS]
    figures = [figure for part in parts for figure in part.figures]
    folder = evidence.run.path / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    with Progress("report", len(figures), "figures") as progress:
        for figure in figures:
            figure.save(folder / "figures")
            progress.advance(1)
    write_text(folder / "index.html", render(evidence, parts))
    return folder / "index.html"


def render(evidence: RunResults, parts: list[Section]) -> str:
    """The page as HTML, complete in itself."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,  # names of languages and settings are data, not markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {figure.name: figure.spec for part in parts for figure in part.figures}
    return environment.get_template("page.html").render(
        name=absolute(evidence.run.path).name,
        summary=_summary(evidence),
        tiles=_tiles(evidence),
        parts=[part for part in parts if part.figures or part.tables],
        absent=[part for part in parts if not (part.figures or part.tables)],
        charts={"specs": charts, "light": theme.light(), "dark": theme.dark()},
        library=_library() if charts else "",
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


def _summary(evidence: RunResults) -> str:
    run, best = evidence.run, _best(evidence)
    loss = f"best validation loss {best[1]:.3f}" if best else "no validation yet"
    return (
        f"{_short(_parameters(evidence))} parameters, {len(run.tokens):,} language-scripts; step "
        f"{evidence.step:,} of {run.settings['train.num_steps']:,}; {loss}."
    )


def _tiles(evidence: RunResults) -> list[tuple[str, str, str]]:
    """What, how much, and a word about it."""
    run, step, best = evidence.run, evidence.step, _best(evidence)
    planned, rows = run.settings["train.num_steps"], run.settings["train.global_batch_size"]
    layers, size = (run.settings[f"model.{k}"] for k in ("num_hidden_layers", "hidden_size"))
    languages, scripts = len(run.inventory.languages), len(run.inventory.scripts)
    tiles = [("Steps", f"{step:,}", f"of {planned:,}, {step / planned:.0%}")]
    if best:
        tiles.append(("Best validation loss", f"{best[1]:.3f}", f"nats, at step {best[0]:,}"))
    if mlm := evidence.evaluations.get("mlm"):
        below = mlm["unigram_entropy"] - mlm["loss"]
        tiles.append(("Below unigram entropy", f"{below:.2f}", f"of {mlm['unigram_entropy']:.2f}"))
    tiles += [
        ("Parameters", _short(_parameters(evidence)), f"{layers} layers of {size}"),
        ("Language-scripts", f"{len(run.tokens):,}", f"{languages} languages, {scripts} scripts"),
    ]
    if step:
        tokens = step * rows * run.sequence_length
        tiles.append(("Tokens", _short(tokens), f"{rows:,} rows of {run.sequence_length} a step"))
    if speeds := evidence.column("tokens_per_second"):
        speed = statistics.median(value for _, value in speeds)
        tiles.append(("Tokens per second", _short(speed), "median, with padding"))
    if goodput := evidence.column("goodput"):
        tiles.append(("Goodput", f"{goodput[-1][1]:.0%}", "of the time went into steps"))
    return tiles


def _best(evidence: RunResults) -> tuple[int, float] | None:
    return min(evidence.column("eval/loss"), key=lambda point: point[1], default=None)


def _parameters(evidence: RunResults) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(evidence.run.shapes()))


def _short(value: float) -> str:
    """1,406,592 -> 1.41 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed: JavaScript that goes into a script element."""
    import vl_convert

    return vl_convert.javascript_bundle().replace("</script", "<\\/script")


def _asset(name: str) -> Any:
    return (resources.files("langsamp_jax.report") / name).read_text("utf-8")

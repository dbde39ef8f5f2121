"""The page: its sections, its head, and the one HTML file that they become."""

import functools
import importlib
import pkgutil
import statistics
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from langsamp_jax.io.files import write_text
from langsamp_jax.io.progress import Progress
from langsamp_jax.io.storage import absolute
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.costs import parameter_count
from langsamp_jax.report import sections, theme
from langsamp_jax.report.figures import Section
from langsamp_jax.report.run_results import RunResults, read_results


def write_report(run: Path) -> Path:
    """Writes RUN/report/index.html and, for a paper, RUN/report/figures/ with a PNG, an SVG and a
    CSV of each chart. Files of an earlier report are replaced.

    Returns:
      The path of the page.

    Raises:
      UserError: ``run`` is no run, or a file of it is damaged.
    """
    results = read_results(run)
    made = [module.section(results) for module in section_modules()]
    figures = [figure for section in made for figure in section.figures]
    folder = results.run.path / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    with Progress("report", len(figures), "figures") as progress:
        for figure in figures:
            figure.save(folder / "figures")
            progress.advance(1)
    write_text(folder / "index.html", render(results, made))
    return folder / "index.html"


def section_modules() -> list[ModuleType]:
    """Returns the modules of ``report/sections``, in the order of the page."""
    found = pkgutil.walk_packages(sections.__path__, f"{sections.__name__}.")
    modules = [importlib.import_module(module.name) for module in found if not module.ispkg]
    return sorted(modules, key=lambda module: module.POSITION)


def render(results: RunResults, page_sections: list[Section]) -> str:
    """Returns the page as HTML, complete in itself."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,  # names of languages and settings are data, not markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {figure.name: figure.spec for section in page_sections for figure in section.figures}
    return environment.get_template("page.html").render(
        name=absolute(results.run.path).name,
        summary=_summary(results),
        tiles=_tiles(results),
        sections=[section for section in page_sections if section.figures or section.tables],
        absent=[s for s in page_sections if s.command and not (s.figures or s.tables)],
        charts={"specs": charts, "light": theme.light(), "dark": theme.dark()},
        library=_library() if charts else "",
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


def _summary(results: RunResults) -> str:
    run, best = results.run, _best(results)
    loss = f"best validation loss {best[1]:.3f}" if best else "no validation yet"
    return (
        f"{_short(_parameters(results))} parameters, {len(run.tokens):,} language-scripts; step "
        f"{results.step:,} of {run.settings['train.num_steps']:,}; {loss}."
    )


def _tiles(results: RunResults) -> list[tuple[str, str, str]]:
    """Returns what, how much, and a word about it."""
    run, step, best = results.run, results.step, _best(results)
    planned, rows = run.settings["train.num_steps"], run.settings["train.global_batch_size"]
    layers, size = (run.settings[f"model.{k}"] for k in ("num_hidden_layers", "hidden_size"))
    languages, scripts = len(run.inventory.languages), len(run.inventory.scripts)
    tiles = [("Steps", f"{step:,}", f"of {planned:,}, {step / planned:.0%}")]
    if best:
        tiles.append(("Best validation loss", f"{best[1]:.3f}", f"nats, at step {best[0]:,}"))
    mlm = results.evaluations.get("mlm", {})
    if unigram_loss := mlm.get("unigram_loss"):  # results of older versions have another baseline
        below = unigram_loss - mlm["loss"]
        side = "Below" if below > 0 else "Above"
        tiles.append((f"{side} unigram loss", f"{abs(below):.2f}", f"nats, of {unigram_loss:.2f}"))
    tiles += [
        ("Parameters", _short(_parameters(results)), f"{layers} layers of {size}"),
        ("Language-scripts", f"{len(run.tokens):,}", f"{languages} languages, {scripts} scripts"),
    ]
    if step:
        tokens = step * rows * run.sequence_length
        tiles.append(("Tokens", _short(tokens), f"{rows:,} rows of {run.sequence_length} a step"))
    if speeds := results.column("tokens_per_second"):
        speed = statistics.median(value for _, value in speeds)
        tiles.append(("Tokens per second", _short(speed), "median, with padding"))
    if goodput := results.column("goodput"):
        tiles.append(("Goodput", f"{goodput[-1][1]:.0%}", "of the time went into steps"))
    return tiles


def _best(results: RunResults) -> tuple[int, float] | None:
    return min(results.column("eval/loss"), key=lambda point: point[1], default=None)


def _parameters(results: RunResults) -> int:
    run = results.run
    tables = len(run.inventory.languages), len(run.inventory.scripts)
    return parameter_count(run.config(ModelConfig), run.tokenizer.vocab_size, *tables)


def _short(value: float) -> str:
    """Returns a number with three digits: 1,406,592 -> 1.41 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


@functools.cache
def _library() -> str:
    """Returns Vega, Vega-Lite and vega-embed: JavaScript that goes into a script element."""
    import vl_convert

    return vl_convert.javascript_bundle().replace("</script", "<\\/script")


def _asset(name: str) -> Any:
    return (resources.files("langsamp_jax.report") / name).read_text("utf-8")

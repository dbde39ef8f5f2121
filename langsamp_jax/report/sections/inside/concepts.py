"""The section about concept experts: shared by layer and step, by language, by concept; forcing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import alike_together, failed_controls
from langsamp_jax.report.figures import Figure, Section
from langsamp_jax.report.run_results import RunResults

POSITION = 47  # on the page

_TITLE = "Concept experts"
_FIELDS = ("steps", "layers", "shared", "overlap", "overlap_other", "chance", "languages")
_FIELDS += ("between_languages", "concepts", "between_concepts", "tracked", "forcing", "overall")
_FIELDS += ("reliability", "sentences", "controls", "labels")


def section(results: RunResults) -> Section:
    """Returns how far languages share the experts of a concept; of a series, over its steps."""
    stem = "concepts-steps" if "concepts-steps" in results.evaluations else "concepts"
    record = results.evaluation(stem, *_FIELDS)
    if record is None:
        command = results.evaluate_command("concepts", "--data CORPUS")
        return Section("concepts", _TITLE, command=command)
    figures = [_by_layer(record), _languages(record), _concepts(record)]
    if len(record["steps"]) > 1:
        figures[1:1] = [_over_steps(record), _tracked(record)]
    if "own" in record["forcing"]:
        figures.append(_forcing(record))
    counts = len(record["concepts"]), len(record["languages"]), record["sentences"]
    text = "{:,} concepts ({}) in {:,} language-scripts, {:,} sentences.".format(
        counts[0], record["labels"], *counts[1:]
    )
    return Section("concepts", _TITLE, text + failed_controls(record), figures)


def _by_layer(record: Mapping[str, Any]) -> Figure:
    series = {"overlap": "same concept", "overlap_other": "other concept", "chance": "chance"}
    cells = [
        {"layer": layer, "series": name, "value": value}
        for field, name in series.items()
        for layer, value in enumerate(record[field][-1])
    ]
    shared = ", ".join(f"{value:.3f}" for value in record["shared"][-1])
    return Figure(
        "concepts-by-layer",
        f"Shared experts by layer{_step(record)}",
        "Share of the experts of a concept in one language that are experts of the same concept, "
        "or of another one, in another language. Only what is above another concept is sharing.",
        f"O* by layer: {shared}.",
        cells,
        charts.curves(cells, "layer", "overlap", ".3~f", zero=True),
    )


def _over_steps(record: Mapping[str, Any]) -> Figure:
    cells = [
        {"step": step, "layer": layer, "value": value}
        for step, by_layer in zip(record["steps"], record["shared"], strict=True)
        for layer, value in enumerate(by_layer)
    ]
    overall = record["overall"]["shared"]
    return Figure(
        "concepts-by-step",
        "Shared experts by layer and step",
        "O*, the overlap of experts beyond that of different concepts: at 0 no concept is shared.",
        f"O* over all layers from {overall[0]:.3f} to {overall[-1]:.3f}.",
        cells,
        charts.grid(cells, "step", "layer", "O*"),
    )


def _tracked(record: Mapping[str, Any]) -> Figure:
    lines = [
        {"step": step, "value": value,
         "series": "{concept}, layer {layer}, unit {unit}".format(**unit)}
        for unit in record["tracked"]
        for step, value in zip(record["steps"], unit["precision"], strict=True)
    ]  # fmt: skip
    ends = ", ".join(f"{u['precision'][0]:.2f} to {u['precision'][-1]:.2f}"
                     for u in record["tracked"])  # fmt: skip
    return Figure(
        "concepts-tracked",
        "Average precision of units over the steps",
        "The unit that is best at the last step for a concept, the mean over languages.",
        f"From the first step to the last: {ends}.",
        lines,
        charts.curves(lines, "step", "average precision", ".2~f", zero=True),
    )


def _languages(record: Mapping[str, Any]) -> Figure:
    values, names = np.array(record["between_languages"]), record["languages"]
    order = alike_together(values)
    cells = _cells(values, names, order)
    off = [cell for cell in cells if cell["one"] != cell["other"]]
    widest = max(off, key=lambda cell: cell["value"])
    return Figure(
        "concepts-languages",
        f"Shared experts of each pair of languages{_step(record)}",
        "O* over all layers; languages that share more stand together. On the diagonal, experts of "
        "one language from the two halves of its sentences: what could be reached.",
        f"The most is {widest['value']:.3f}, of {widest['one']} and {widest['other']}.",
        cells,
        charts.heat_map(cells, [names[at] for at in order], "O*"),
    )


def _concepts(record: Mapping[str, Any]) -> Figure:
    values, names = np.array(record["between_concepts"]), record["concepts"]
    cells = _cells(values, names, range(len(names)))
    same, all_ = np.trace(values), values.sum()
    other = (all_ - same) / (len(names) * (len(names) - 1))
    return Figure(
        "concepts-concepts",
        f"Overlap of the experts of each two concepts{_step(record)}",
        "The mean over all pairs of different languages, from the commonest concept on. Where "
        "languages share concepts, the diagonal stands out.",
        f"On the diagonal {same / len(names):.3f} on average, beside it {other:.3f}.",
        cells,
        charts.heat_map(cells, names, "overlap"),
    )


def _forcing(record: Mapping[str, Any]) -> Figure:
    forcing = record["forcing"]
    cells = [
        {"readout": readout, "experts": experts, "value": own - other}
        for experts, *rows in zip(*(forcing[k] for k in ("experts", "own", "other")), strict=True)
        for readout, own, other in zip(forcing["readout"], *rows, strict=True)
    ]
    specific = {k: f"{v['value']:.3f} nats {k} languages" for k, v in forcing["specific"].items()}
    return Figure(
        "concepts-forcing",
        f"Forced experts{_step(record)}",
        "By how many nats the words of a concept become likelier in one language (across) where "
        "the concept's experts in another (down) are held at their median, less the same with the "
        "experts of other concepts.",
        f"On average {', '.join(specific.values())}.",
        cells,
        charts.grid(cells, "readout", "experts", "nats"),
    )


def _cells(values: np.ndarray, names: list[str], order: Any) -> list[dict[str, Any]]:
    return [
        {"one": names[one], "other": names[other], "value": float(values[one, other])}
        for one in order
        for other in order
    ]


def _step(record: Mapping[str, Any]) -> str:
    step = record["steps"][-1]
    return "" if step is None else f" at step {step:,}"

"""The section about language neutrality: by pair at one layer, and by layer."""

import numpy as np

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import alike_together, at_step
from langsamp_jax.report.figures import Figure, Section
from langsamp_jax.report.run_results import RunResults

POSITION = 40  # on the page

_TITLE = "Language neutrality"


def section(results: RunResults) -> Section:
    """Returns how much closer translations are than other sentences, by pair and by layer."""
    fields = ("languages", "pairs", "gap", "mean.gap", "num_layers")
    evaluation = results.evaluation("neutrality", *fields)
    if evaluation is None or not evaluation["pairs"]:
        return Section(
            "neutrality", _TITLE, command=results.evaluate_command("neutrality", "--data CORPUS")
        )
    names, mean, layers = evaluation["languages"], evaluation["mean"], evaluation["num_layers"]
    layer = round((layers - 1) * 2 / 3)  # where sentences are taken from for retrieval
    gap = np.full((len(names), len(names)), np.nan)
    for (one, other), by_layer in zip(evaluation["pairs"], evaluation["gap"], strict=True):
        gap[one, other] = gap[other, one] = by_layer[layer]
    order = alike_together(gap)
    cells = [
        {"one": names[one], "other": names[other], "value": float(gap[one, other])}
        for place, one in enumerate(order)
        for other in order[place + 1 :]
        if not np.isnan(gap[one, other])
    ]
    lines = {"matched": "matched", "random": "random", "gap": "gap", "gap_centred": "gap, centred"}
    by_layer = [
        {"layer": k, "series": series, "value": value}
        for key, series in lines.items()
        for k, value in enumerate(mean.get(key, ()))
    ]
    widest = max(cells, key=lambda cell: cell["value"])
    figures = [
        Figure(
            "neutrality-by-layer",
            "Similarity by layer",
            "Mean cosine of translations (matched) and of other sentences (random), and their "
            "difference, the gap. Only a wider gap is neutrality: both can rise without it. "
            "Centred: after each language's mean was taken away. Layer 0 is the embeddings.",
            f"Gap by layer: {', '.join(f'{value:.3f}' for value in mean['gap'])}.",
            by_layer,
            charts.curves(by_layer, "layer", "mean cosine", ".2~f", zero=True),
        ),
        Figure(
            "neutrality-pairs",
            f"Gap of each pair at layer {layer}",
            "Languages that behave alike stand together. A pair has its cell on one side of the "
            "diagonal; without one, it has no sentences in common.",
            f"Gap of {len(cells)} pairs of {len(names)} language-scripts at layer {layer}; the "
            f"widest is {widest['one']} with {widest['other']}, {widest['value']:.3f}.",
            [{"one": c["one"], "other": c["other"], "gap": c["value"]} for c in cells],
            charts.heat_map(cells, [names[at] for at in order], "gap"),
        ),
    ]
    pairs = len(evaluation["pairs"])
    text = f"{pairs:,} pairs of {len(names):,} language-scripts{at_step(evaluation)}."
    return Section("neutrality", _TITLE, text, figures)

"""The section about neurons: how far they belong to languages, over depth and training."""

from typing import Any

from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import failed_controls
from langsamp_jax.report.figures import Figure, Section
from langsamp_jax.report.run_results import RunResults

POSITION = 45  # on the page

_TITLE = "Neurons of single languages"
_NAMED = 5  # languages whose neurons have a colour of their own
_LINES = {  # of the figure over depth: measures of the result, and what they are called
    "across_scripts": "across scripts",
    "within_script": "within a script",
    "two_scripts": "in two scripts",
    "shared_pieces_by_layer": "pieces in common",
    "same_language": "halves",
}


def section(results: RunResults) -> Section:
    """Returns selectivity over depth, pairs, languages, clamping and, of several steps, those."""
    steps = "neurons-steps" in results.evaluations  # of a training, rather than of one step
    fields = ("selectivity", "null.high", "steps", "pairs", "by_pair.rank_disagreement", "clamped")
    record = results.evaluation("neurons-steps" if steps else "neurons", *fields)
    if record is None:
        command = results.evaluate_command("neurons", "--data CORPUS")
        return Section("neurons", _TITLE, command=command)
    figures = [_depth(record), _disagreement(record), _own(record)]
    figures += [_clamped(record["clamped"])] if "own" in record["clamped"] else []
    figures += [_training(record)] if len(record["steps"]) > 1 else []
    contrast, at = record["contrast"], record["steps"][-1]
    text = (
        f"{len(record['pairs']):,} pairs of {len(record['compared'])} of "
        f"{len(record['languages']):,} language-scripts, {record['sentences']:,} sentences"
        + ("" if at is None else f", at step {at:,}")
    )
    if contrast["value"] is not None:
        text += (
            f". Outer less middle layers: {contrast['value']:+.3f} "
            f"({contrast['low']:+.3f} to {contrast['high']:+.3f})"
        )
    text += f".{failed_controls(record)}"
    return Section("neurons", _TITLE, text.replace("-0", "−0"), figures)


def _depth(record: dict[str, Any]) -> Figure:
    of_last = {title: record[name][-1] for name, title in _LINES.items()}
    rows = [
        {"layer": layer, "series": title, "value": value}
        for title, values in of_last.items()
        for layer, value in enumerate(values)
        if value is not None
    ]
    band = [
        {"layer": layer, "low": low, "high": high}
        for layer, (low, high) in enumerate(
            zip(record["null"]["low"][-1], record["null"]["high"][-1], strict=True)
        )
    ]
    values = ", ".join(f"{value:.3f}" for value in record["selectivity"][-1])
    return Figure(
        "neurons-by-layer",
        "How well neurons tell languages apart, by layer",
        "Separability |2 AUROC − 1|, the mean over neurons and pairs of languages. Band: 95 % with "
        "the labels of translations swapped. In two scripts: pairs of one language. Halves: of one "
        "language, with half the sentences; what other content alone makes. Pieces in common: only "
        "tokens whose piece both languages use. Layer 0 is the first block.",
        f"Mean separability by layer: {values}.",
        rows,
        charts.band(band, "layer") + charts.curves(rows, "layer", "separability", ".2~f", True),
    )


def _disagreement(record: dict[str, Any]) -> Figure:
    rows = [
        {"layer": layer, "pair": " ".join(pair), "value": value}
        for pair, values in zip(
            record["pairs"], record["by_pair"]["rank_disagreement"], strict=True
        )
        for layer, value in enumerate(values)
        if value is not None
    ]
    widest = max(
        rows, key=lambda row: row["value"], default={"pair": "none", "value": 0, "layer": 0}
    )
    return Figure(
        "neurons-rank-disagreement",
        "Other neurons in other languages",
        "1 − Spearman's rho over the neurons of a layer, of their mean activations in two "
        "languages: 0 where all languages rank the neurons alike.",
        f"Rank disagreement of {len(record['pairs'])} pairs by layer; the greatest is "
        f"{widest['value']:.3f}, {widest['pair']} at layer {widest['layer']}.",
        rows,
        charts.grid(rows, "layer", "pair", "rank disagreement"),
    )


def _own(record: dict[str, Any]) -> Figure:
    own = record["by_language"]["own"]
    most = sorted(own, key=lambda name: (-sum(own[name]), name))
    rest = most[_NAMED:]
    series = {name: own[name] for name in most[:_NAMED]}
    if rest:
        series[f"{len(rest)} others"] = [sum(of) for of in zip(*map(own.get, rest), strict=True)]
    rows = [
        {"layer": layer, "series": name, "value": value}
        for name, values in series.items()
        for layer, value in enumerate(values)
    ]
    return Figure(
        "neurons-of-languages",
        "Neurons of single languages, by layer",
        "The 1 % of all neurons with the lowest entropy of firing over languages (LAPE). One that "
        "is active in several languages counts for each of them.",
        f"Language-specific neurons by layer and language; most has {most[0]}, "
        f"{sum(own[most[0]]):.0f}.",
        rows,
        charts.stacked(rows, "layer", "neurons").mark_bar(size=16),
    )


def _clamped(clamped: dict[str, Any]) -> Figure:
    rows = [
        {"tested": tested, "clamped": edited, "value": value}
        for edited, values in zip(clamped["edited"], clamped["own"], strict=True)
        for tested, value in zip(clamped["tested"], values, strict=True)
    ]
    excess = clamped["excess"]
    says = f"{excess['value']:+.4f} ({excess['low']:+.4f} to {excess['high']:+.4f})"
    return Figure(
        "neurons-clamped",
        "Loss with a language's own neurons held at 0",
        "By how much the loss of a masked token of each language rises, in nats. On the diagonal "
        f"the language whose neurons they are: there {says} more than with as many neurons of the "
        "same layers that fire about as often, and more than in the other languages.",
        f"Rise of the loss of {len(clamped['tested'])} languages with the neurons of "
        f"{len(clamped['edited'])} clamped; excess on the diagonal {says}.",
        rows,
        charts.grid(rows, "tested", "clamped", "rise of the loss"),
    )


def _training(record: dict[str, Any]) -> Figure:
    rows = [
        {"step": step, "layer": layer, "value": value}
        for step, values in zip(record["steps"], record["selectivity"], strict=True)
        for layer, value in enumerate(values)
    ]
    ends = [sum(values) / len(values) for values in record["selectivity"]]
    return Figure(
        "neurons-over-training",
        "Separability over the training",
        "Mean over neurons and pairs of languages; step 0 is random weights, and so what the "
        "pieces of the languages alone make.",
        f"Separability by layer at {len(ends)} steps; its mean over layers goes from "
        f"{ends[0]:.3f} to {ends[-1]:.3f}.",
        rows,
        charts.grid(rows, "step", "layer", "separability"),
    )

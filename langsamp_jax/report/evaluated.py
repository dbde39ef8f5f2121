"""The parts of the page about what was evaluated."""

from collections import Counter
from typing import Any

import numpy as np

from langsamp_jax.languages.inventory import language_name, scripts_by_language
from langsamp_jax.report import charts
from langsamp_jax.report.figures import Figure, Section, Table, format_number
from langsamp_jax.report.run_results import RunResults
from langsamp_jax.report.training import evaluate

_TASKS = {
    "retrieval-bible": "SR-B",
    "retrieval-tatoeba": "SR-T",
    "taxi1500": "Taxi1500",
    "sib200": "SIB-200",
    "ner": "NER",
    "pos": "POS",
    "pseudo-perplexity": "Pseudo-perplexity",
}
_METRICS = {
    "top10": "top-10 accuracy",
    "macro_f1": "macro-F1",
    "entity_f1": "entity F1",
    "tag_f1": "F1 over runs of tags",
    "bits_per_character": "bits per character",
}
_GROUPS = {"all": "all", "head": "head", "tail": "tail", "latin": "Latin", "non_latin": "non-Latin"}
_FAMILIES = 5  # so many have a colour and a shape of their own


def neutrality(evidence: RunResults) -> Section:
    """How much closer translations are than other sentences: by pair at one layer, and by layer."""
    title = "Language neutrality"
    found = evidence.evaluations.get("neutrality")
    if found is None or not found["pairs"]:
        return Section(
            "neutrality", title, command=evaluate("neutrality", "--data CORPUS", evidence)
        )
    names, mean, layers = found["languages"], found["mean"], found["num_layers"]
    layer = round((layers - 1) * 2 / 3)  # where sentences are taken from for retrieval
    gap = np.full((len(names), len(names)), np.nan)
    for (one, other), by_layer in zip(found["pairs"], found["gap"], strict=True):
        gap[one, other] = gap[other, one] = by_layer[layer]
    order = _alike_together(gap)
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
            "Languages that behave alike stand together. A pair without a cell has no sentences in "
            "common.",
            f"Gap of {len(cells)} pairs of {len(names)} language-scripts at layer {layer}; the "
            f"widest is {widest['one']} with {widest['other']}, {widest['value']:.3f}.",
            [{"one": c["one"], "other": c["other"], "gap": c["value"]} for c in cells],
            charts.heat_map(cells, [names[at] for at in order], "gap"),
        ),
    ]
    text = f"{len(found['pairs']):,} pairs of {len(names):,} language-scripts{_at_step(found)}."
    return Section("neutrality", title, text, figures)


def retrieval(evidence: RunResults) -> Section:
    """Sentence retrieval by language-script, for each set of sentences, and by layer."""
    figures = []
    for stem, found in _retrieved(evidence).items():
        label, metric = _label(stem), found["metric"]
        titles = {"value": "top-10", "second": "top-1", "reference": "chance"}
        records = [
            {
                "language": each["language"],
                "name": language_name(each["language"]),
                "group": each.get("group") or evidence.group(each["language"]),
                "value": each[metric],
                "second": each.get("top1"),
                "reference": each.get("chance_top10"),
            }
            for each in found["languages"]
        ]
        if not records:
            continue
        records.sort(key=lambda record: (-record["value"], record["language"]))
        mean = found.get("averages", {}).get("all", {}).get(metric)
        figures.append(
            Figure(
                stem,
                f"{label}: translations found",
                "Large marks: the translation is among the ten closest sentences. Small hollow "
                "marks: it is the closest. Grey diamonds: ten at random."
                + (f" Sentences: {found['data']}." if found.get("data") else ""),
                f"Top-10 accuracy of {len(records)} language-scripts, "
                f"{format_number(mean, '.1%')} on average; best {records[0]['language']} "
                f"{records[0]['value']:.1%}, worst {records[-1]['language']} "
                f"{records[-1]['value']:.1%}.",
                [{titles.get(key, key): v for key, v in record.items()} for record in records],
                charts.by_language(records, "accuracy", ".0%", titles),
            )
        )
    neutral = evidence.evaluations.get("neutrality", {})
    if "top1" in neutral.get("mean", {}):
        records = [
            {"layer": layer, "series": "top-1", "value": value}
            for layer, value in enumerate(neutral["mean"]["top1"])
        ]
        best = max(records, key=lambda record: record["value"])
        figures.append(
            Figure(
                "retrieval-by-layer",
                "Top-1 by layer",
                "Mean over all pairs of languages. Layer 0 is the embeddings.",
                f"Top-1 accuracy by layer, highest at layer {best['layer']}: {best['value']:.1%}.",
                records,
                charts.curves(records, "layer", "top-1 accuracy", ".0%", zero=True),
            )
        )
    command = "" if _retrieved(evidence) else evaluate("retrieval-bible", "--data DIR", evidence)
    text = evidence.head_means if _retrieved(evidence) else ""
    return Section("retrieval", "Sentence retrieval", text, figures, command=command)


def geometry(evidence: RunResults) -> Section:
    """The two tables as planes, their closest rows, what their distances go along with."""
    title, found = "The map of languages", evidence.evaluations.get("geometry")
    if found is None:
        return Section(
            "map", title, command=evaluate("geometry", "--references URIEL.npz", evidence)
        )
    figures, tables = [], []
    for table, of in found["tables"].items():
        records, kinds = _points(evidence, of)
        if not records:
            continue
        x, y = (
            f"component {k} ({share:.0%} of the variance)"
            for k, share in enumerate(of["explained"], 1)
        )
        figures.append(
            Figure(
                f"map-of-{table}s",
                f"The {table} table",
                "The two directions in which the vectors differ most. Near means alike to the "
                "model; where other directions carry much, near on the map says little.",
                f"The first two principal components of {len(records)} {table} vectors"
                + (f", by family: {', '.join(kinds)}." if len(kinds) > 1 else "."),
                records,
                charts.scatter(records, kinds, x, y),
            )
        )
        if of.get("correlations"):
            tables.append(_correlations(table, of["correlations"]))
        if of.get("neighbours"):
            rows = [
                [name, ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)]
                for name, near in of["neighbours"].items()
            ]
            headers = [table, "closest, with their cosines"]
            tables.append(Table(f"Closest in the {table} table", headers, rows, True, True))
    text = "The vectors that are added to the encoder's output, seen from above" + _at_step(found)
    return Section("map", title, f"{text}.", figures, tables)


def tasks(evidence: RunResults) -> Section:
    """The table of the tasks, and the numbers of each language-script."""
    there = {stem: evidence.evaluations[stem] for stem in _TASKS if stem in evidence.evaluations}
    there |= _retrieved(evidence)
    missing = [stem for stem in _TASKS if stem not in there]
    command = evaluate(missing[0], "--data DIR", evidence) if missing else ""
    if not there:
        return Section("tasks", "Downstream tasks", command=command)
    rows = [
        [
            _label(stem),
            _METRICS.get(found["metric"], found["metric"]),
            *(_average(found, group) for group in _GROUPS),
            str(len(found["seeds"])) if found.get("seeds") else "–",
        ]
        for stem, found in there.items()
    ]
    headers = ["task", "metric", *_GROUPS.values(), "seeds"]
    title = "Unweighted means over languages, in percent (number of languages); ± over seeds"
    tables = [Table(title, headers, rows)]
    tables += [_each_language(_label(stem), found) for stem, found in there.items()]
    sources = {stem: found["source"] for stem, found in there.items() if "source" in found}
    text = ""
    if sources:
        each = ", ".join(f"{_label(stem)} on {source}" for stem, source in sources.items())
        text = f"Fine-tuned on one language ({each}) and applied to all others as it is. "
    text += evidence.head_means
    if missing:
        text += f" Not measured yet: {', '.join(map(_label, missing))}; the first of them:"
    return Section("tasks", "Downstream tasks", text, tables=tables, command=command)


def donors(evidence: RunResults) -> Section:
    """What each way of choosing a donor language is worth."""
    title, found = "Choosing a donor language", evidence.evaluations.get("donors")
    if found is None:
        return Section("donors", title, command=evaluate("donors", "--data SIB200", evidence))
    ends = {"oracle": 0, "random": 2}
    records = sorted(
        ({key: each.get(key) for key in ("choice", "mean", "low", "high", "targets")}
         for each in found["choices"]),
        key=lambda record: (ends.get(record["choice"], 1), -record["mean"]),
    )  # fmt: skip
    metric = _METRICS.get(found["metric"], found["metric"])
    form = ".1%" if _is_share(found["metric"]) else ".2f"
    means = ", ".join(f"{r['choice']} {r['mean']:{form}}" for r in records)
    figure = Figure(
        "donors",
        "Transfer by way of choosing",
        "The mean over target languages and its confidence interval. The oracle picks the best "
        "donor with hindsight; random is what no knowledge gives.",
        f"Mean {metric} by way of choosing: {means}.",
        records,
        charts.intervals(records, f"mean {metric}", form),
    )
    tables = []
    if found.get("correlations"):
        rows = [
            [each["similarity"], format_number(each["rho"], ".2f"), _interval(each, ".2f")]
            for each in found["correlations"]
        ]
        headers = ["similarity", "ρ", "interval"]
        tables.append(Table("Rank correlation of similarity and transfer", headers, rows))
    choices = [each for each in found["choices"] if each.get("chosen")]
    if choices:
        targets = list(dict.fromkeys(target for each in choices for target in each["chosen"]))
        rows = [[t, *(each["chosen"].get(t, "–") for each in choices)] for t in targets]
        headers = ["target", *(each["choice"] for each in choices)]
        tables.append(Table("The donor of each target", headers, rows, True, True))
    text = f"Zero-shot transfer on {_label(found['on'])}: fine-tuned on the donor's data alone."
    return Section("donors", title, text, [figure], tables)


def _alike_together(gap: np.ndarray) -> list[int]:
    """An order in which languages with like gaps stand together (average linkage)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(gap) < 3 or np.isnan(gap).all():
        return list(range(len(gap)))
    filled = np.nan_to_num(gap, nan=float(np.nanmean(gap)))
    distance = filled.max() - filled
    np.fill_diagonal(distance, 0)
    close = squareform((distance + distance.T) / 2, checks=False)
    return leaves_list(linkage(close, "average")).tolist()


def _points(evidence: RunResults, of: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a table as points, and the kinds that they are of: the largest families."""
    families = of.get("families") or [None] * len(of["names"])
    sizes = Counter(family for family in families if family)
    largest = [family for family, _ in sizes.most_common(_FAMILIES)]
    scripts = scripts_by_language(evidence.run.inventory.language_scripts)
    records = []
    for name, family, (x, y) in zip(of["names"], families, of["coordinates"], strict=True):
        record = {"label": name, "kind": family if family in largest else "other", "x": x, "y": y}
        if of.get("families"):
            record["name"], record["family"] = language_name(name), family or "unknown"
            record["script"] = scripts.get(name, "unknown")
        records.append(record)
    others = ["other"] if any(record["kind"] == "other" for record in records) else []
    return records, largest + others


def _correlations(table: str, correlations: list[dict[str, Any]]) -> Table:
    rows = [
        [each["with"], format_number(each["rho"], ".2f"), format_number(each.get("p"), ".4f"),
         format_number(each.get("languages"), ",")]
        for each in correlations
    ]  # fmt: skip
    headers = ["distance by", "ρ", "p", "rows"]
    return Table(f"Rank correlation of distances in the {table} table", headers, rows)


def _each_language(label: str, found: dict[str, Any]) -> Table:
    metric = found["metric"]
    # What each seed gave is in the result; here its mean and deviation are enough.
    given = (field for each in found["languages"] for field in each)
    fields = list(dict.fromkeys(field for field in given if not field.endswith("_seeds")))
    first = [field for field in ("group", metric, f"{metric}_std") if field in fields]
    fields = first + [field for field in fields if field not in ("language", *first)]
    rows = [
        [each["language"], *(_cell(field, each.get(field)) for field in fields)]
        for each in sorted(found["languages"], key=lambda each: each["language"])
    ]
    headers = ["language", *(field.replace("_", " ") for field in fields)]
    skipped = [f"{name} ({why})" for name, why in found.get("skipped", {}).items()]
    note = f"Skipped: {', '.join(skipped)}." if skipped else ""
    return Table(f"{label}: every language-script", headers, rows, folded=True, note=note)


def _cell(field: str, value: Any) -> str:
    if isinstance(value, float):
        return (
            format_number(100 * value, ".1f") if _is_share(field) else format_number(value, ".3f")
        )
    return "–" if value is None else str(value)


def _average(found: dict[str, Any], group: str) -> str:
    """``53.4 ± 0.8 (354)``: in percent where it is a share."""
    of, metric = found.get("averages", {}).get(group), found["metric"]
    if not of or of.get(metric) is None:
        return "–"
    scale, form = (100, ".1f") if _is_share(metric) else (1, ".3f")
    spread = of.get(f"{metric}_std")
    more = "" if spread is None else f" ± {format_number(scale * spread, form)}"
    return f"{format_number(scale * of[metric], form)}{more} ({of.get('languages', '?')})"


def _interval(record: dict[str, Any], form: str) -> str:
    return f"{format_number(record.get('low'), form)} to {format_number(record.get('high'), form)}"


def _is_share(metric: str) -> bool:
    return not metric.startswith(("bits", "pseudo_perplexity"))


def _retrieved(evidence: RunResults) -> dict[str, dict[str, Any]]:
    """By stem: SR-B and SR-T first, then what else there is."""
    there = evidence.evaluations
    stems = [stem for stem in there if stem.startswith("retrieval") and stem not in _TASKS]
    return {
        stem: there[stem]
        for stem in [*_TASKS, *stems]
        if stem.startswith("retrieval") and stem in there
    }


def _label(stem: str) -> str:
    return _TASKS.get(stem) or stem.removeprefix("retrieval-").replace("-", " ").capitalize()


def _at_step(found: dict[str, Any]) -> str:
    return "" if found.get("step") is None else f", at step {found['step']:,}"

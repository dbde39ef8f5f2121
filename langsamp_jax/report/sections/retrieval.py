"""The section about sentence retrieval: of each language-script, and by layer."""

import statistics

from langsamp_jax.languages.inventory import language_name
from langsamp_jax.report import charts
from langsamp_jax.report.evaluations import retrievals, task_title
from langsamp_jax.report.figures import Figure, Section, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 50  # on the page


def section(results: RunResults) -> Section:
    """Returns sentence retrieval by language-script, for each set of sentences, and by layer."""
    figures, tasks = [], retrievals(results)
    for stem, task in tasks.items():
        metric = task["metric"]
        titles = {"value": "top-10", "second": "top-1", "reference": "chance"}
        records = [
            {
                "language": record["language"],
                "name": language_name(record["language"]),
                "group": record.get("group") or results.group(record["language"]),
                "value": record[metric],
                "second": record.get("top1"),
                "reference": record.get("chance_top10"),
            }
            for record in task["languages"]
        ]
        if not records:
            continue
        records.sort(key=lambda record: (-record["value"], record["language"]))
        mean = task.get("averages", {}).get("all", {}).get(metric)
        figures.append(
            Figure(
                stem,
                f"{task_title(stem)}: translations found",
                "Large marks: the translation is among the ten closest sentences. Small hollow "
                "marks: it is the closest. Grey diamonds: ten at random."
                + (f" Sentences: {task['data']}." if task.get("data") else "")
                + (f" States of layer {task['layer']}." if "layer" in task else ""),
                f"Top-10 accuracy of {len(records)} language-scripts, "
                f"{format_number(mean, '.1%')} on average; best {records[0]['language']} "
                f"{records[0]['value']:.1%}, worst {records[-1]['language']} "
                f"{records[-1]['value']:.1%}.",
                [{titles.get(key, key): v for key, v in record.items()} for record in records],
                charts.by_language(records, "accuracy", ".1%", titles),
            )
        )
    neutral = results.evaluations.get("neutrality", {})
    if "top1" in neutral.get("mean", {}):
        records = [
            {"layer": layer, "series": "top-1", "value": value}
            for layer, value in enumerate(neutral["mean"]["top1"])
        ]
        best = max(records, key=lambda record: record["value"])
        if sentences := neutral.get("sentences"):
            chance = statistics.fmean(1 / number for number in sentences if number)
            ends = (0, len(records) - 1)
            records += [{"layer": layer, "series": "chance", "value": chance} for layer in ends]
        figures.append(
            Figure(
                "retrieval-by-layer",
                "Top-1 by layer",
                "Mean over all pairs of languages. Layer 0 is the embeddings.",
                f"Top-1 accuracy by layer, highest at layer {best['layer']}: {best['value']:.1%}.",
                records,
                charts.curves(records, "layer", "top-1 accuracy", ".1%", zero=True),
            )
        )
    command = "" if tasks else results.evaluate_command("retrieval-bible", "--data DIR")
    text = results.head_means if tasks else ""
    return Section("retrieval", "Sentence retrieval", text, figures, command=command)

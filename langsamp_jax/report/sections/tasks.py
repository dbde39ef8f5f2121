"""The section about the downstream tasks: averages, and every language-script."""

from typing import Any

from langsamp_jax.report.evaluations import TASKS, is_share, metric_title, read_tasks, task_title
from langsamp_jax.report.figures import Section, Table, format_number
from langsamp_jax.report.run_results import RunResults

POSITION = 70  # on the page

_GROUPS = {"all": "all", "head": "head", "tail": "tail", "latin": "Latin", "non_latin": "non-Latin"}


def section(results: RunResults) -> Section:
    """Returns the table of the tasks, and the numbers of each language-script."""
    tasks = read_tasks(results)
    missing = [stem for stem in TASKS if stem not in tasks]
    command = results.evaluate_command(missing[0], "--data DIR") if missing else ""
    if not tasks:
        return Section("tasks", "Downstream tasks", command=command)
    rows = [
        [
            task_title(stem),
            metric_title(task["metric"]),
            *(_average(task, group) for group in _GROUPS),
            str(len(task["seeds"])) if task.get("seeds") else "–",
        ]
        for stem, task in tasks.items()
    ]
    headers = ["task", "metric", *_GROUPS.values(), "seeds"]
    title = "Unweighted means over languages, in percent (number of languages); ± over seeds"
    tables = [Table(title, headers, rows)]
    tables += [_each_language(task_title(stem), task) for stem, task in tasks.items()]
    sources = {stem: task["source"] for stem, task in tasks.items() if "source" in task}
    text = ""
    if sources:
        sourced = ", ".join(f"{task_title(stem)} on {source}" for stem, source in sources.items())
        text = f"Fine-tuned on one language ({sourced}) and applied to all others as it is. "
    text += results.head_means
    if missing:
        text += f" Not measured yet: {', '.join(map(task_title, missing))}; the first of them:"
    return Section("tasks", "Downstream tasks", text, tables=tables, command=command)


def _each_language(title: str, task: dict[str, Any]) -> Table:
    metric = task["metric"]
    # What each seed gave is in the result; here its mean and deviation are enough.
    given = (field for record in task["languages"] for field in record)
    fields = list(dict.fromkeys(field for field in given if not field.endswith("_seeds")))
    first = [field for field in ("group", metric, f"{metric}_std") if field in fields]
    fields = first + [field for field in fields if field not in ("language", *first)]
    rows = [
        [record["language"], *(_cell(field, record.get(field)) for field in fields)]
        for record in sorted(task["languages"], key=lambda record: record["language"])
    ]
    headers = ["language", *(field.replace("_", " ") for field in fields)]
    skipped = [f"{name} ({why})" for name, why in task.get("skipped", {}).items()]
    note = f"Skipped: {', '.join(skipped)}." if skipped else ""
    return Table(f"{title}: every language-script", headers, rows, folded=True, note=note)


def _cell(field: str, value: Any) -> str:
    if isinstance(value, float):
        return format_number(100 * value, ".1f") if is_share(field) else format_number(value, ".3f")
    return "–" if value is None else str(value)


def _average(task: dict[str, Any], group: str) -> str:
    """Returns ``53.4 ± 0.8 (354)``: in percent where it is a share."""
    averages, metric = task.get("averages", {}).get(group), task["metric"]
    if not averages or averages.get(metric) is None:
        return "–"
    scale, form = (100, ".1f") if is_share(metric) else (1, ".3f")
    spread = averages.get(f"{metric}_std")
    more = "" if spread is None else f" ± {format_number(scale * spread, form)}"
    return (
        f"{format_number(scale * averages[metric], form)}{more} ({averages.get('languages', '?')})"
    )

"""What the sections about evaluations share: names of tasks and metrics, and their results."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from langsamp_jax.report.figures import format_number
from langsamp_jax.report.run_results import RunResults

TASKS = {
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


def read_tasks(results: RunResults) -> dict[str, dict[str, Any]]:
    """Returns the tasks that were evaluated, by stem: those of ``TASKS``, then other retrieval.

    Each has a ``metric`` and, of each of its ``languages``, the code and that metric.

    Raises:
      UserError: a file lacks something of it.
    """
    other = [stem for stem in results.evaluations if stem.startswith("retrieval")]
    stems = [stem for stem in dict.fromkeys([*TASKS, *other]) if stem in results.evaluations]
    return {stem: _read_task(results, stem) for stem in stems}


def retrievals(results: RunResults) -> dict[str, dict[str, Any]]:
    """Returns those of ``read_tasks`` that are sentence retrieval: SR-B and SR-T first."""
    tasks = read_tasks(results)
    return {stem: task for stem, task in tasks.items() if stem.startswith("retrieval")}


def _read_task(results: RunResults, stem: str) -> dict[str, Any]:
    is_retrieval = stem.startswith("retrieval")
    fields = ["languages.*.language"] if is_retrieval else ["metric", "languages.*.language"]
    record = results.evaluation(stem, *fields)
    metric = record.get("metric", "top10")
    return {**results.evaluation(stem, f"languages.*.{metric}"), "metric": metric}


def failed_controls(record: Mapping[str, Any]) -> str:
    """Returns a sentence for each control of a result that is not as it must be."""
    return "".join(
        f" Control failed: {name}: {format_number(control['value'])}, expected "
        f"{control['expected']}."
        for name, control in record["controls"].items()
        if not control["ok"]
    )


def task_title(stem: str) -> str:
    """Returns what a task is called on the page."""
    task, of_layer, layer = stem.partition("-layer-")
    title = TASKS.get(task) or task.removeprefix("retrieval-").replace("-", " ").capitalize()
    return f"{title}, layer {layer}" if of_layer else title


def metric_title(metric: str) -> str:
    """Returns what a metric is called on the page."""
    return _METRICS.get(metric, metric)


def is_share(metric: str) -> bool:
    """Returns whether a metric lies between 0 and 1, and is written in percent."""
    return not metric.startswith(("bits", "pseudo_perplexity"))


def at_step(record: dict[str, Any]) -> str:
    """Returns the end of a sentence that says at which step of the run something was measured."""
    return "" if record.get("step") is None else f", at step {record['step']:,}"


def alike_together(values: np.ndarray) -> list[int]:
    """Returns an order in which languages whose pairs have high values stand together (average
    linkage).

    Args:
      values: float [languages, languages], NaN where there is none.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(values) < 3 or np.isnan(values).all():
        return list(range(len(values)))
    filled = np.nan_to_num(values, nan=float(np.nanmean(values)))
    distance = filled.max() - filled
    np.fill_diagonal(distance, 0)
    close = squareform((distance + distance.T) / 2, checks=False)
    return leaves_list(linkage(close, "average")).tolist()

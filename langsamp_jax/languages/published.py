"""The published evaluation: its groups of languages, averages over them, and its labels."""

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from langsamp_jax.languages.inventory import seen_by_xlmr, split_language_script

# The labels of the classification tasks, in the order of their ids in the published code.
LABELS = {
    "taxi1500": ("Recommendation", "Faith", "Violence", "Grace", "Sin", "Description"),
    "sib200": (
        "science/technology",
        "travel",
        "politics",
        "sports",
        "health",
        "entertainment",
        "geography",
    ),
}

# Codes of FLORES, UD and others -> the codes under which the published lists know the language.
# Only what the lists do not name themselves: als, azj, kmr, lvs, nob, npi, ory and plt, for
# example, are in the lists, as tail, although sqi, aze, kur, lav, nor, nep, ori and mlg are head.
_LANGUAGES = {
    "ekk": "est",
    "khk": "mon",
    "pbt": "pus",
    "pbu": "pus",
    "uzn": "uzb",
    "ydd": "yid",
}
_SCRIPTS = {"Hans": "Hani", "Hant": "Hani", "Kore": "Hang"}


def published_languages(task: str) -> dict[str, str]:
    """Returns the languages that the published evaluation averages over.

    Args:
      task: ``sr_bible``, ``sr_tatoeba``, ``taxi1500``, ``sib200``, ``ner`` or ``pos``.

    Returns:
      ``head`` (XLM-R's languages) or ``tail`` by language-script.
    """
    lists = _published_lists()[task]
    return {name: group for group in ("head", "tail") for name in lists[group]}


def is_head(language_script: str) -> bool:
    """Returns whether a language-script is one of XLM-R's, as the published lists count them.

    The six lists agree where they overlap, so a name that one of them holds is what it says. Any
    other is head if XLM-R has seen it (``seen_by_xlmr``) or a list counts it as head under
    another code of the same language or script (``zho_Hans`` is ``zho_Hani``), and tail if not:
    a language in a script of which XLM-R has seen no text is tail, as ``hin_Latn`` in the lists.
    """
    head, tail = _head_and_tail()
    if language_script in head | tail:
        return language_script in head
    language, script = split_language_script(language_script)
    return f"{_LANGUAGES.get(language, language)}_{_SCRIPTS.get(script, script)}" in head


def averages(
    records: Sequence[Mapping[str, Any]], metrics: Sequence[str], task: str | None = None
) -> dict[str, dict[str, Any]]:
    """Averages over languages, each counting the same, for all and for every group.

    Args:
      records: one a language-script: ``language`` and, for each of ``metrics``, a number or None.
      task: one of those of ``published_languages``.

    Returns:
      of ``all``, ``head``, ``tail``, ``latin``, ``non_latin`` and, where there is a task,
      ``published`` (the languages of its published averages), those that have languages:
      ``languages``, how many, and the mean of every metric. Where a metric is None for some, the
      mean is over the others (None if there are none) and ``METRIC_languages`` says how many.
    """
    in_group = {"all": [True] * len(records)}
    in_group["head"] = [is_head(record["language"]) for record in records]
    in_group["tail"] = [not head for head in in_group["head"]]
    in_group["latin"] = [record["language"].endswith("_Latn") for record in records]
    in_group["non_latin"] = [not latin for latin in in_group["latin"]]
    if task is not None:
        published = published_languages(task)
        in_group["published"] = [record["language"] in published for record in records]
    return {
        group: _means(
            [record for record, is_in in zip(records, members, strict=True) if is_in], metrics
        )
        for group, members in in_group.items()
        if any(members)
    }


def _means(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    means: dict[str, Any] = {"languages": len(records)}
    for metric in metrics:
        values = [record[metric] for record in records if record[metric] is not None]
        means[metric] = sum(values) / len(values) if values else None
        if len(values) < len(records):
            means[f"{metric}_languages"] = len(values)
    return means


@functools.cache
def _head_and_tail() -> tuple[frozenset[str], frozenset[str]]:
    lists = _published_lists().values()
    head = seen_by_xlmr().union(*(groups["head"] for groups in lists))
    return head, frozenset().union(*(groups["tail"] for groups in lists))


@functools.cache
def _published_lists() -> dict[str, dict[str, list[str]]]:
    file = resources.files("langsamp_jax.languages") / "published_task_languages.json"
    lists = json.loads(file.read_text("utf-8"))
    del lists["source"]
    return lists

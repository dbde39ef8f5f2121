"""What a run folder holds for the report: the run, its metrics, its evaluations."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import seen_by_xlmr
from langsamp_jax.training.run import Run, open_run, read_metrics

_HEAD = 0.1  # of the language-scripts, by tokens, where XLM-R has seen none of them

# What a part cannot do without: fields of a file, the members of one of them, fields of each.
_NEEDED = {
    "mlm": ("loss unigram_entropy", "languages", "language loss unigram_entropy"),
    "neutrality": ("languages pairs gap mean num_layers", "", ""),
    "geometry": ("", "tables", "names coordinates explained"),
    "donors": ("metric on", "choices", "choice mean"),
}
_NEEDED_OF_TASKS = ("metric", "languages", "language")


@dataclasses.dataclass(frozen=True)
class RunResults:
    """All that there is to report. An evaluation is what its file holds, by the file's stem."""

    run: Run
    metrics: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]

    def column(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of every line of the metrics that has a finite ``key``."""
        lines = [line for line in self.metrics if math.isfinite(line.get(key, math.nan))]
        return [(line["step"], line[key]) for line in lines]

    @property
    def step(self) -> int:
        """The last step that has been logged."""
        return self.metrics[-1]["step"] if self.metrics else 0

    def group(self, name: str) -> str:
        """``head`` or ``tail``: XLM-R's language-scripts are the head; in a world without them,
        the tenth with the most tokens."""
        return "head" if name in self._head else "tail"

    @property
    def head_means(self) -> str:
        """What the head is in this run, in a sentence."""
        head, of = len(self._head), len(self.run.tokens)
        if self._head <= seen_by_xlmr():
            return f"Head: the {head} of {of} language-scripts that XLM-R was trained on."
        return f"Head: the {head} of {of} language-scripts with the most tokens."

    @functools.cached_property
    def _head(self) -> frozenset[str]:
        tokens = self.run.tokens
        if seen := seen_by_xlmr().intersection(tokens):
            return seen
        largest = sorted(tokens, key=lambda name: (-tokens[name], name))
        return frozenset(largest[: max(1, round(_HEAD * len(largest)))])


def read_evidence(path: Path) -> RunResults:
    """Reads what is there; a run that goes on may have written more a moment later.

    Raises:
      UserError: ``path`` is no run, or a file of it is damaged; the file is named.
    """
    run = open_run(path)
    file = run.path / "metrics.jsonl"
    try:
        metrics = read_metrics(file)
        if not all(isinstance(line, dict) and "step" in line for line in metrics):
            raise ValueError("a line has no step")
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    folder = run.path / "evaluation"
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return RunResults(run, metrics, {file.stem: _evaluation(file) for file in files})


def _evaluation(file: Path) -> dict[str, Any]:
    fields, container, of_each = _NEEDED.get(file.stem, _NEEDED_OF_TASKS)
    try:
        record = json.loads(file.read_bytes())
        if file.stem.startswith("retrieval") and isinstance(record, dict):
            record = {"metric": "top10", **record}
        _require(record, *fields.split(), *container.split())
        members = record[container] if container else []
        metric = [record["metric"]] if container == "languages" and "metric" in record else []
        for member in members.values() if isinstance(members, dict) else members:
            _require(member, *of_each.split(), *metric)
        if file.stem == "neutrality":
            _require(record["mean"], "gap")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged: {error}; remove it, or evaluate again with --output {file}"
        ) from None
    return record


def _require(record: Any, *fields: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    if missing := [field for field in fields if field not in record]:
        raise ValueError(f"it has no {missing[0]!r}")

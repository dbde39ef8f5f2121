"""What a run folder holds for the report: the run, its metrics, its evaluations."""

import contextlib
import dataclasses
import functools
import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import visible
from langsamp_jax.languages.inventory import language_name, seen_by_xlmr
from langsamp_jax.training.run import Run, open_run, read_metrics

_HEAD = 0.1  # of the language-scripts, by tokens, where XLM-R has seen none of them


@dataclasses.dataclass(frozen=True)
class RunResults:
    """All that there is to report. An evaluation is what its file holds, by the file's stem; a
    series is one of many steps."""

    run: Run
    metrics: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    series: dict[str, dict[str, Any]]

    def evaluation(self, stem: str, *fields: str) -> dict[str, Any] | None:
        """Returns an evaluation that has ``fields``; None where the run was not evaluated so.

        Args:
          fields: what the caller reads: names joined by dots, ``*`` for each member.

        Raises:
          UserError: it lacks one of them; the file is named.
        """
        record = self.evaluations.get(stem)
        if record is not None:
            with _damage_named(self.run.path / "evaluation" / f"{stem}.json"):
                for field in fields:
                    _require(record, field)
        return record

    def column(self, key: str) -> list[tuple[int, float]]:
        """Returns (step, value) of every line of the metrics that has a finite ``key``."""
        lines = [line for line in self.metrics if math.isfinite(line.get(key, math.nan))]
        return [(line["step"], line[key]) for line in lines]

    @property
    def step(self) -> int:
        """Returns the last step that has been logged."""
        return self.metrics[-1]["step"] if self.metrics else 0

    def group(self, name: str) -> str:
        """Returns ``head`` or ``tail``.

        XLM-R's language-scripts are the head; in a world without them, the tenth with the most
        tokens.
        """
        return "head" if name in self._head else "tail"

    @property
    def head_means(self) -> str:
        """Returns a sentence that says which language-scripts the head is in this run."""
        head, total = len(self._head), len(self.run.tokens)
        if self._head <= seen_by_xlmr():
            return f"Head: the {head} of {total} language-scripts that XLM-R was trained on."
        return f"Head: the {head} of {total} language-scripts with the most tokens."

    def identify(self, language_script: str) -> dict[str, str]:
        """Returns the first fields of a record of a chart: ``language``, ``name``, ``group``."""
        name, group = language_name(language_script), self.group(language_script)
        return {"language": language_script, "name": name, "group": group}

    @property
    def path_argument(self) -> str:
        """Returns the run as a word of a command line."""
        return shlex.quote(str(self.run.path))

    def evaluate_command(self, task: str, data: str) -> str:
        """Returns the command that measures what is missing."""
        return f"langsamp evaluate {task} --model {self.path_argument} {data}"

    @functools.cached_property
    def _head(self) -> frozenset[str]:
        tokens = self.run.tokens
        if seen := seen_by_xlmr().intersection(tokens):
            return seen
        largest = sorted(tokens, key=lambda name: (-tokens[name], name))
        return frozenset(largest[: max(1, round(_HEAD * len(largest)))])


def read_results(path: Path) -> RunResults:
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
    files = visible(folder, ".json") if folder.is_dir() else []
    evaluations = {file.stem: _read_evaluation(file) for file in files}
    series = {stem: record for stem, record in evaluations.items() if "records" in record}
    for stem, record in series.items():
        del evaluations[stem]
        with _damage_named(folder / f"{stem}.json"):
            for field in ("measures", "records.*.step", "records.*.measures"):
                _require(record, field)
    return RunResults(run, metrics, evaluations, series)


def _read_evaluation(file: Path) -> dict[str, Any]:
    with _damage_named(file):
        record = json.loads(file.read_bytes())
        _require_object(record)
    return record


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Raises UserError with the name of ``file`` where its content is not as expected."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged: {error}; remove it, or evaluate again with --output {file}"
        ) from None


def _require(value: Any, field: str) -> None:
    """Raises ValueError or TypeError where ``value`` has no such field."""
    name, _, rest = field.partition(".")
    if name == "*":
        for member in value.values() if isinstance(value, dict) else value:
            _require(member, rest)
        return
    _require_object(value)
    if name not in value:
        raise ValueError(f"it has no {name!r}")
    if rest:
        _require(value[name], rest)


def _require_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")

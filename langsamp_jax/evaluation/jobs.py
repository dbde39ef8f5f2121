"""Runs an evaluation: from a model and data on disk to a result on disk.

A protocol is a module with three functions:

    evaluate(model, data, journal, **options) -> record
        Measures a LoadedModel on the data at a path (None: it needs none). A finished part, such as
        a language, goes through ``journal``, so that it survives an interruption. Raises UserError
        where model, data and options do not fit together.
    show(record) -> str
        Returns what the command prints of a result.
    measures(record) -> {name: number}
        Returns the numbers by which models are compared.

and, where its result is about the training as a whole, a fourth:

    over_steps(records) -> record
        Returns what is written of the records of some steps, or of one; each has its ``step``.
        ``show`` and ``measures`` read what it returns.

A record is a JSON object. The last two get it as it is written: with what was asked (``task``,
``model``, ``step``, ``data``). The file also has ``measures`` and ``seconds``.
"""

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.model import is_run, load_model
from langsamp_jax.hardware.environment import environment
from langsamp_jax.io.claim import Claim
from langsamp_jax.io.files import growing_file, write_text
from langsamp_jax.io.progress import Progress, table
from langsamp_jax.io.storage import absolute, is_remote
from langsamp_jax.languages.published import averages
from langsamp_jax.models.edits import Edit, parameter_digest
from langsamp_jax.training.run import open_run

_SHOWN = 10  # of the languages that are skipped, with their reasons


@dataclasses.dataclass(frozen=True)
class Job:
    """One evaluation.

    Attributes:
      task: the name of the task.
      model: a run or a Hugging Face folder.
      data: what the task reads; None where it reads nothing.
      step: a checkpoint or snapshot of a run; None: the best checkpoint.
      output: the file for the result; None: ``RUN/evaluation/TASK.json``.
      edits: what is changed in the model before; ``output`` is then needed.
      reference: a folder of text, for edits that put in a mean.
      variant: what that name has behind the task where an option makes it another measure:
        ``-layer-2``.
    """

    task: str
    model: Path
    data: Path | None = None
    step: int | None = None
    output: Path | None = None
    variant: str = ""
    edits: tuple[Edit, ...] = ()
    reference: Path | None = None

    @property
    def result(self) -> Path:
        """Returns the file for the result; raises UserError where there is no place for it."""
        if self.output is not None:
            if self.output.is_dir():
                raise UserError(f"--output {self.output} is a folder; name the .json file to write")
            return self.output
        if self.edits:
            raise UserError("--edit needs --output FILE.json: RUN/evaluation has whole models only")
        if not is_run(self.model):
            raise UserError(f"{self.model} is no run; say where the result goes with --output")
        return self.model / "evaluation" / f"{self.task}{self.variant}.json"


class Journal:
    """Finished parts of the evaluation whose result will be ``output``, a JSON object a line.

    They lie beside the result. The first line says what is evaluated and how; parts of another
    evaluation are not taken up. Use as a context manager, and call ``forget`` when the result is
    written. Where no part was finished, no file is left.

    Raises:
      UserError: the file is of another evaluation, or damaged.
    """

    def __init__(self, output: Path, settings: dict[str, Any]):
        self.path, self._prefix = output.with_name(output.name + ".parts"), ""
        settings = json.loads(json.dumps(settings, default=str))  # as it is read back
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # it may have been killed writing
        try:
            was, *parts = [json.loads(line) for line in whole] or [settings]
            self._parts = {record["part"]: record["result"] for record in parts}
            differ = [k for k in {**was, **settings} if was.get(k) != settings.get(k)]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is damaged ({error!r}); remove it") from None
        if self._parts and differ:
            raise UserError(
                f"{self.path} holds parts of another evaluation ({', '.join(sorted(differ))} "
                "differ): remove it, or name another --output"
            )
        self._stream = growing_file(self.path, b"".join(map(_line, [settings, *parts])))

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns the result of a part: what stands here, or else what ``compute`` gives."""
        name = self._prefix + name
        if name not in self._parts:
            self._parts[name] = compute()
            self._stream.write(_line({"part": name, "result": self._parts[name]}))
            self._stream.flush()
        return self._parts[name]

    def under(self, name: str) -> "Journal":
        """Returns the journal of the parts of a part."""
        inner = copy.copy(self)
        inner._prefix = f"{self._prefix}{name}, "
        return inner

    def each(
        self, languages: Iterable[str], compute: Callable[[str], Any]
    ) -> tuple[list[Any], dict[str, str]]:
        """Computes ``compute(language)`` of every language as a part of its own.

        Returns:
          the results, and why ``compute`` raised UserError for the other languages.
        """
        results, skipped, names = [], {}, list(languages)
        with Progress("evaluate", len(names), "languages") as progress:
            for name in names:
                try:
                    results.append(self.part(name, lambda name=name: compute(name)))
                except UserError as error:
                    skipped[name] = str(error)
                progress.advance(1)
        return results, skipped

    def forget(self) -> None:
        """Removes the parts, once they are closed and the result stands."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if not self._parts:
            self.forget()


def run(job: Job, protocol: ModuleType, **options: Any) -> dict[str, Any]:
    """Evaluates by ``protocol`` and writes the result.

    Args:
      options: of the protocol. Parts that were finished with other options are not taken up.

    Returns:
      what was written.

    Raises:
      UserError: there is no place for the result, the model cannot be loaded, or as the protocol.
    """
    started = time.monotonic()
    require_place(job)
    whole = load_model(job.model, job.step)
    model = whole.edited(job.edits, job.reference)
    data = None if job.data is None else str(job.data)
    asked = {"task": job.task, "model": str(job.model), "step": model.step, "data": data}
    asked |= {"edits": [*map(str, job.edits)]} if job.edits else {}

    def measure(journal: Journal) -> dict[str, Any]:
        record = protocol.evaluate(model, job.data, journal, **options)
        if hasattr(protocol, "over_steps"):
            record = protocol.over_steps([{"step": model.step, **record}])
            record["digests"] = [parameter_digest(whole.params)]
        record = {**asked, **record}
        return {**record, "measures": protocol.measures(record)}

    return write_result(job, measure, {**asked, **identities(job), **options}, started)


def require_place(job: Job) -> None:
    """Makes the folder for the result; raises UserError where there is no place for it."""
    if not is_remote(job.result):
        job.result.parent.mkdir(parents=True, exist_ok=True)


def write_result(
    job: Job,
    measure: Callable[[Journal], dict[str, Any]],
    settings: Mapping[str, Any],
    since: float,
) -> dict[str, Any]:
    """Writes what ``measure`` gives, which no other process measures meanwhile.

    Args:
      settings: what is measured and how; parts of others are not taken up.
      since: when the evaluation was begun, by ``time.monotonic``.

    Returns:
      what was written.
    """
    with Claim(job.result.with_name(f"{job.result.name}.claim"), job.result):
        with Journal(job.result, _settings(settings)) as journal:
            record = measure(journal)
        record |= {"seconds": round(time.monotonic() - since, 1), "environment": environment()}
        write_text(job.result, _json(record))
        say(job.result)
        journal.forget()
    return record


def identities(job: Job) -> dict[str, Any]:
    """Returns what the model and the data are, wherever the command was given or the run lies."""
    model = open_run(job.model).id if is_run(job.model) else str(absolute(job.model))
    data, reference = (None if p is None else str(absolute(p)) for p in (job.data, job.reference))
    return {"model": model, "data": data, "reference": reference}


def say(line: object) -> None:
    """Writes a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def by_language(
    records: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
    metrics: Sequence[str],
    published: str | None = None,
) -> dict[str, Any]:
    """Returns ``languages`` (the records), their ``averages`` over groups, and ``skipped``.

    Args:
      published: see ``averages``.

    Raises:
      UserError: there are no records.
    """
    if not records:
        name, why = next(iter(skipped.items()))
        raise UserError(f"no language could be evaluated; {name}: {why}")
    means = averages(records, metrics, published)
    return {"languages": records, "averages": means, "skipped": dict(skipped)}


def average_measures(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns ``group/metric`` of the averages of a record."""
    return {
        f"{group}/{metric}": value
        for group, means in record["averages"].items()
        for metric, value in means.items()
        if "languages" not in metric and not metric.endswith("_std") and value is not None
    }


def show_languages(
    record: Mapping[str, Any], columns: Mapping[str, str], metrics: Mapping[str, str]
) -> str:
    """Returns tables of the languages of a record and of the averages of its ``metrics``.

    Args:
      columns, metrics: headers, see ``table``.
    """
    groups = [{"group": group, **means} for group, means in record["averages"].items()]
    lines = [
        table(record["languages"], {"language": "language", **columns}),
        "",
        table(groups, {"group": "average", "languages": "languages:,", **metrics}),
    ]
    if cut := sum(language["truncated"] for language in record["languages"]):
        lines.append(f"{cut:,} sentences were longer than model or protocol allow, and were cut")
    return "\n".join([*lines, *show_skipped(record)])


def show_skipped(record: Mapping[str, Any]) -> list[str]:
    """Returns a line for each of the first languages without a result."""
    skipped = list(record["skipped"].items())
    lines = [f"skipped {name}: {why}" for name, why in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        lines.append(f"and {len(skipped) - _SHOWN} more, which the result names")
    return lines


def show_controls(record: Mapping[str, Any]) -> list[str]:
    """Returns a line for each control that is not as it must be."""
    return [
        f"CONTROL FAILED: {name}: {control['value']:.4g}, expected {control['expected']}"
        for name, control in record["controls"].items()
        if not control["ok"]
    ]


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options, with the fields of a config in its place."""
    settings: dict[str, Any] = {}
    for name, value in options.items():
        settings |= dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {name: value}
    return settings


def _json(record: Mapping[str, Any]) -> str:
    """Returns JSON with a line for each field, and for each item of its lists: of many pairs of
    languages and their layers, a number a line would be ten times as much."""
    return "{" + ",".join(f"\n {json.dumps(k)}: {_items(v)}" for k, v in record.items()) + "\n}\n"


def _items(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[" + ",".join("\n  " + json.dumps(item) for item in value) + "\n ]"


def _line(record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"

"""One protocol at many steps of a training: snapshots of a run, or a Hugging Face folder each.

Parameters are arguments of every compiled function, so what the first step has compiled serves all.
A series is refused where two steps have the same parameters, or where the validation loss of a step
does not lie on the curve that the run wrote down: a step under a wrong name would look like a
finding.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.jobs import Job, Journal, identities, require_place, write_result
from langsamp_jax.evaluation.loss import loss_evaluator, own_store
from langsamp_jax.evaluation.model import LoadedModel, is_run, load_model
from langsamp_jax.hardware.environment import open_devices
from langsamp_jax.io.progress import table
from langsamp_jax.io.storage import absolute
from langsamp_jax.models.edits import parameter_digest
from langsamp_jax.parallel.sharding import use_mesh
from langsamp_jax.training.checkpoint import describe_steps, model_of, restore_params, saved_steps
from langsamp_jax.training.config import TrainConfig
from langsamp_jax.training.optimizer import OptimizerConfig, learning_rate
from langsamp_jax.training.run import open_run, read_metrics

_SHOWN = 6  # measures in the table
_SLACK = 0.05  # of the loss: curves have bumps between the steps at which they were measured
_DEVIATIONS = 5


class RunSteps:
    """The snapshots and checkpoints of a run, opened by step.

    Args:
      steps: None: all snapshots.
      data: of the task; it may be the store of the run.

    Raises:
      UserError: ``path`` is no run, or a step is not there; those that are there are named.
    """

    def __init__(self, path: Path, steps: Sequence[int] | None, data: Path | None):
        if not is_run(path):
            raise UserError(
                f"{path} is a Hugging Face model, which has no steps; a series of them is "
                "--model DIR1 DIR2 --steps 1000 10000"
            )
        open_devices()  # before Orbax does it, which knows nothing of what is refused
        self.run, snapshots = open_run(path), saved_steps(path / "snapshots")
        if steps is None and not snapshots:
            raise UserError(
                f"{path} has no snapshots: train with --gin.train.snapshots=powers; there are "
                f"{describe_steps(self.run)}, which --step can name"
            )
        self.model, self.folders = str(path), []
        self.steps = sorted({*(snapshots if steps is None else steps)})
        if absent := set(self.steps) - {*snapshots, *saved_steps(self.run.checkpoints)}:
            there = describe_steps(self.run)
            raise UserError(f"{path} has no step {_listed(absent)}; there are {there}")
        lines = [line for line in read_metrics(path / "metrics.jsonl") if "eval/loss" in line]
        self._curve = [[line[key] for line in lines] for key in ("step", "eval/loss")]
        store = own_store(self.run, data) if len(lines) > 1 else None
        eval_rows = self.run.config(TrainConfig).eval_rows
        self._evaluator = store and loss_evaluator(self.run, model_of(self.run), store, eval_rows)
        self._model: LoadedModel | None = None

    def open(self, step: int) -> LoadedModel:
        """Returns the model at a step; the parameters of the step before are let go."""
        if self._model is None:
            self._model = load_model(self.run.path, step)
        elif self._model.step != step:
            self._model = dataclasses.replace(self._model, params=None, step=step)
            _, params = restore_params(self.run, step)
            self._model = dataclasses.replace(self._model, params=params)
        return self._model

    def check(self, step: int, params: Any) -> dict[str, Any]:
        """Returns the validation loss of a step as the run measures it; nothing where it cannot be
        compared with the run's curve.

        Raises:
          UserError: it does not lie on the curve.
        """
        if self._evaluator is None:
            return {}
        with use_mesh(self._evaluator.everywhere.mesh):
            loss = self._evaluator(params)["eval/loss"]
        if off_curve([step], [loss], *self._curve):
            raise UserError(
                f"step {step} of {self.run.path} has the validation loss {loss:.3f}, which is off "
                "the curve in its metrics.jsonl: it is not the model of that step"
            )
        return {"validation_loss": loss}

    def may_be_same(self, one: int, other: int) -> bool:
        """Returns whether no update between two steps had a rate above 0; warmup begins so."""
        config = self.run.config(OptimizerConfig), self.run.config(TrainConfig).num_steps
        return not np.any(learning_rate(*config)(np.arange(one, other)))


class FolderSteps:
    """Hugging Face folders, each the model of a step.

    Raises:
      UserError: there are not as many folders as steps, or a step occurs twice.
    """

    def __init__(self, folders: Sequence[Path], steps: Sequence[int]):
        if len(folders) != len(steps) or len({*steps}) < len(steps):
            raise UserError(
                f"--model names {len(folders)} folders, --steps {_listed(steps) or 'none'}: a "
                "series is a folder for each step"
            )
        if runs := [folder for folder in folders if is_run(folder)]:
            raise UserError(f"{runs[0]} is a run, whose steps --step names; leave --steps")
        self._folders = dict(sorted(zip(steps, folders, strict=True)))
        self.model = [str(folder) for folder in self._folders.values()]
        self.folders = [str(absolute(folder)) for folder in self._folders.values()]
        self.steps, self._first = list(self._folders), None

    def open(self, step: int) -> LoadedModel:
        """Returns the model of a step; raises UserError where its form is not that of the first."""
        model = dataclasses.replace(load_model(self._folders[step]), step=step)
        form = _form(model)
        path, first = self._first = self._first or (model.path, form)
        if differ := [name for name in {**first, **form} if first.get(name) != form.get(name)]:
            name = min(differ)
            raise UserError(
                f"{path} and {model.path} are no series: {name} is {first.get(name)} in one, "
                f"{form.get(name)} in the other"
            )
        return model

    def check(self, step: int, params: Any) -> dict[str, Any]:
        return {}  # there is no curve

    def may_be_same(self, one: int, other: int) -> bool:
        return False


def run_series(
    job: Job, series: RunSteps | FolderSteps, protocol: ModuleType, **options: Any
) -> dict[str, Any]:
    """Evaluates by ``protocol`` at each step of a series and writes one result.

    Returns:
      what was written: as for one step, with ``steps`` and ``records`` in the place of what the
      protocol gives. Each of the records has ``step``, ``digest`` (SHA-256 of the parameters),
      perhaps ``validation_loss``, what the protocol gives, and its ``measures``; ``measures`` of
      the whole are those of the last step. Of a protocol with ``over_steps`` what that makes of
      the records stands in their place.

    Raises:
      UserError: as ``jobs.run``, and where the models are no series.
    """
    started = time.monotonic()
    require_place(job)
    data = None if job.data is None else str(job.data)
    asked = {"task": job.task, "model": series.model, "steps": series.steps, "data": data}
    asked |= {"edits": [*map(str, job.edits)]} if job.edits else {}
    settings = {**asked, **identities(job), "folders": series.folders, **options}

    def measure(journal: Journal) -> dict[str, Any]:
        records: list[dict[str, Any]] = []
        for step in series.steps:

            def one_step(step: int = step) -> dict[str, Any]:
                model, inner = series.open(step), journal.under(f"step {step}")
                digest = parameter_digest(model.params)
                for other in records:
                    same = other["digest"] == digest
                    if same and not series.may_be_same(other["step"], step):
                        raise UserError(
                            f"steps {other['step']} and {step} of {series.model} have the same "
                            "parameters: one of them is not the model of that step"
                        )
                facts = {"digest": digest, **series.check(step, model.params)}
                model = model.edited(job.edits, job.reference)
                own = protocol.evaluate(model, job.data, inner, **options)
                if hasattr(protocol, "over_steps"):
                    return {"step": step, **facts, **own}
                measures = protocol.measures({**asked, **own, "step": step})
                return {"step": step, **facts, **own, "measures": measures}

            records.append(journal.part(f"step {step}", one_step))
        if hasattr(protocol, "over_steps"):
            checked = {"digests": [record["digest"] for record in records]}
            checked["validation_loss"] = _losses(records)
            record = {**asked, **protocol.over_steps(records), **checked}
            return {**record, "measures": protocol.measures(record)}
        return {**asked, "records": records, "measures": records[-1]["measures"]}

    return write_result(job, measure, settings, started)


def show_series(record: Mapping[str, Any], protocol: ModuleType) -> str:
    """Returns a table with a line for each step and a column for each of the first measures; of a
    protocol with ``over_steps`` what it shows itself. Last, whether no step was compared with a
    loss curve."""
    whole = hasattr(protocol, "over_steps")
    lines = [protocol.show(record)] if whole else _table_of_steps(record)
    losses = record["validation_loss"] if whole else _losses(record["records"])
    if all(loss is None for loss in losses):
        lines.append("no step was compared with a loss curve: none is known, or not its store")
    return "\n".join(lines)


def _losses(records: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Returns the validation loss of each step; None where it could not be compared."""
    return [record.get("validation_loss") for record in records]


def _table_of_steps(record: Mapping[str, Any]) -> list[str]:
    names = list(record["measures"])
    headers = {"step": "step:,", **{name: f"{name}:.4g" for name in names[:_SHOWN]}}
    rows = [{"step": r["step"], **r["measures"]} for r in record["records"]]
    lines = [table(rows, headers)]
    if len(names) > _SHOWN:
        lines.append(f"and {len(names) - _SHOWN} more measures, which the result has")
    return lines


def off_curve(
    steps: Iterable[int],
    losses: Iterable[float],
    curve_steps: Sequence[int],
    curve_losses: Sequence[float],
) -> list[int]:
    """Returns the steps whose loss does not lie on a curve of losses, which has ascending steps.

    A loss may lie between those of the curve at both sides of its step, and further out by 5 robust
    standard deviations (1.4826 times the median distance of a point of the curve from the mean of
    its neighbours), or by a twentieth of the loss where that is more. In front of the curve and
    behind it nothing is known.
    """
    curve = np.asarray(curve_losses, np.float64)
    distances = np.abs(curve[1:-1] - (curve[:-2] + curve[2:]) / 2)
    deviation = 1.4826 * np.median(distances) if len(distances) else 0.0
    off = []
    for step, loss in zip(steps, losses, strict=True):
        before = int(np.searchsorted(curve_steps, step, "right")) - 1
        behind = int(np.searchsorted(curve_steps, step, "left"))
        if before < 0 or behind == len(curve):
            continue
        low, high = sorted((curve[before], curve[behind]))
        slack = max(_DEVIATIONS * deviation, _SLACK * high)
        if not low - slack <= loss <= high + slack:
            off.append(step)
    return off


def _form(model: LoadedModel) -> dict[str, Any]:
    """Returns what the models of a series have in common: the shape of each array, and more."""
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    shapes = {jax.tree_util.keystr(path, simple=True, separator="."): a.shape for path, a in leaves}
    fields = dataclasses.asdict(model.config)
    return {**shapes, **fields, "tokenizer": model.tokenizer.fingerprint}


def _listed(steps: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(steps)))

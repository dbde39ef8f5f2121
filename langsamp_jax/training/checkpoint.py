"""Saving and restoring the training state. The only module that touches Orbax."""

import asyncio
import contextlib
import errno
import glob
import logging
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts
from etils.epath.gpath import PosixGPath
from orbax.checkpoint._src.serialization import ocdbt_utils, tensorstore_utils

from langsamp_jax.errors import UserError
from langsamp_jax.io.claim import Claim
from langsamp_jax.io.files import full_disk_as_oserror
from langsamp_jax.io.storage import absolute, is_remote, kvstore, kvstore_at, straight
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, param_shapes
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from langsamp_jax.training.config import TrainConfig, snapshot_steps
from langsamp_jax.training.run import Run

_policies = ocp.checkpoint_managers
_SLACK_BYTES = 256_000  # metadata that comes with every checkpoint
_local_kvstore = tensorstore_utils.build_kvstore_tspec


def _kvstore(directory: str, *args: Any, **options: Any) -> dict[str, Any]:
    """Returns Orbax's own spec, and for s3:// the one it would be for files, in that bucket.

    Orbax knows gs:// and files. It reads and writes arrays through TensorStore, which knows s3://
    too, and asks this one function where.
    """
    if not directory.startswith("s3://"):
        return _local_kvstore(directory, *args, **options)
    spec = _local_kvstore(directory.removeprefix("s3:/"), *args, **options)
    spec.pop("manifest", None)  # beside the data, as for gs://
    if spec["driver"] == "file":
        return kvstore_at("s3:/" + spec["path"])
    return {**spec, "base": kvstore_at("s3:/" + spec["base"]["path"])}


class _Folder(PosixGPath):
    """Is a path of which Orbax takes no character for a pattern: it looks for files by ``glob``."""

    def glob(self, pattern: str) -> Iterator["_Folder"]:
        escaped = PosixGPath(glob.escape(str(self)))
        return (_Folder(path) for path in escaped.glob(pattern))


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """Returns False for what Orbax logs: it also raises it, and absl's logger is others' too."""
    return "/orbax/" not in record.pathname


def saved_steps(folder: Path) -> list[int]:
    """Returns the complete steps in a folder of checkpoints or snapshots, ascending."""
    if not folder.is_dir():
        return []
    with contextlib.closing(Checkpoints.reader(folder)) as checkpoints:
        return checkpoints.steps


def latest_step(folder: Path) -> int:
    """Returns the last complete step in a folder of checkpoints, 0 where there is none."""
    return max(saved_steps(folder), default=0)


class Checkpoints:
    """Keeps the latest few checkpoints of a run, and the one with the lowest validation loss.

    Beside them, in the folder ``snapshots``, the parameters alone of chosen steps, all of them. No
    checkpoint is begun before these are complete: a run that goes on from it has no hole.

    Saves run in the background and become visible all at once: by a rename, or in an object store,
    which has none, by a last object that says so. A save that fails raises at the next call of any
    method, as an OSError where the disk is at fault.
    """

    def __init__(
        self,
        folder: Path,
        max_to_keep: int | None,
        claim: Claim | None = None,
        snapshots: Collection[int] = (),
    ):
        """Opens a folder for writing; no save counts once ``claim`` on it is lost.

        Args:
          max_to_keep: None: all.
          snapshots: the steps that ``snapshot`` is to save.
        """
        self._claim, self._wanted, self._snapshots = claim, snapshots, None
        if snapshots:
            self._snapshots = Checkpoints(folder.with_name("snapshots"), None, claim)
        best = _policies.BestN(
            get_metric_fn=lambda metrics: -metrics["loss"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = None
        if max_to_keep is not None:
            policy = _policies.AnyPreservationPolicy([_policies.LatestN(max_to_keep), best])
        self._open(
            folder,
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._verify),
        )

    @classmethod
    def reader(cls, folder: Path) -> "Checkpoints":
        """Opens a folder for reading; what another process is saving there is left alone."""
        checkpoints = cls.__new__(cls)
        checkpoints._snapshots = None
        checkpoints._open(folder, read_only=True)
        return checkpoints

    def _open(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        logging.getLogger("absl").addFilter(_is_not_orbax)  # options are logged about, too
        if str(folder).startswith("s3://"):
            tensorstore_utils.build_kvstore_tspec = _kvstore
        mode = "COMMIT_FILE" if is_remote(folder) else "ATOMIC_RENAME"
        self._manager = ocp.CheckpointManager(
            _Folder(absolute(straight(folder))),
            item_names=("state", "progress"),
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics["loss"],
                best_mode="min",
                atomicity_options=ocp.options.AtomicityOptions(ocp.options.AtomicityMode[mode]),
                **options,
            ),
        )

    def wants(self, step: int, last: bool = False) -> bool:
        """Returns whether ``snapshot`` would save a step: one that is wanted, or the ``last``, if
        it is not there. What a run that was resumed passes again would be the same."""
        wanted = self._snapshots is not None and (last or step in self._wanted)
        return wanted and step not in self._snapshots.steps

    def snapshot(self, step: int, params: Any, last: bool = False) -> None:
        """Starts saving the parameters of a step, where ``wants`` says so; raises as ``save``."""
        if self.wants(step, last):
            self.wait()  # one save at a time, as everywhere
            self._snapshots.save(step, {"params": params}, {}, None)

    @property
    def latest(self) -> int | None:
        """Returns the last complete step, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Returns all complete steps, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """Returns the step with the lowest validation loss, or None where none was evaluated."""
        return self._manager.best_step()

    def save(self, step: int, state: Any, progress: dict[str, Any], loss: float | None) -> None:
        """Starts saving; ``loss`` is the validation loss, if it was measured at this step.

        Raises:
          OSError: the disk has no room for it, seen beforehand; or an earlier save failed.
          UserError: an earlier save is incomplete, or another process has the run now.
        """
        if self._snapshots is not None:
            self._snapshots.wait()
        self.wait()
        with full_disk_as_oserror(self._folder):
            self._require_room(state)
            self._saving = step, _names(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
                ),
                metrics=None if loss is None else {"loss": loss},
                force=True,
            )

    def _verify(self) -> None:
        """Raises UserError where a save is not to count; called by Orbax, in its thread on process
        0, when all has been written and before the save becomes visible."""
        if self._claim is not None:
            self._claim.require_held()
        step, names = self._saving
        [place] = (p for p in self._folder.iterdir() if p.name.split(".")[0] == str(step))
        missing = names - _arrays(place / "state")
        if missing:
            raise UserError(
                f"the checkpoint of step {step} in {self._folder} has not become complete: "
                f"{len(missing)} of {len(names)} arrays are missing ({min(missing)}, ...); earlier "
                "ones are kept"
            )

    def wait(self) -> None:
        """Waits for the save in progress, and raises what it failed with."""
        with full_disk_as_oserror(self._folder):
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises what a background save failed with."""
        if self._snapshots is not None:
            self._snapshots.check()
        with full_disk_as_oserror(self._folder):
            self._manager.check_for_errors()

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the state (onto the shardings of ``abstract``) and the progress saved at ``step``.

        Raises:
          UserError: the checkpoint is damaged.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        restored = self._restore(step, args)
        return restored.state, restored.progress

    def restore_params(self, step: int, abstract: Any) -> Any:
        """Reads the parameters saved at ``step``, without the optimizer's state."""
        item = {"params": abstract}
        args = ocp.args.PyTreeRestore(
            item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        return self._restore(step, ocp.args.Composite(state=args)).state["params"]

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        place = self._folder / str(step)
        try:
            self._merge_parts(place / "state")
            return self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            earlier = max((other for other in self.steps if other < step), default=None)
            advice = "" if earlier is None else f"; move it elsewhere to go on from step {earlier}"
            raise UserError(f"checkpoint {place} cannot be read ({reason}){advice}") from error

    def _merge_parts(self, state: Path) -> None:
        """Completes what earlier versions saved in a folder whose name they took for a pattern:
        the part of each process is there, without the manifest of them all."""
        folder = _Folder(absolute(straight(state)))
        if any(folder.glob("ocdbt.process_*")) and not _arrays(state):
            print(f"{state} is in parts, which are merged", file=sys.stderr)
            context = tensorstore_utils.get_ts_context(use_ocdbt=True)
            asyncio.run(ocdbt_utils.merge_ocdbt_per_process_files(folder, context, use_zarr3=False))

    def close(self) -> None:
        """Waits for the saves in progress, raises if one failed, and releases the folders."""
        with full_disk_as_oserror(self._folder), contextlib.ExitStack() as stack:
            if self._snapshots is not None:
                stack.callback(self._snapshots.close)
            stack.callback(self._manager.close)
            self._manager.wait_until_finished()

    def _require_room(self, state: Any) -> None:
        """Raises OSError where the disk is too full; on process 0 alone, as others ask too late."""
        if jax.process_index() > 0 or is_remote(self._folder):
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed + _SLACK_BYTES:
            raise OSError(
                errno.ENOSPC,
                f"No space for a checkpoint of {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free",
                str(self._folder),
            )


def _names(state: Any) -> set[str]:
    """Returns the names that Orbax gives the arrays of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves}


def _arrays(state: Path) -> set[str]:
    """Returns the names of the arrays that the manifest of a checkpoint's state has, if any."""
    store = ts.KvStore.open({"driver": "ocdbt", "base": kvstore(state)}).result()
    names = {key.decode() for key in store.list().result()}
    return {name.removesuffix("/.zarray") for name in names if name.endswith("/.zarray")}


def model_of(run: Run) -> LangSamp:
    """Returns the model of a run, without its parameters."""
    inventory = run.inventory
    sizes = run.tokenizer.vocab_size, len(inventory.languages), len(inventory.scripts)
    return LangSamp(run.config(ModelConfig), *sizes)


def restore_params(run: Run, step: int | None = None) -> tuple[int, Any]:
    """Reads the parameters of a checkpoint or snapshot, by default those of the best validation
    loss.

    Returns:
      the step and the parameters, a copy on every device.

    Raises:
      UserError: there is no such step, or it is damaged.
    """
    checkpoints, snapshots = saved_steps(run.checkpoints), saved_steps(run.snapshots)
    if step is None and not checkpoints:
        raise UserError(f"{run.path} has no checkpoint yet")
    if step is not None and step not in {*checkpoints, *snapshots}:
        raise UserError(f"{run.path} has no step {step}; there are {describe_steps(run)}")
    everywhere = replicated(make_mesh(MeshConfig()))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        param_shapes(model_of(run)),
    )
    folder = run.checkpoints if step is None or step in checkpoints else run.snapshots
    with contextlib.closing(Checkpoints.reader(folder)) as saved:
        if step is None:
            step = saved.latest if saved.best is None else saved.best
        return step, saved.restore_params(step, abstract)


def describe_steps(run: Run) -> str:
    """Returns which checkpoints and snapshots a run has, in words."""
    folders = {"checkpoints": run.checkpoints, "snapshots": run.snapshots}
    steps = {kind: ", ".join(map(str, saved_steps(path))) for kind, path in folders.items()}
    return " and ".join(f"{kind} of {named or 'none'}" for kind, named in steps.items())


def snapshot_plan(config: TrainConfig, params: Any) -> list[str]:
    """Returns a line about the snapshots of a run and what they take of the disk, if it has any.

    Args:
      params: or their shapes.
    """
    if not (steps := snapshot_steps(config)):
        return []
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / 1e6
    return [f"snapshots: {len(steps)} of {size:,.1f} MB each, {len(steps) * size:,.1f} MB in all"]

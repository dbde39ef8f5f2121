"""Saving and restoring the training state. The only module that touches Orbax."""

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from langsamp_jax.errors import UserError

_policies = ocp.checkpoint_managers


class Checkpoints:
    """The checkpoints of a run: the latest few, and the one with the lowest validation loss.

    Saves run in the background and become visible all at once, by a rename. A save that fails
    raises at the next call of any method, as an OSError where the disk is at fault.
    """

    def __init__(self, folder: Path, max_to_keep: int | None):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every step
        self._folder = folder
        keep = [
            _policies.LatestN(max_to_keep),
            _policies.BestN(
                get_metric_fn=lambda metrics: -metrics["loss"],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("state", "progress"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_policies.AnyPreservationPolicy(keep),
                best_fn=lambda metrics: metrics["loss"],
                best_mode="min",
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest(self) -> int | None:
        """The last complete step, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """All complete steps, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step with the lowest validation loss, or None where none was evaluated."""
        return self._manager.best_step()

    def save(self, step: int, state: Any, progress: dict[str, Any], loss: float | None) -> None:
        """Starts saving; ``loss`` is the validation loss, if it was measured at this step."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
            metrics=None if loss is None else {"loss": loss},
            force=True,
        )

    def check(self) -> None:
        """Raises what a background save failed with."""
        self._manager.check_for_errors()

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """The state (onto the shardings of ``abstract``) and the progress saved at ``step``.

        Raises:
          UserError: the checkpoint is damaged.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        restored = self._restore(step, args)
        return restored.state, restored.progress

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The parameters saved at ``step``, without the optimiser's state."""
        wanted = {"params": abstract}
        args = ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        return self._restore(step, ocp.args.Composite(state=args)).state["params"]

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"checkpoint {self._folder / str(step)} cannot be read ({reason}); "
                "remove that folder to go on from the one before"
            ) from error

    def close(self) -> None:
        """Waits for the save in progress, raises if it failed, and releases the folder."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._manager.close()

"""The metrics of a run at Weights & Biases as well, for those who ask for it."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator

from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import is_remote
from langsamp_jax.parallel.distributed import is_primary
from langsamp_jax.training.run import Run


def require_wandb(project: str | None) -> None:
    """Raises UserError where there is a project and the package is missing."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "train.wandb_project needs the package wandb: pip install 'langsamp-jax[wandb]'"
        )


@contextlib.contextmanager
def wandb_log(
    run: Run, project: str | None
) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
    """Yields what writes the values of a step to ``project``; a run continues its own record.

    Yields None without a project, and on other processes than the primary.

    Where to and whether at all is decided by W&B's own variables, such as ``WANDB_MODE=offline``.

    Raises:
      UserError: W&B cannot be reached, or nobody is logged in.
    """
    if project is None or not is_primary():
        yield None
        return
    import wandb

    try:
        record = wandb.init(
            project=project,
            id=run.id,
            name=run.path.name,
            resume="allow",
            dir=None if is_remote(run.path) else run.path,
            config=run.settings,
            settings=wandb.Settings(console="off"),
        )
    except wandb.Error as error:
        raise UserError(
            f"train.wandb_project = {project!r}: Weights & Biases refuses: {error} "
            "(wandb login, or WANDB_MODE=offline to keep the record in the run folder)"
        ) from error
    with record:  # an error that leaves the block marks the run as failed
        # Steps that a session repeats come again with the same values, which W&B's own step,
        # growing with every call, could not say.
        record.define_metric("*", step_metric="step")
        yield lambda step, values: record.log({"step": step, **values})

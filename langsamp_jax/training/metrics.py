"""What a run measures while it trains: as JSON lines, for TensorBoard and Weights & Biases."""

import contextlib
import importlib.util
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from langsamp_jax.errors import UserError
from langsamp_jax.io.files import growing_file
from langsamp_jax.io.storage import is_remote
from langsamp_jax.parallel.distributed import is_primary
from langsamp_jax.training.run import Run, read_metrics

_SECONDS_BETWEEN_OBJECTS = 30.0  # a long run's metrics are a megabyte or two


class MetricsLog:
    """Writes one JSON object a line to ``metrics.jsonl``, and the same scalars for TensorBoard.

    Lines after ``step`` are of work that was lost with an interrupted run, and are dropped; so
    are TensorBoard's, by the session that starts here. Writing is not in the background: a disk
    that fills up raises here. In an object store a file is written anew to grow: not for every
    line, but before a checkpoint. ``mirror`` is called with all that is written. Of several
    processes the primary writes.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        mirror: Callable[[int, dict[str, float]], None] | None = None,
    ):
        self._mirror = mirror
        self._writes = is_primary()
        if not self._writes:
            return
        file = run / "metrics.jsonl"
        earlier = [line for line in read_metrics(file) if line["step"] <= step]
        self._stream = growing_file(file, b"".join(map(_line, earlier)))
        events = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._board = RecordWriter(growing_file(run / "tensorboard" / events))
        self._pause = _SECONDS_BETWEEN_OBJECTS if is_remote(run) else 0.0
        self._flushed = time.monotonic()
        self._event(0, file_version="brain.Event:2")
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of a step, by name."""
        if not self._writes:
            return
        self._stream.write(_line({"step": step, **values}))
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._event(step, summary=Summary(value=scalars))
        if time.monotonic() - self._flushed >= self._pause:
            self.flush()
        if self._mirror is not None:
            self._mirror(step, values)

    def flush(self) -> None:
        """Makes all that was written outlive the process; a checkpoint needs that."""
        if not self._writes:
            return
        self._stream.flush()
        self._board.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the files."""
        if not self._writes:
            return
        self._stream.close()
        self._board.close()

    def _event(self, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._board.write(event.SerializeToString())


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


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"

"""A profile of chosen steps, in the form that TensorBoard's profiler shows."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from langsamp_jax.io.storage import scratch
from langsamp_jax.training.timing import PhaseTimer


class Trace:
    """Records what the host and the devices do in the steps ``first`` to ``last``.

    The files are ``RUN/tensorboard/plugins/profile/TIME/HOST.*``; none where ``steps`` is None.
    """

    def __init__(self, run: Path, steps: Sequence[int] | None, stopwatch: PhaseTimer):
        self._folder, self._stopwatch = run / "tensorboard", stopwatch
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._recording: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def step(self, number: int, previous: Any) -> Iterator[None]:
        """Within the block ``number`` is dispatched; ``previous`` is what the step before gave."""
        if (number in self._steps) != (self._recording is not None):
            jax.block_until_ready(previous)  # its work is no part of what comes now
            if self._recording:
                self.close()
            else:
                self._open()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def _open(self) -> None:
        with self._stopwatch.phase("profile"):
            self._recording = contextlib.ExitStack()
            folder = self._recording.enter_context(scratch(self._folder))
            jax.profiler.start_trace(folder)
            self._recording.callback(jax.profiler.stop_trace)

    def close(self) -> None:
        """Writes what has been recorded, if anything has."""
        if self._recording:
            with self._stopwatch.phase("profile"), self._recording:
                self._recording = None

"""Where the time of a run goes, how fast it is, and how much of its time was of use."""

import contextlib
import datetime
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from langsamp_jax.hardware.devices import peak_flops
from langsamp_jax.io.storage import scratch
from langsamp_jax.parallel.distributed import is_primary

Item = TypeVar("Item")

_LOOP = ("input", "step", "validation", "checkpoint")
_SHOWN = {
    "step": "goodput",
    "input": "waiting for input",
    "validation": "validation",
    "checkpoint": "checkpoints",
    "profile": "profiling",
    "start": "starting",
    "lost": "lost",
}
_COMPILATION = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # or reading what was compiled before
)


class PhaseTimer:
    """Cuts the time since a run was started into phases; one of them goes on at any moment.

    ``start``       until the first step is done: opening, initialising or restoring, compiling
    ``input``       the loop waits for a batch
    ``step``        the loop dispatches a step or waits for the device, with small work in between
    ``validation``  the loop stands still for it
    ``checkpoint``  the loop stands still for it; most of a save goes on in the background
    ``profile``     the loop stands still for it
    ``lost``        in no checkpoint: work that was not saved, pauses between two sessions
    """

    def __init__(self) -> None:
        self.began = time.time()
        self._phase, self._switched = "start", time.perf_counter()
        self._seconds = dict.fromkeys(_SHOWN, 0.0)
        self._compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def resume(self, started: float, seconds: dict[str, float]) -> None:
        """Adds the time before this session.

        Args:
          started: when the run was started, in seconds since the epoch.
          seconds: what ``seconds`` said at the checkpoint that the run goes on from.
        """
        saved = {phase: spent for phase, spent in seconds.items() if phase != "lost"}
        self._seconds |= saved
        self._seconds["lost"] = max(0.0, self.began - started - sum(saved.values()))

    def started(self) -> str:
        """Ends the start, the first step being done; returns the line that says so."""
        seconds = time.time() - self.began
        self.switch("step")
        jax.monitoring.unregister_event_duration_listener(self._on_event)
        return f"first step after {seconds:.1f} s, {self._compiling:.1f} s of it compilation"

    def switch(self, phase: str) -> None:
        """Ends the phase that goes on and begins ``phase``."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._switched
        self._phase, self._switched = phase, now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Makes ``name`` the phase within the block; then it is again what it was before."""
        before = self._phase
        self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def inputs(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields ``batches``; waiting for one is ``input``, for the first a part of the start."""
        iterator = iter(batches)
        while True:
            with self.phase("start" if self._phase == "start" else "input"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    @property
    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase since the run was started, all sessions together."""
        self.switch(self._phase)
        return dict(self._seconds)

    def _on_event(self, event: str, seconds: float, **_: Any) -> None:
        self._compiling += seconds if event in _COMPILATION else 0.0


class Meter:
    """Measures speed, memory and use for ``metrics.jsonl``, over the steps since the last line.

    ``time/PHASE``              seconds a step, of the four phases that a run consists of
    ``tokens_per_second``       positions of the rows, padding too; not counting the time of
                                validation and checkpoints, as in the next two
    ``real_tokens_per_second``  the same without padding
    ``mfu``                     useful FLOPs (see ``models/costs.py``) over what the devices could
                                have done at their bf16 peak; absent where that is unknown
    ``memory/device_gb``        the most so far on the fullest device, in 1e9 bytes, where it tells
    ``memory/host_gb``          the most so far of this process
    ``goodput``                 share of the time since the run was started that went into steps
                                of its history

    Use as a context manager; what is for people is handed to ``say``.
    """

    def __init__(
        self,
        timer: PhaseTimer,
        positions_per_step: int,
        flops_per_step: float,
        mesh: jax.sharding.Mesh,
        say: Callable[[str], None],
    ):
        self._timer, self._say = timer, say
        self._positions, self._flops = positions_per_step, flops_per_step
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._peak = None if peak is None else peak * mesh.size
        self._started = False
        self._real: list[jax.Array] = []
        self._before = timer.seconds
        self._session = np.zeros(3)  # steps, real tokens, seconds

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._say(self.summary())

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """Counts a dispatched step by its metrics. The first is waited for, and not timed."""
        if self._started:
            self._real.append(metrics["tokens"])
        else:
            jax.block_until_ready(metrics)
            self._say(self._timer.started())
            self._started = True

    def read(self) -> dict[str, float]:
        """Returns the values, at a step that is done; those of speed only if one was counted."""
        seconds = self._timer.seconds
        spent = {phase: seconds[phase] - self._before[phase] for phase in _LOOP}
        steps, real = len(self._real), int(np.sum(jax.device_get(self._real)))
        self._before, self._real = seconds, []
        values = {"goodput": seconds["step"] / sum(seconds.values()), **memory()}
        if steps:
            lap = np.array([steps, real, spent["input"] + spent["step"]])
            self._session += lap
            values |= {f"time/{phase}": spent[phase] / steps for phase in _LOOP}
            values |= self._speed(*lap)
        return values

    def summary(self) -> str:
        """Returns lines that say where the time of the run went, and how fast this session was."""
        seconds = self._timer.seconds
        total = sum(seconds.values())
        shares = [
            f"{name} {seconds[phase] / total:.1%}"
            for phase, name in _SHOWN.items()
            if seconds[phase]
        ]
        span = datetime.timedelta(seconds=round(total))
        lines = [f"{span} since the run was started: {', '.join(shares)}"]
        if self._session.any():
            speed = self._speed(*self._session)
            mfu = f", MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
            lines.append(
                f"{speed['tokens_per_second']:,.0f} tokens/s, "
                f"{speed['real_tokens_per_second']:,.0f} without padding{mfu}"
            )
        return "\n".join(lines)

    def _speed(self, steps: float, real: float, seconds: float) -> dict[str, float]:
        values = {
            "tokens_per_second": steps * self._positions / seconds,
            "real_tokens_per_second": real / seconds,
        }
        if self._peak is not None:
            values["mfu"] = steps * self._flops / seconds / self._peak
        return values


def memory() -> dict[str, float]:
    """Returns the most memory that was in use until now, in 1e9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    used = {"memory/host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    devices = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    peaks = [stats["peak_bytes_in_use"] for stats in devices if "peak_bytes_in_use" in stats]
    return used | ({"memory/device_gb": max(peaks) / 1e9} if peaks else {})


class Trace:
    """Records what the host and the devices do in the steps ``first`` to ``last``.

    The files are ``RUN/tensorboard/plugins/profile/TIME/HOST.*``; none where ``steps`` is None,
    or on another process than the primary.
    """

    def __init__(self, run: Path, steps: Sequence[int] | None, timer: PhaseTimer):
        self._folder, self._timer = run / "tensorboard", timer
        self._steps = range(steps[0], steps[1] + 1) if steps and is_primary() else range(0)
        self._recording: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def step(self, number: int, previous: Any) -> Iterator[None]:
        """Marks the block as step ``number``; ``previous``: the metrics of the step before."""
        if (number in self._steps) != (self._recording is not None):
            jax.block_until_ready(previous)  # its work is no part of what comes now
            if self._recording:
                self.close()
            else:
                self._open()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def _open(self) -> None:
        with self._timer.phase("profile"):
            self._recording = contextlib.ExitStack()
            folder = self._recording.enter_context(scratch(self._folder))
            jax.profiler.start_trace(folder)
            self._recording.callback(jax.profiler.stop_trace)

    def close(self) -> None:
        """Writes what has been recorded, if anything has."""
        if self._recording:
            with self._timer.phase("profile"), self._recording:
                self._recording = None

"""Contenders that take turns, each in a process of its own.

Two programs that are timed one after the other meet different moments of a machine; asked in turn
for one step each, they meet the same, and the ratio within a round holds. A process of its own
gives each its own memory peak and its own threads; who waits for a turn sleeps in ``read``.
"""

import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

HERE = Path(__file__).parent
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),  # one device for each
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # two processes share its memory
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Steps(Protocol):
    """What a contender's process builds."""

    facts: dict[str, Any]

    def step(self) -> float:
        """Makes one step to its end; the loss."""

    def peak_memory(self) -> int:
        """Bytes since the last warm-up step."""


class Failed(Exception):
    """A contender ended before its time; the message says why."""


class Contender:
    """The parent's side of a process. Built and warmed up on return; ``facts`` is what it said.

    Args:
      folder: the benchmarks of another checkout, whose code is then measured.

    Raises:
      Failed: it could not be built, or does not fit into memory.
    """

    def __init__(self, script: str, spec: dict[str, Any], folder: Path = HERE):
        paths = [str(folder.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, str(folder / script), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.facts = self._answer()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def step(self) -> dict[str, Any]:
        """``seconds``, ``loss`` and ``peak_memory`` of one step."""
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"exit {self._process.wait()}"}
        if "error" in answer:
            self._process.communicate()
            raise Failed(answer["error"])
        return answer


def serve(build: Callable[[dict[str, Any]], Steps]) -> None:
    """The process's side: builds what the first argument describes, then a step for every line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        steps = build(json.loads(sys.argv[1]))
        forget_peak()
        say(steps.facts)
        for _ in sys.stdin:
            started = time.perf_counter()
            loss = steps.step()
            seconds = time.perf_counter() - started
            say({"seconds": seconds, "loss": loss, "peak_memory": steps.peak_memory()})
    except Exception as error:  # any: the others go on, and the result says who failed
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})


def rounds(first: Contender, second: Contender, count: int) -> tuple[list[dict], list[dict]]:
    """``count`` steps of each, in turn; who begins changes from round to round."""
    answers: tuple[list[dict], list[dict]] = ([], [])
    pair = list(zip((first, second), answers, strict=True))
    for turn in range(count):
        for contender, said in pair if turn % 2 == 0 else reversed(pair):
            said.append(contender.step())
    return answers


def spread(values: list[float]) -> dict[str, Any]:
    """Median and quartiles, and a 95 % confidence interval of the median by the bootstrap."""
    drawn = np.random.default_rng(0).choice(values, (5000, len(values)))
    return {
        "median": float(np.median(values)),
        "quartiles": np.percentile(values, [25, 75]).tolist(),
        "interval": np.percentile(np.median(drawn, axis=1), [2.5, 97.5]).tolist(),
    }


def forget_peak() -> None:
    """Lets the peak of this process's memory begin anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def host_peak() -> int:
    """Bytes of memory that this process has held at most, since ``forget_peak`` on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

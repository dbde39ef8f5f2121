"""Two versions of the code, measured in turn: no slower than before?

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before [--rounds 5]

Step (``step_jax.py``, the preset ``cpu`` with fewer rows), feed (``feed.py``), start-up
(``startup.py``) and ``langsamp --help``, each by the scripts of either checkout, one after the
other in every round; who begins changes. Told are the medians of both and the median and quartiles
of the ratio within a round, before / now: above 1 it has become faster. Prints one JSON object.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feed import make_store
from interleave import HERE, Contender, rounds, spread
from record import surroundings
from step import write_start
from workload import OURS, Workload

ROWS = 4


def run(code: Path, *command: object) -> str:
    """Runs Python with the package of a checkout; returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu"}
    call = [sys.executable, *map(str, command)]
    return subprocess.run(
        call, check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout


def step(before: Path, count: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of a step of each."""
    workload = Workload.preset("cpu", {"rows": ROWS, "rounds": count})
    write_start(workload, folder)
    spec = {"workload": dataclasses.asdict(workload), "folder": str(folder)}
    spec["settings"] = {**OURS["cpu"], "dtype": "float32"}
    with (
        Contender("step_jax.py", spec, before / "benchmarks") as old,
        Contender("step_jax.py", spec) as new,
    ):
        answers = rounds(old, new, count)
    return tuple([answer["seconds"] for answer in side] for side in answers)


def feed_seconds(code: Path, folder: Path) -> float:
    """Seconds a million tokens."""
    script = code / "benchmarks" / "feed.py"
    found = json.loads(run(code, script, "--measure", "--store", folder / "store"))
    return 1e6 / found["tokens_per_second"]


def first_step(code: Path) -> float:
    """CPU seconds from the command to the end of the first step, compiled code being cached."""
    found = json.loads(run(code, code / "benchmarks" / "startup.py", "--rounds", 1))
    return found["warm_cpu_seconds_median"]


def help_text(code: Path) -> float:
    started = time.perf_counter()
    run(code, "-m", "langsamp_jax", "--help")
    return time.perf_counter() - started


def in_turn(
    measure: Callable[[Path], float], before: Path, count: int
) -> tuple[list[float], list[float]]:
    old, new = [], []
    sides = [(before, old), (HERE.parent, new)]
    for turn in range(count):
        for code, seconds in sides if turn % 2 == 0 else reversed(sides):
            seconds.append(measure(code))
    return old, new


def told(old: list[float], new: list[float]) -> dict[str, Any]:
    return {
        "before_median": statistics.median(old),
        "now_median": statistics.median(new),
        "ratio": spread([a / b for a, b in zip(old, new, strict=True)]),
        "before": old,
        "now": new,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout of the other version")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    before = args.before.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder / "store")
        results = {
            "help": told(*in_turn(help_text, before, 2 * args.rounds)),
            "step": told(*step(before, 2 * args.rounds, folder)),
            "feed": told(*in_turn(lambda code: feed_seconds(code, folder), before, args.rounds)),
            "startup": told(*in_turn(first_step, before, args.rounds)),
        }
    print(json.dumps({**surroundings(), "rows": ROWS, **results}, indent=1))


if __name__ == "__main__":
    main()

"""Processes in turn: their order, what they answer, and how they end."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import os, signal, sys, time
sys.path.insert(0, {benchmarks!r})
from interleave import serve

class Steps:
    def __init__(self, spec):
        print("a library prints")
        if spec.get("broken"):
            raise MemoryError("out of memory\\nwith details")
        self.facts, self.spec, self.count = {{"name": spec["name"]}}, spec, 0

    def step(self):
        print("a library prints")
        self.count += 1
        if self.count == self.spec.get("killed_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.spec["log"], "a") as log:
            log.write(self.spec["name"])
        return float(self.count)

    def peak_memory(self):
        return 1

serve(Steps)
"""


@pytest.fixture
def interleave(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("interleave")


@pytest.fixture
def contender(interleave, tmp_path):
    """``contender(name, ...)``: a process that writes its name down for every step."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(benchmarks=str(BENCHMARKS)))

    def start(name: str, **settings):
        spec = {"name": name, "log": str(tmp_path / "log"), **settings}
        return interleave.Contender(str(script), spec)

    return start


def test_each_makes_a_step_in_every_round_and_who_begins_changes(interleave, contender, tmp_path):
    with contender("a") as first, contender("b") as second:
        answers = interleave.rounds(first, second, 4)
    assert (tmp_path / "log").read_text() == "abbaabba"
    assert [[answer["loss"] for answer in said] for said in answers] == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert (first.facts, second.facts) == ({"name": "a"}, {"name": "b"})


def test_one_that_cannot_be_built_says_why(interleave, contender):
    with pytest.raises(interleave.Failed, match=r"^MemoryError: out of memory$"):
        contender("a", broken=True)


@pytest.mark.slow
def test_one_that_is_killed_is_noticed(interleave, contender):
    with contender("a") as first, contender("b", killed_at=2) as second:
        with pytest.raises(interleave.Failed, match="exit -9"):
            interleave.rounds(first, second, 3)


def test_the_interval_holds_the_true_median_as_often_as_it_says(interleave):
    generator, held = np.random.default_rng(1), 0
    for _ in range(100):
        found = interleave.spread(generator.lognormal(0.0, 0.1, 60).tolist())
        held += found["interval"][0] <= 1.0 <= found["interval"][1]
    assert 88 <= held <= 100


@pytest.mark.slow
def test_the_peak_is_forgotten(interleave):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak cannot be reset on this system")
    # In a process of its own: one that has trained keeps the memory that is freed.
    program = "import numpy as np, interleave; block = np.ones(40_000_000);"
    program += "print(interleave.host_peak());"
    program += "del block; interleave.forget_peak(); print(interleave.host_peak())"
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=BENCHMARKS, check=True, stdout=subprocess.PIPE).stdout
    with_block, without = map(int, told.split())
    assert without < with_block - 200e6
    assert json.loads(json.dumps(interleave.spread([1.0])))["interval"] == [1.0, 1.0]

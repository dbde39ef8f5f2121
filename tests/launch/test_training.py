"""`langsamp train` as two processes of the launcher, one of which is killed."""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from langsamp_jax.training.checkpoint import restore_params
from langsamp_jax.training.run import open_run

pytestmark = pytest.mark.slow

STEPS = 60
SETTINGS = {
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.max_length": 64,
    "train.global_batch_size": 8,
    "train.num_steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": 10,
    "train.eval_every": STEPS,
    "train.eval_rows": 2,
}


def start(launcher, store: Path, run: Path):
    program = [sys.executable, "-m", "langsamp_jax", "train", "--data", store, "--output", run]
    program += [f"--gin.{name}={value}" for name, value in SETTINGS.items()]
    environment = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    options = ["--processes", "2", "--pause", "0", "--logs", f"{run}.logs"]
    return launcher.start("local", *options, "--", *map(str, program), **environment)


def last_step(run: Path) -> int:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def process(run: Path, number: int) -> int:
    """The pid of the process ``number`` that writes or would write ``run``."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if str(run).encode() in words and f"JAX_PROCESS_ID={number}".encode() in variables:
            if words[1:2] == [b"-m"]:
                return int(folder.name)
    raise AssertionError(f"process {number} is not there")


def test_a_killed_run_ends_as_an_undisturbed_one(launcher, store_path):
    undisturbed, run = launcher.folder / "undisturbed", launcher.folder / "run"
    launcher.finish(start(launcher, store_path, undisturbed))

    killed = start(launcher, store_path, run)
    launcher.wait_for(lambda: last_step(run) >= 15)
    os.kill(process(run, 1), signal.SIGKILL)
    assert "restart 1 of at most 100" in launcher.finish(killed).stderr
    log = Path(f"{run}.logs", "process-0.log").read_text()
    assert "going on from step" in log

    (_, ours), (_, theirs) = (restore_params(open_run(path), STEPS) for path in (run, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

"""Runs that are killed, stopped, broken or cut off end where an undisturbed run ends.

Every run here is a process of its own, ended by real signals.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from langsamp_jax.training.checkpoint import restore_params
from langsamp_jax.training.run import open_run

STEPS = 240
SETTINGS = {
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.max_length": 64,
    "train.global_batch_size": 8,
    "train.num_steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": 5,
    "train.eval_every": 40,
    "train.eval_rows": 2,
    "optimizer.learning_rate": 1e-3,
}


def start(store: Path, run: Path, **changes: object) -> subprocess.Popen:
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    command = [sys.executable, "-m", "langsamp_jax", "train", "--data", store, "--output", run]
    command += [f"--gin.{name}={value}" for name, value in settings.items()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output
    return output


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def phases(run: Path) -> dict[str, float]:
    """The seconds of each phase of a run that has ended."""
    text = (run / "checkpoints" / str(STEPS) / "progress" / "metadata").read_text()
    return json.loads(text)["seconds"]


def goodput(run: Path) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["goodput"] for line in lines if "goodput" in line][-1]


def assert_same_end(run: Path, reference: Path) -> None:
    """Parameters bitwise equal, and each step's loss written once, with the same value."""
    (_, ours), (_, theirs) = (restore_params(open_run(path), STEPS) for path in (run, reference))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert losses(run) == losses(reference)


@pytest.fixture(scope="module")
def undisturbed(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that saves at its end alone: what the others save on the way changes nothing."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(store_path, run, train__checkpoint_every=STEPS))
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
    return run


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def complete(run: Path) -> int:
    steps = (f.name for f in (run / "checkpoints").glob("*"))
    return max((int(name) for name in steps if name.isdigit()), default=0)


def kill_at(moment: str, run: Path, process: subprocess.Popen, chance: random.Random) -> None:
    """Sends SIGKILL while a save is in progress, or some time after the first new checkpoint."""
    before = complete(run)
    while process.poll() is None and complete(run) == before:
        time.sleep(0.001)
    if moment == "saving":
        while process.poll() is None and not saving(run):
            pass
    else:
        time.sleep(chance.uniform(0, 0.4))
    assert process.poll() is None, "the run was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_runs_end_with_the_same_parameters(undisturbed, store_path, tmp_path):
    run, chance = tmp_path / "run", random.Random(0)
    cut_saves = 0
    for moment in ("saving", "any", "saving", "any", "saving", "any"):
        kill_at(moment, run, process := start(store_path, run), chance)
        process.stdout.close()
        cut_saves += saving(run)
    assert cut_saves >= 2, "no kill fell into a save"
    last_start = time.time()
    output = finish(start(store_path, run))
    assert "going on from step" in output
    assert_same_end(run, undisturbed)

    # Every second since the run was started is accounted for, those that the kills cost as lost.
    started, spent = open_run(run).started, phases(run)
    assert last_start - started <= sum(spent.values()) <= time.time() - started
    assert spent["lost"] > 0 == phases(undisturbed)["lost"]
    assert 0 < goodput(run) < goodput(undisturbed) < 1


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_ends_the_run_cleanly(number, status, undisturbed, store_path, tmp_path):
    run = tmp_path / "run"
    process = start(store_path, run, train__checkpoint_every=10_000)
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 20):
        time.sleep(0.01)
    process.send_signal(number)
    output = finish(process, status)
    assert "stopped at step" in output and "the same command goes on" in output
    assert 20 < complete(run) < STEPS
    finish(start(store_path, run, train__checkpoint_every=10_000))
    assert_same_end(run, undisturbed)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(undisturbed, store_path):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    finish(start(store_path, undisturbed, train__checkpoint_every=STEPS))
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_loss_that_is_not_finite_names_step_and_rows_and_keeps_the_last_checkpoint(
    store_path, tmp_path
):
    run = tmp_path / "run"
    # the rate grows from 0 by 1e17 a step: the first steps are finite, then the model overflows
    changes = {"optimizer__learning_rate": 1e20, "optimizer__warmup_steps": 1000}
    process = start(store_path, run, train__checkpoint_every=1, **changes)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 2
    line = output.splitlines()[-1]
    assert line.startswith("langsamp: step ") and ("nan" in line or "inf" in line)
    assert "qaa_" in line and "Traceback" not in output
    failed = int(line.split()[2].rstrip(":"))
    assert complete(run) == failed - 1
    _, params = restore_params(open_run(run), failed - 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small tmpfs")
def test_full_disk_is_one_line_and_the_last_checkpoint_stays_readable(store_path, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        process = start(store_path, disk / "run")
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 2, output
        assert "Traceback" not in output
        assert output.splitlines()[-1].startswith("langsamp: the disk is full: ")
        step, _ = restore_params(open_run(disk / "run"), complete(disk / "run"))
        assert step > 0
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_of_two_calls_at_once_one_is_refused_and_the_other_undisturbed(
    undisturbed, store_path, tmp_path
):
    run = tmp_path / "run"
    both = [start(store_path, run) for _ in range(2)]
    said = [process.communicate(timeout=900)[0] for process in both]
    (won, output), (refused, line) = sorted(
        zip([process.returncode for process in both], said, strict=True)
    )
    assert (won, refused) == (0, 2), said
    holder = next(process for process in both if process.returncode == 0)
    assert line.startswith(f"langsamp: {run} is held by process {holder.pid} on ")
    assert line.count("\n") == 1 and "Traceback" not in output
    assert_same_end(run, undisturbed)
    assert not (run / "claim.json").exists()

"""Snapshots: the parameters of chosen steps, all of them, whatever interrupts the run."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.plan.dry_run import dry_run
from langsamp_jax.training.checkpoint import Checkpoints, restore_params, saved_steps
from langsamp_jax.training.config import TrainConfig, snapshot_steps, with_overrides
from langsamp_jax.training.loop import train
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.run import Run, open_run

CONSTANT = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0)


@pytest.fixture(scope="module")
def configs(tiny_configs):
    """``configs(**train)``: 6 steps, with snapshots of powers and a checkpoint every 3."""

    def configs(**fields):
        fields = {"num_steps": 6, "checkpoint_every": 3, "snapshots": "powers"} | fields
        return dataclasses.replace(tiny_configs(eval_every=100, **fields), optimizer=CONSTANT)

    return configs


@pytest.fixture(scope="module")
def undisturbed(store_path, configs, tmp_path_factory) -> Run:
    return train(Store(store_path), tmp_path_factory.mktemp("whole") / "run", configs())


def assert_same(run: Run, other: Run, steps: list[int], but: int | None = None) -> None:
    """Their snapshots are of ``steps``, and but for those of one step bitwise the same."""
    assert saved_steps(run.snapshots) == steps
    for step in set(steps) - {but}:
        ours, theirs = (restore_params(r, step)[1] for r in (run, other))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@given(st.integers(1, 3000), st.sampled_from(["none", "powers"]), st.none() | st.integers(1, 4000))
def test_which_steps(num_steps, snapshots, every):
    steps = snapshot_steps(TrainConfig(num_steps, snapshots=snapshots, snapshot_every=every))
    expected = {
        step
        for step in range(num_steps + 1)
        if (snapshots == "powers" and step.bit_count() < 2)
        or (every is not None and step % every == 0)
    }
    assert steps == (expected | {0, num_steps} if expected else set())


def test_parameters_alone_of_every_step_that_is_wanted(undisturbed, store_path, configs, tmp_path):
    assert saved_steps(undisturbed.snapshots) == [0, 1, 2, 4, 6]
    metadata = json.loads((undisturbed.snapshots / "4" / "state" / "_METADATA").read_bytes())
    saved = metadata["tree_metadata"]
    assert saved and all("'params'" in name for name in saved)
    every = train(Store(store_path), tmp_path / "run", configs(snapshots="none", snapshot_every=4))
    assert_same(every, undisturbed, [0, 4, 6])
    last = tmp_path / "checkpoint"
    (undisturbed.path / "checkpoints" / "6").rename(last)
    snapshot = restore_params(undisturbed, 6)[1]
    last.rename(undisturbed.path / "checkpoints" / "6")
    jax.tree.map(np.testing.assert_array_equal, restore_params(undisturbed, 6)[1], snapshot)


def test_a_run_without_them_has_no_folder(store_path, configs, tmp_path, capsys):
    run = train(Store(store_path), tmp_path / "run", configs(num_steps=1, snapshots="none"))
    assert not run.snapshots.exists() and "snapshots" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_longer_run_keeps_those_of_the_shorter(undisturbed, store_path, configs, tmp_path):
    """And leaves as they are the files that are there."""
    store, path = Store(store_path), tmp_path / "run"
    run = train(store, path, configs(num_steps=3))
    assert saved_steps(run.snapshots) == [0, 1, 2, 3]
    times = {file: file.stat().st_mtime_ns for file in run.snapshots.rglob("*")}
    train(store, path, configs())
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert_same(run, undisturbed, [0, 1, 2, 3, 4, 6], but=3)


@pytest.mark.parametrize("failing", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 4))])
@pytest.mark.slow
def test_one_that_fails_leaves_no_hole(
    failing, undisturbed, store_path, configs, tmp_path, monkeypatch
):
    """No checkpoint counts before the snapshots of its steps do."""
    verify = Checkpoints._verify

    def broken(self: Checkpoints) -> None:
        if self._folder.name == "snapshots" and self._saving[0] == failing:
            time.sleep(0.5)  # as a slow disk: the loop goes on
            raise OSError("the disk is gone")
        verify(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_verify", broken)
        with pytest.raises(OSError, match="the disk is gone"):
            train(Store(store_path), tmp_path / "run", configs(checkpoint_every=1))
    run = open_run(tmp_path / "run")
    assert failing not in saved_steps(run.snapshots)
    assert max(saved_steps(run.checkpoints), default=0) <= failing
    train(Store(store_path), tmp_path / "run", configs(checkpoint_every=1))
    assert_same(run, undisturbed, [0, 1, 2, 4, 6])


@pytest.mark.slow
def test_a_run_that_is_made_anew_has_none_of_another(store_path, configs, tmp_path, monkeypatch):
    """Killed before its first checkpoint, it may begin with other settings."""
    store, path = Store(store_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed_at_a_checkpoint(Checkpoints.save))
        with pytest.raises(KeyboardInterrupt):
            train(store, path, configs())
    assert saved_steps(path / "snapshots") == [0, 1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed_at_a_checkpoint(Checkpoints.save))
        with pytest.raises(KeyboardInterrupt):
            train(store, path, configs(seed=1, snapshots="none", snapshot_every=2))
    assert saved_steps(path / "snapshots") == [0, 2]
    run = train(store, path, configs(seed=1))
    other = train(store, tmp_path / "other", configs(seed=1))
    assert_same(run, other, [0, 1, 2, 4, 6])


def killed_at_a_checkpoint(save):
    def saving(self, step, state, progress, loss):
        if self._folder.name == "checkpoints":
            raise KeyboardInterrupt
        save(self, step, state, progress, loss)

    return saving


@pytest.mark.slow
def test_the_last_step_of_a_finished_run_can_be_asked_for_later(store_path, configs, tmp_path):
    store, path = Store(store_path), tmp_path / "run"
    train(store, path, configs(num_steps=3, snapshots="none"))
    run = train(store, path, configs(num_steps=3))
    assert saved_steps(run.snapshots) == [3]


def test_what_they_take_is_said_at_the_start(undisturbed, store_path, configs, tmp_path, capsys):
    leaves = jax.tree.leaves(restore_params(undisturbed, 0)[1])
    size = sum(leaf.nbytes for leaf in leaves) / 1e6
    line = f"snapshots: 5 of {size:.1f} MB each, {5 * size:.1f} MB in all"
    assert line in dry_run(store_path, configs())
    assert "snapshots: " not in dry_run(store_path, configs(snapshots="none"))
    train(Store(store_path), undisturbed.path, configs())
    assert line in capsys.readouterr().err


def test_a_step_that_is_not_there(undisturbed, refused):
    line = refused(restore_params, undisturbed, 5)
    assert line == (
        f"{undisturbed.path} has no step 5; there are checkpoints of 3, 6 and snapshots of "
        "0, 1, 2, 4, 6"
    )


def test_bad_settings(refused):
    line = refused(TrainConfig, snapshots="all")
    assert "train.snapshots = 'all': expected one of 'none', 'powers'" in line
    with pytest.raises(UserError, match="train.snapshot_every = 0: expected a whole number above"):
        TrainConfig(snapshot_every=0)


STEPS = 64
ARGUMENTS = [
    *("--gin.model.hidden_size=32", "--gin.model.num_hidden_layers=2"),
    *("--gin.model.num_attention_heads=2", "--gin.model.intermediate_size=64"),
    *("--gin.model.max_length=64", "--gin.train.global_batch_size=8", "--gin.train.eval_rows=2"),
    *(f"--gin.train.num_steps={STEPS}", "--gin.train.eval_every=40"),
    *("--gin.train.checkpoint_every=10", "--gin.train.snapshots=powers"),
    "--gin.train.snapshot_every=5",
]


def launch(store: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "langsamp_jax", "train", "--data", store, "--output", run]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *ARGUMENTS], **pipes)


@pytest.mark.slow
def test_killed_runs_have_the_same_snapshots(store_path, tmp_path):
    """Killed while a snapshot is being written, and between a snapshot and a checkpoint."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    said, _ = (process := launch(store_path, whole)).communicate(timeout=900)
    assert process.returncode == 0, said
    expected = [0, 1, 2, 4, 5, 8, *range(10, 16, 5), 16, *range(20, 31, 5), 32]
    expected += [*range(35, 64, 5), 64]
    folder = run / "snapshots"
    for moment in (0, 4, 15, 32, 45):
        process = launch(store_path, run)
        before = set(saved_steps(folder))
        while process.poll() is None:
            there = {int(p.name.split(".")[0]) for p in folder.glob("*") if p.name[0].isdigit()}
            if any(step >= moment for step in there - before):
                break
            time.sleep(0.001)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    said, _ = (process := launch(store_path, run)).communicate(timeout=900)
    assert process.returncode == 0, said
    assert saved_steps(whole / "snapshots") == expected
    assert_same(open_run(run), open_run(whole), expected)


@pytest.mark.slow
def test_a_run_that_is_stopped_early_keeps_its_last_step(store_path, configs, tmp_path):
    still = OptimizerConfig(learning_rate=1e-30, schedule="constant")
    fields = {"num_steps": 50, "eval_every": 3, "early_stopping_patience": 2}
    settings = dataclasses.replace(configs(), optimizer=still)
    settings = with_overrides(settings, {f"train.{k}": v for k, v in fields.items()})
    run = train(Store(store_path), tmp_path / "run", settings)
    assert saved_steps(run.snapshots) == [0, 1, 2, 4, 8, 9]


@pytest.mark.slow
def test_as_a_user_types_it(store_path, tmp_path, capsys):
    call = ["train", "--data", str(store_path), "--output", str(tmp_path / "run"), *ARGUMENTS[:7]]
    call += ["--gin.train.num_steps=1", "--gin.train.snapshots=powers"]
    assert main(call) == 0, capsys.readouterr().err
    assert saved_steps(tmp_path / "run" / "snapshots") == [0, 1]

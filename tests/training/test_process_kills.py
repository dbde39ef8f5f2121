"""Processes that train as one, and of which some are killed or told to stop: one end for all."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from process_group import STEPS, Group, checkpoints, losses

from langsamp_jax.training.checkpoint import restore_params
from langsamp_jax.training.run import open_run


def assert_same_end(run: Path, reference: Path) -> None:
    """Parameters bitwise equal, and each step's loss written once, with the same value."""
    (_, ours), (_, theirs) = (restore_params(open_run(path), STEPS) for path in (run, reference))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert losses(run) == losses(reference)


@pytest.fixture(scope="module")
def undisturbed(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that 4 processes have made, undisturbed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    Group(store_path, run, 4).succeed()
    return run


@pytest.mark.slow
def test_a_signal_to_one_saves_on_all_and_the_run_goes_on(undisturbed, store_path, tmp_path):
    run = tmp_path / "run"
    group = Group(store_path, run, 4)
    group.reach(run, 3)
    group.processes[2].send_signal(signal.SIGTERM)
    assert_stopped(group, run, 75)
    Group(store_path, run, 4).succeed()
    assert_same_end(run, undisturbed)


def all_at_once(group: Group) -> None:
    for _ in range(2):
        for process in group.processes.values():
            process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("disturb", "code", "changes"),
    [
        (all_at_once, 75, {"train__checkpoint_every": 1}),
        pytest.param(
            lambda group: group.processes[1].send_signal(signal.SIGINT),
            130,
            {"train__eval_every": 1},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["SIGTERM to all, twice, while saving", "Ctrl-C to one while evaluating"],
)
def test_signals_at_bad_moments(
    disturb: Callable[[Group], None], code, changes, store_path, tmp_path
):
    run = tmp_path / "run"
    group = Group(store_path, run, 2, **changes)
    group.reach(run, 3)
    disturb(group)
    assert_stopped(group, run, code)


def assert_stopped(group: Group, run: Path, code: int) -> None:
    """All have ended with ``code`` at the same step, which is saved and the last in the log."""
    assert set(group.finish().values()) == {code}
    step = checkpoints(run)[-1]
    assert 3 <= step < STEPS and losses(run)[-1][0] == step
    assert f"stopped at step {step} and saved" in group.said(0)
    assert "Traceback" not in "".join(map(group.said, group.processes))


@pytest.mark.slow
def test_killed_processes_cost_the_steps_since_the_last_checkpoint(
    undisturbed, store_path, tmp_path
):
    run, chance = tmp_path / "run", random.Random(3)
    for _ in range(2):
        group = Group(store_path, run, 4, train__checkpoint_every=5)
        group.reach(run, max((step for step, _ in losses(run)), default=0) + 4)
        time.sleep(chance.uniform(0, 0.5))
        before = checkpoints(run)
        codes = group.lose(chance.randrange(4))
        assert codes is not None, "they do not end by themselves"
        assert set(before[-1:]) <= set(checkpoints(run)), "a complete checkpoint is lost"
    Group(store_path, run, 4, train__checkpoint_every=5).succeed()
    assert_same_end(run, undisturbed)

"""Several processes train as one: same losses, common checkpoints, and one end for all of them.

Some are killed or told to stop at bad moments.
"""

import json
import random
import shutil
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


def evaluations(run: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "eval/loss" in line]


def assert_same_losses(run: Path, reference: Path) -> None:
    """Each step once, and with the same loss up to rounding."""
    ours, theirs = losses(run), losses(reference)
    assert [step for step, _ in ours] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    for one, other in zip(evaluations(run), evaluations(reference), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def assert_same_end(run: Path, reference: Path) -> None:
    """Parameters bitwise equal, and each step's loss written once, with the same value."""
    (_, ours), (_, theirs) = (restore_params(open_run(path), STEPS) for path in (run, reference))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert losses(run) == losses(reference)


@pytest.fixture(scope="module")
def runs(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of processes -> the run that so many have made, undisturbed."""
    folder = tmp_path_factory.mktemp("runs")
    for number in (1, 2, 4):
        group = Group(store_path, folder / str(number), number)
        assert str(folder / str(number)) in group.succeed()
        if number > 1:
            assert all("validation loss" not in group.said(n) for n in range(1, number))
    return {number: folder / str(number) for number in (1, 2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_losses_do_not_depend_on_the_number_of_processes(number, runs):
    assert_same_losses(runs[number], runs[1])
    assert losses(runs[1])[-1][1] < losses(runs[1])[0][1] - 0.3, "nothing is learnt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written_by", "processes", "devices", "mesh"),
    [
        (4, 1, 8, {"mesh__fsdp": 2, "mesh__tensor": 2}),
        (1, 4, 1, {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2}),
        (2, 2, 2, {"mesh__fsdp": 4}),
    ],
)
def test_a_checkpoint_of_any_goes_on_at_any_other(
    written_by, processes, devices, mesh, runs, store_path, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(runs[written_by], run)
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    said = Group(store_path, run, processes, devices, **mesh).succeed()
    assert f"going on from step {STEPS // 2} of" in said
    assert_same_losses(run, runs[1])


@pytest.mark.slow
def test_a_signal_to_one_saves_on_all_and_the_run_goes_on(runs, store_path, tmp_path):
    run = tmp_path / "run"
    group = Group(store_path, run, 4)
    group.reach(run, 3)
    group.processes[2].send_signal(signal.SIGTERM)
    assert_stopped(group, run, 75)
    Group(store_path, run, 4).succeed()
    assert_same_end(run, runs[4])


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
def test_killed_processes_cost_the_steps_since_the_last_checkpoint(runs, store_path, tmp_path):
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
    assert_same_end(run, runs[4])

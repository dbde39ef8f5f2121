"""Several processes train as one: same losses, common checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from process_group import STEPS, Group, losses

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("number", [2, 4])
def test_losses_do_not_depend_on_the_number_of_processes(number, runs):
    assert_same_losses(runs[number], runs[1])
    assert losses(runs[1])[-1][1] < losses(runs[1])[0][1] - 0.3, "nothing is learnt"


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

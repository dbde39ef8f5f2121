"""The benchmark of one step: every contender does the same work, and a failure is a result."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

STEP = Path(__file__).parents[2] / "benchmarks" / "step.py"


def run_tiny(output: Path, *arguments: str) -> dict:
    command = [sys.executable, str(STEP), "--preset", "tiny", "--output", str(output), *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Without dropout, so that all random choices are the same on both sides."""
    output = tmp_path_factory.mktemp("step")
    only = "recipe_float32", "stock_float32"
    return run_tiny(output, "--dropout", "0", "--rounds", "3", "--only", *only), output


@pytest.mark.slow
def test_contenders_have_the_same_loss_at_every_step(result):
    """Same weights, same masked positions, and the same update: clipping and AdamW included."""
    pairs = result[0]["pairs"]
    for name, tolerance in {"recipe_float32": 3e-4, "stock_float32": 3e-3}.items():
        ours, theirs = pairs[name]["ours"], pairs[name]["theirs"]
        # the stock model lacks the two vectors: a hundredth of a state's length at the start
        assert theirs["first_loss"] == pytest.approx(ours["first_loss"], abs=1e-3)
        assert len(ours["losses"]) == len(theirs["losses"]) == 3
        assert theirs["losses"] == pytest.approx(ours["losses"], abs=tolerance)
    recipe, stock = (pairs[name]["theirs"]["parameters"] for name in pairs)
    assert recipe - stock == 32 * (10 + 3)


@pytest.mark.slow
def test_results_are_filed_under_their_device(result):
    printed, output = result
    (file,) = output.iterdir()
    stored = json.loads(file.read_text("utf-8"))
    assert stored["device"].startswith("cpu")
    for name, found in printed["pairs"].items():
        entry = stored["step"][f"{name}, 4 x 32, dropout 0.0"]
        assert {key: entry[key] for key in found} == found
        assert entry["workload"] == printed["workload"]
        assert {"jax", "torch", "transformers"} <= set(entry["versions"])
        lower, upper = found["ratio"]["quartiles"]
        assert 0 < lower <= found["ratio"]["median"] <= upper < math.inf
        for side in (found["ours"], found["theirs"]):
            assert side["tokens_per_second"] == pytest.approx(4 * 32 / side["median_seconds"])
            assert side["peak_memory"] > 0


@pytest.mark.slow
def test_a_contender_that_fails_is_told(tmp_path, monkeypatch):
    """Not raised: the others go on."""
    monkeypatch.syspath_prepend(str(STEP.parent))
    step, workload = importlib.import_module("step"), importlib.import_module("workload")
    found = step.compare(workload.PRESETS["tiny"], tmp_path / "nothing", {}, {})
    assert found.keys() == {"error"} and "batches.npz" in found["error"]
    assert "batches.npz" in step.table({"recipe_float32": found})

"""What devices send one another: counted in the compiled step, beside theory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCALING = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


def test_two_devices_send_what_their_layout_needs(tmp_path):
    command = [sys.executable, str(SCALING), "--devices", "2", "--rows", "2"]
    command += ["--rounds", "1", "--output", str(tmp_path)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(printed)
    data, fsdp, tensor = result["layouts"]
    assert [found["layout"] for found in (data, fsdp, tensor)] == ["data", "fsdp", "tensor"]

    # with two copies of the model a device sends as many bytes as its gradient has
    model = result["model"]
    hidden, mlp, layers = (
        model[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    layer = 4 * (hidden + 1) * hidden + 2 * hidden * mlp + mlp + hidden + 4 * hidden
    tables = (model["vocabulary"] + 512 + 610 + 30) * hidden + model["vocabulary"]
    head = (hidden + 1) * hidden + 2 * hidden
    parameters = layers * layer + tables + 2 * hidden + head
    assert data["least_together"] == pytest.approx(4 * parameters)
    assert data["sent_together"] >= 0.95 * data["least_together"]
    for found in (data, fsdp, tensor):
        assert found["sent_together"] == pytest.approx(sum(found["sent"].values()))
        assert found["sent_together"] > 0 and found["least_together"] > 0
        assert found["seconds"] > 0

    (file,) = tmp_path.iterdir()
    stored = json.loads(file.read_text("utf-8"))["scaling"]["2 x 128 on each"]
    assert stored["layouts"] == result["layouts"]

"""The cost of the tables: what is compared differs in the tables alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OVERHEAD = Path(__file__).parents[2] / "benchmarks" / "overhead.py"
HIDDEN, SCRIPTS = 32, 3  # of the tiny preset


def test_the_tables_are_all_that_differs(tmp_path):
    command = [sys.executable, str(OVERHEAD), "--preset", "tiny", "--output", str(tmp_path)]
    command += ["--languages", "600", "--starts", "1", "--rounds", "2"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(printed)
    control, languages = found["control"], found["600"]
    for what in ("parameters", "compiled_bytes"):
        assert control[f"{what}_langsamp"] == control[f"{what}_vanilla"]
        assert control[f"{what}_vanilla"] == languages[f"{what}_vanilla"]
    entries = HIDDEN * (600 + SCRIPTS)
    assert languages["parameters_langsamp"] - languages["parameters_vanilla"] == entries
    # float32 parameters and two moments at least, gradients and an update on top at most
    added = languages["compiled_bytes_langsamp"] - languages["compiled_bytes_vanilla"]
    assert 3 * 4 * entries <= added <= 6 * 4 * entries
    assert languages["time_ratio"]["median"] > 0 and len(control["time_ratio_of_each_start"]) == 1

    (file,) = tmp_path.iterdir()
    stored = json.loads(file.read_text("utf-8"))["overhead"]
    assert set(stored) == {"control, 4 x 32", "600, 4 x 32"}

"""The one command for a GPU: what it needs is said first, and its parts are there."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def test_what_is_not_installed_is_named(gpu, monkeypatch):
    installed = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda m: None if m == "gin" else installed(m))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="^not installed: gin-config; pip install gin-config$"):
        gpu.main()


def test_without_a_gpu_it_says_so(gpu, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match="do not both see a GPU"):
        gpu.main()


@pytest.mark.slow
def test_every_part_runs_and_the_failed_ones_are_named(gpu, monkeypatch, tmp_path):
    """Parts that fail do not keep the others from running."""
    parts = []

    def run(part: list[object]) -> bool:
        parts.append(list(map(str, part)))
        return part[0] != "step.py"

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--preset", "tiny", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="^failed: step.py, step.py, step.py, step.py; "):
        gpu.main()
    assert [part[0] for part in parts] == ["step.py"] * 4 + ["attention.py", "overhead.py"]
    assert all((BENCHMARKS / part[0]).is_file() for part in parts)
    assert all(part[-2:] == ["--output", str(tmp_path)] for part in parts)

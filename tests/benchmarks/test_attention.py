"""The benchmark of attention: what it files, and that it would notice a kernel that is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_it_files_a_row_for_every_case(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "attention.py"), "--output", str(tmp_path)]
    command += ["--lengths", "32", "64", "--tokens", "64", "--rounds", "1", "--dtype", "float32"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = json.loads(printed)["measured"]
    cases = [(row["length"], row["texts"], row["implementation"]) for row in rows]
    assert cases == [(n, texts, "xla") for n in (32, 64) for texts in ("padded", "packed")]
    assert all(row["milliseconds"] > 0 for row in rows)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text("utf-8"))["attention"]["run, float32"]["measured"] == rows


@pytest.mark.parametrize(
    ("position", "value", "expected"),
    [(0, 1.5, 0.5), (1, jnp.nan, jnp.inf), (2, 1.0, jnp.inf), (2, jnp.nan, jnp.inf)],
)
def test_what_counts_as_different(position, value, expected, monkeypatch) -> None:
    """Two positions of text and one of padding, whose gradient must be 0."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from attention import difference

    text = jnp.array([[True, True, False]])
    exact = jnp.array([[1.0, 1.0, 0.0]])[..., None, None]
    found = exact.at[0, position].set(value)
    assert difference((exact,) * 4, (exact,) * 4, text) == 0
    assert difference((exact, found, exact, exact), (exact,) * 4, text) == expected

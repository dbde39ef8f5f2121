"""Checkpoints: in any folder, verified before they count, and a reader disturbs nobody."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from orbax.checkpoint._src.serialization import ocdbt_utils

from langsamp_jax.errors import UserError
from langsamp_jax.io.claim import CLAIM, Claim
from langsamp_jax.training import checkpoint
from langsamp_jax.training.checkpoint import Checkpoints
from langsamp_jax.training.step import TrainState

READER = """
import sys, pathlib
from langsamp_jax.training.checkpoint import Checkpoints
with_none = Checkpoints.reader(pathlib.Path(sys.argv[1]))
assert (with_none.latest, with_none.best, with_none.steps) == (None, None, [])
with_none.close()
"""


def test_a_folder_is_read_without_a_word(tmp_path):
    """In a process that has opened no other: what absl logs is filtered from the first line on."""
    command = [sys.executable, "-c", READER, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.iterdir())


STATE = TrainState(jnp.zeros((), jnp.int32), {"head": {"bias": jnp.arange(4.0)}}, (jnp.ones(3),))


def save(folder: Path, *steps: int, claim: Claim | None = None) -> None:
    """Saves ``STATE`` at each step; the latest one is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder, 1, claim)
    try:
        for step in steps:
            checkpoints.save(step, STATE, {"step": step}, None)
    finally:
        checkpoints.close()


def restored(folder: Path, step: int) -> dict[str, np.ndarray]:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), STATE
    )
    checkpoints = Checkpoints.reader(folder)
    try:
        return checkpoints.restore(step, abstract)[0].params["head"]
    finally:
        checkpoints.close()


names = st.text(st.sampled_from("[]*?!{}-%41#'\" ~$&;|:ü日"), min_size=1, max_size=8)


@settings(max_examples=10)
@given(names)
@example("lr[3e-3]")
@example("**")
def test_no_character_of_a_folder_is_a_pattern(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("run") / name / "checkpoints"
    save(folder, 1, 2)
    assert checkpoint.latest_step(folder) == 2
    np.testing.assert_array_equal(restored(folder, 2)["bias"], np.arange(4.0))


async def leave_in_parts(*_, **__) -> None:
    """Stands in for Orbax's merge, which without a word did nothing where it found no parts."""


def test_a_save_without_its_manifest_does_not_count(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", leave_in_parts)
    with pytest.raises(UserError, match=r"step 2 in .* 3 of 3 arrays are missing \(opt_state.0, "):
        save(tmp_path, 2)
    assert checkpoint.latest_step(tmp_path) == 1 and (tmp_path / "1").is_dir()


def test_a_save_that_lacks_an_array_does_not_count(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_arrays", lambda state: {"step", "params.head.bias"})
    with pytest.raises(UserError, match=r"1 of 3 arrays are missing \(opt_state.0, "):
        save(tmp_path, 2)
    assert checkpoint.latest_step(tmp_path) == 1
    monkeypatch.undo()
    save(tmp_path, 3)
    assert checkpoint.latest_step(tmp_path) == 3


def test_parts_that_an_earlier_version_left_are_merged(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", leave_in_parts)
        patch.setattr(Checkpoints, "_verify", lambda self: None)
        save(tmp_path, 2)
    for line in ("is in parts, which are merged\n", ""):
        np.testing.assert_array_equal(restored(tmp_path, 2)["bias"], np.arange(4.0))
        assert capsys.readouterr().err.endswith(line)


def test_a_damaged_checkpoint_is_not_to_be_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "1").rename(tmp_path / "2")
    save(tmp_path / "other", 1)
    (tmp_path / "other" / "1").rename(tmp_path / "1")
    for file in (tmp_path / "2" / "state").glob("*ocdbt*"):
        file.rename(tmp_path / file.name)
    with pytest.raises(UserError) as error:
        restored(tmp_path, 2)
    assert str(error.value).endswith("; move it elsewhere to go on from step 1")


def test_nothing_is_saved_once_another_process_has_the_run(tmp_path):
    with Claim(tmp_path / CLAIM, tmp_path) as claim:
        save(tmp_path / "checkpoints", 1, claim=claim)
        (tmp_path / CLAIM).write_text('{"token": "another", "pid": 7, "host": "n3"}')
        with pytest.raises(UserError, match="held by process 7 on n3, .* saves nothing more"):
            save(tmp_path / "checkpoints", 2, claim=claim)
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 1

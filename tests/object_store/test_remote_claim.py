"""A claim on what is in an object store, and checkpoints under names with special characters."""

import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.io.claim import CLAIM, Claim
from langsamp_jax.io.files import require_absent
from langsamp_jax.io.storage import create, location, read
from langsamp_jax.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import restored, save

pytestmark = pytest.mark.slow


def test_an_object_is_created_once(s3, tmp_path):
    file = location(f"s3://bucket/{tmp_path.name}/file")
    assert create(file, b"first") and not create(file, b"second")
    assert file.read_bytes() == b"first"


def test_one_holder_at_a_time(s3, tmp_path, capsys):
    run = location(f"s3://bucket/{tmp_path.name}/run")
    with Claim(run / CLAIM, run, 0.1) as claim:
        with pytest.raises(UserError, match=f"{run} is held by process"), Claim(run / CLAIM, run):
            pass
        claim.require_held()
        left = read(run / CLAIM)
    assert not (run / CLAIM).exists()
    (run / CLAIM).write_bytes(left.replace(b'"place": "', b'"place": "another '))
    with Claim(run / CLAIM, run, 0.1):
        assert "which has ended: taken over" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b", "%41", "#h", "~", "{a,b}", "ü"])
def test_names(name, s3, tmp_path):
    folder = location(f"s3://bucket/{tmp_path.name}/{name}/checkpoints")
    checkpoints = Checkpoints(folder, 1)
    checkpoints.close()
    save(folder, 1, 2, 3)
    assert Checkpoints.reader(folder).steps == [3]
    assert restored(folder, 3)["bias"].sum() == 6


@pytest.mark.parametrize("name", ["lr[3e-3]", "*", "x?y"])
def test_a_name_that_would_remove_what_is_anothers(name, s3, tmp_path, refused):
    path = location(f"s3://bucket/{tmp_path.name}/{name}")
    assert "takes * ? [ for patterns" in refused(require_absent, path)

"""remote_tensors.py and weights.py: a checkpoint in an object store, read by ranges."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.weights import Weights

pytestmark = pytest.mark.slow

ROWS = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import ml_dtypes

    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    tensors = {
        "table": rng.normal(size=(ROWS, 64)).astype("f"),
        "half": rng.normal(size=(6, 5)).astype(np.float16),
        "brain": rng.normal(size=(6, 5, 2)).astype(ml_dtypes.bfloat16),
        "double": rng.normal(size=7),
        "count": np.arange(3),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_same_values(put, folder):
    ours, theirs = Weights(put(folder, "weights")), Weights(folder)
    assert ours.shapes == theirs.shapes
    indices = [
        ("table", ()),
        ("table", (slice(7, 9), slice(3, 60))),
        ("table", (slice(5, 5), slice(0, 64))),
        ("half", (slice(0, 6), slice(1, 2))),
        ("brain", (slice(1, 3),)),
        ("double", (slice(2, 7),)),
    ]
    for name, index in indices:
        found = ours.read(name, index)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, theirs.read(name, index))
    rows = np.random.default_rng(1).integers(0, ROWS, 500)
    columns = (slice(8, 24),)
    np.testing.assert_array_equal(
        ours.gather("table", rows, columns), theirs.gather("table", rows, columns)
    )


def test_few_requests_and_no_more_than_is_needed(s3, put, folder):
    weights = Weights(put(folder, "weights"))
    s3.requests.clear()
    weights.read("table", (slice(100, 200),))
    (span,) = [r.range for r in s3.requests if r.range]
    first, last = map(int, span.removeprefix("bytes=").split("-"))
    assert last + 1 - first == 100 * 64 * 4
    s3.requests.clear()
    weights.gather("table", np.arange(0, ROWS, 7))  # near one another
    assert len([r for r in s3.requests if r.range]) <= 2


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:4],
        lambda data: (2**60).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
    ],
    ids=["cut", "longer", "nothing", "vast header", "no JSON"],
)
def test_a_damaged_file(put, folder, tmp_path, change):
    copy = tmp_path / "copy"
    copy.mkdir()
    data = (folder / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(change(data))
    with pytest.raises(UserError, match="^s3://.*/model.safetensors is damaged or cut short"):
        Weights(put(copy, "weights"))


def test_what_cannot_be_read(put, folder, tmp_path):
    with pytest.raises(UserError, match="count has numbers of type I64"):
        Weights(put(folder, "weights")).read("count")
    pickled = tmp_path / "bin"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="^s3://.*bin weights cannot be read by parts; copy the"):
        Weights(put(pickled, "bin"))
    with pytest.raises(UserError, match="^s3://.* has no weights"):
        Weights("s3://bucket/nothing")

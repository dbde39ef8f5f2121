"""weights.py: a checkpoint in an object store is copied to the temporary folder and read there."""

import gc
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.huggingface.weights import Weights, has_contents

pytestmark = pytest.mark.slow

ROWS = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, empty at first."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


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
        values = ours.read(name, index)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, theirs.read(name, index))
    rows = np.random.default_rng(1).integers(0, ROWS, 500)
    columns = (slice(8, 24),)
    np.testing.assert_array_equal(
        ours.gather("table", rows, columns), theirs.gather("table", rows, columns)
    )


def test_every_file_of_several_is_copied_once(s3, put, folder, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("one", "two"):
        save_file({name: np.full(3, len(name), "f")}, shards / f"{name}.safetensors")
    index = '{"weight_map": {"one": "one.safetensors", "two": "two.safetensors"}}'
    (shards / "model.safetensors.index.json").write_text(index)
    (shards / "another.safetensors").write_bytes(b"of no concern")
    weights = Weights(put(shards, "shards"))
    for name in ("one", "two"):
        np.testing.assert_array_equal(weights.read(name), np.full(3, len(name), "f"))
    names = [r.path.rsplit("/", 1)[-1] for r in s3.requests if r.method == "GET"]
    reads = sorted(name for name in names if name.endswith(".safetensors"))
    # First the headers, for the shapes.
    assert reads == ["one.safetensors", "one.safetensors", "two.safetensors", "two.safetensors"]


def test_shapes_need_no_copy(s3, put, folder, scratch):
    """As a dry run asks for them; of a small file the header comes with all of it."""
    weights = Weights(put(folder, "weights"))
    assert weights.shapes == Weights(folder).shapes
    assert not list(scratch.iterdir())
    assert has_contents(put(folder, "again"), weights.contents())


def test_the_copy_is_gone_with_the_weights(put, folder, scratch):
    weights = Weights(put(folder, "weights"))
    weights.read("half")
    assert [file.name for file in scratch.rglob("*.safetensors")] == ["model.safetensors"]
    del weights
    assert not list(scratch.iterdir())


def test_a_copy_that_fails_leaves_nothing(s3, put, folder, scratch):
    url = put(folder, "weights")
    s3.refuse = lambda request: (
        request.method == "GET" and request.path.endswith("model.safetensors")
    )
    with pytest.raises(PermissionError, match="Access Denied"):
        Weights(url).read("half")
    gc.collect()  # the traceback and its frames
    assert not list(scratch.iterdir())


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


def test_what_cannot_be_read(put, folder):
    with pytest.raises(UserError, match="^s3://.*: count has numbers of type I64"):
        Weights(put(folder, "weights")).read("count")
    with pytest.raises(UserError, match="^s3://.* has no weights"):
        Weights("s3://bucket/nothing")


def test_bin_files_too(put, tmp_path):
    torch = pytest.importorskip("torch")
    folder = tmp_path / "bin"
    folder.mkdir()
    torch.save({"table": torch.ones(2, 3)}, folder / "pytorch_model.bin")
    np.testing.assert_array_equal(Weights(put(folder, "bin")).read("table"), np.ones((2, 3), "f"))


def test_a_model_there_is_evaluated_as_on_a_disk(
    put, make_run, store_path, corpus, scratch, tmp_path
):
    model = tmp_path / "model"
    run = make_run(store_path).path
    assert main(["export", "--run", str(run), "--output", str(model), "--full"]) == 0
    results = []
    for place in (str(model), put(model, "model")):
        table = tmp_path / "table.json"
        call = ["evaluate", "retrieval-bible", "--data", str(corpus / "held_out")]
        call += ["--pivot", "qaa_Latn", "--model", place, "--output", str(table)]
        assert main(call) == 0
        results.append(json.loads(table.read_text()))
        table.unlink()
    ours, theirs = results
    assert ours["languages"] == theirs["languages"] and ours["averages"] == theirs["averages"]
    assert not list(scratch.iterdir())


def test_a_training_there_holds_no_copy_once_it_has_begun(
    put, make_checkpoint, store_path, scratch, tmp_path, monkeypatch
):
    start = tmp_path / "start"
    make_checkpoint(start, "xlm-roberta", Store(store_path).manifest.vocabulary.size)
    held = []

    def fit(*arguments) -> None:
        held.append(list(scratch.iterdir()))

    monkeypatch.setattr("langsamp_jax.training.loop.fit", fit)
    call = ["train", "--data", str(store_path), "--output", str(tmp_path / "run")]
    call += ["--init_from", put(start, "start"), "--gin.train.global_batch_size=8"]
    assert main(call) == 0
    assert held == [[]]

"""In and out again, and out and in again: not a bit changes."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.evaluation.loss import masked_lm_measure
from langsamp_jax.huggingface.pretrained import open_pretrained
from langsamp_jax.training.checkpoint import model_of, restore_params
from langsamp_jax.training.export import export_run

pytestmark = pytest.mark.usefixtures("optimized")

transformers = pytest.importorskip("transformers")

KINDS = ("xlm-roberta", "xlm-roberta-xl", "bert")


def flat(params: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal(ours: Any, expected: Any, vocab_size: int | None = None) -> None:
    """Bit for bit; what fills the vocabulary up is not looked at where its size is given."""
    ours, expected = flat(ours), flat(expected)
    assert ours.keys() == expected.keys()
    for name, leaf in expected.items():
        size = vocab_size if name in ("word_embeddings", "decoder_bias") else None
        np.testing.assert_array_equal(ours[name][:size], leaf[:size], err_msg=name)


@pytest.fixture(
    params=[KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def store(request, store_path, wordpiece_store) -> tuple[str, Store]:
    return request.param, Store(wordpiece_store if request.param == "bert" else store_path)


def test_import_export_import(store, tmp_path, make_checkpoint, import_folder, make_run):
    kind, store = store
    vocabulary = store.manifest.vocabulary
    make_checkpoint(tmp_path / "a", kind, vocabulary.size, pad_token_id=vocabulary.pad_id)
    model, params = import_folder(tmp_path / "a")
    fields = {"architecture": kind, "layer_norm_eps": model.config.layer_norm_eps}
    export_run(make_run(store.path, params, placement="none", **fields), tmp_path / "b")
    again, same = import_folder(tmp_path / "b", store.tokenizer())
    assert again.config == model.config
    assert_equal(same, params)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["output", "input"])
def test_export_import_of_the_full_form(store, placement, tmp_path, import_folder, make_run):
    kind, store = store
    run = make_run(store.path, architecture=kind, placement=placement)
    _, params = restore_params(run)
    export_run(run, tmp_path / "full", full=True)
    model, same = import_folder(tmp_path / "full", run.tokenizer)
    assert model.config.placement == placement
    assert open_pretrained(tmp_path / "full").inventory == run.inventory
    assert_equal(same, params, run.tokenizer.vocab_size)
    assert not np.asarray(same["word_embeddings"])[run.tokenizer.vocab_size :].any()


@pytest.mark.slow
def test_folded_and_imported_again_it_is_a_plain_model(
    store_path, tmp_path, import_folder, make_run
):
    run = make_run(store_path)
    _, params = restore_params(run)
    export_run(run, tmp_path / "folded", fold="qaa_Latn")
    model, ours = import_folder(tmp_path / "folded", run.tokenizer)
    assert model.config.placement == "none" and open_pretrained(tmp_path / "folded").has_head
    changed = {
        name
        for name, leaf in flat(ours).items()
        if not np.array_equal(leaf[:600], flat(params)[name][:600])
    }
    assert changed == {"head/dense/bias"}


@pytest.mark.slow
def test_training_goes_on_from_what_pytorch_saved(
    trained_run, store_path, tmp_path, load_strictly, import_folder
):
    """JAX to PyTorch, saved there, and back: the validation loss is the same, and it trains."""
    step, params = restore_params(trained_run)
    export_run(trained_run, tmp_path / "full", full=True)
    load_strictly(tmp_path / "full").save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    vocab_size = trained_run.tokenizer.vocab_size
    assert_equal(import_folder(tmp_path / "saved")[1], params, vocab_size)

    # A step so small that it changes no weight.
    settings = ["num_steps=1", "global_batch_size=8", "eval_rows=None"]
    call = ["train", "--data", store_path, "--output", tmp_path / "run"]
    call += ["--init_from", tmp_path / "saved", "--gin.optimizer.learning_rate=1e-30"]
    assert main([*map(str, call), *(f"--gin.train.{setting}" for setting in settings)]) == 0
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (loss,) = [r["eval/loss"] for r in map(json.loads, records) if "eval/loss" in r]
    measure = masked_lm_measure(trained_run, model_of(trained_run), Store(store_path))
    expected = measure(params)["loss"]
    assert loss == pytest.approx(expected, rel=1e-6)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["init_from"] == str(
        tmp_path / "saved"
    )

    # The weights are not needed any more, nor what says that they were.
    (tmp_path / "saved").rename(tmp_path / "elsewhere")
    again = [*call[:5], call[-1], *(f"--gin.train.{setting}" for setting in settings)]
    assert main([*map(str, again)]) == 0


def test_folder_with_vectors_needs_a_model_with_vectors(trained_run, store_path, tmp_path, capsys):
    """A setting that the folder contradicts is no silent change of the model."""
    export_run(trained_run, tmp_path / "full", full=True)
    call = ["train", "--data", store_path, "--output", tmp_path / "run", "--init_from"]
    call += [tmp_path / "full", "--gin.model.placement=input"]
    assert main([*map(str, call)]) == 2
    line = capsys.readouterr().err
    assert "model.placement = 'input'" in line and line.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_universal_form_is_where_another_run_starts(trained_run, store_path, tmp_path, capsys):
    """New vectors at random, and that is said."""
    export_run(trained_run, tmp_path / "universal")
    call = ["train", "--data", store_path, "--init_from", tmp_path / "universal", "--dry_run"]
    assert main([*map(str, call)]) == 0
    text = capsys.readouterr().out
    assert "language and script vectors start at random" in text
    assert "universal" in text and "new pieces" not in text and "plain encoder" not in text

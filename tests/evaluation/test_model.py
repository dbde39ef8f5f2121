"""Runs and Hugging Face folders, opened alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.encoder import sentence_encoder
from langsamp_jax.evaluation.model import load_model
from langsamp_jax.text.huggingface_files import write_tokenizer
from langsamp_jax.text.tokenizer import load_tokenizer
from langsamp_jax.training.export import export_run
from langsamp_jax.training.run import open_run


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """The exports of the run, ``universal`` and ``full``."""
    folder = tmp_path_factory.mktemp("exported")
    for name, full in (("universal", False), ("full", True)):
        export_run(open_run(run), folder / name, full=full)
    return folder


@pytest.mark.parametrize("form", ["universal", "full"])
def test_a_run_and_its_export_give_the_same_vectors(run, folder, form, lines):
    ours, theirs = load_model(run), load_model(folder / form)
    assert (ours.step, theirs.step) == (3, None)
    assert ours.max_length == theirs.max_length == 32
    assert ours.has_head and theirs.has_head
    vectors = [
        sentence_encoder(trained, range(4))(lines, "qaa_Latn").vectors for trained in (ours, theirs)
    ]
    np.testing.assert_allclose(*vectors, atol=1e-6)
    assert np.abs(vectors[0][3, 0] - vectors[0][3, 1]).max() > 1e-3


def test_what_is_known_of_each(run, folder, corpus):
    ours, universal, full = map(load_model, (run, folder / "universal", folder / "full"))
    names = {file.stem for file in corpus.glob("*.txt")}
    assert set(ours.tokens) == names and not universal.tokens
    assert [trained.config.placement for trained in (ours, universal, full)] == [
        *("output", "none", "output")
    ]
    assert full.inventory.languages == ours.inventory.languages
    for name in names:
        assert ours.head_ids(name) == full.head_ids(name) == ours.inventory.ids(name)
        assert universal.head_ids(name) == (0, 0)
        assert ours.encoder_ids(name) == full.encoder_ids(name) == (0, 0)
    assert ours.encoder_ids("xxx_Xxxx") == (0, 0)  # a language it never saw
    with pytest.raises(UserError, match="no language 'xxx'"):
        ours.head_ids("xxx_Latn")


@pytest.mark.parametrize(("switch", "row"), [("use_language", 1), ("use_script", 0)])
@pytest.mark.parametrize("placement", ["output", "input"])
def test_a_model_of_one_table_needs_no_row_of_the_other(
    switch, row, placement, store_path, make_run, tmp_path
):
    run = make_run(store_path, placement=placement, **{switch: False})
    export_run(run, tmp_path / "full", full=True)
    for trained in map(load_model, (run.path, tmp_path / "full")):
        method = trained.head_ids if placement == "output" else trained.encoder_ids
        assert method("qaa_Latn")[row] == run.inventory.ids("qaa_Latn")[row]
        stranger = "xxx_Latn" if row else "qaa_Xxxx"
        assert method(stranger)[row] == run.inventory.ids("qaa_Latn")[row]
        with pytest.raises(UserError, match="the model has no"):
            method("qaa_Xxxx" if row else "xxx_Latn")


def test_a_plain_encoder_has_no_head(tmp_path, make_checkpoint, tokenizer):
    for name in ("whole", "plain"):
        model = make_checkpoint(tmp_path / name, "xlm-roberta", tokenizer.vocab_size)
        write_tokenizer(tokenizer, tmp_path / name, 32)
    shutil.rmtree(tmp_path / "plain")
    model.base_model.save_pretrained(tmp_path / "plain")
    write_tokenizer(tokenizer, tmp_path / "plain", 32)
    whole, plain = load_model(tmp_path / "whole"), load_model(tmp_path / "plain")
    assert whole.has_head and not plain.has_head
    vectors = [sentence_encoder(t, [3])(["a", "b c"], "qaa_Latn").vectors for t in (whole, plain)]
    np.testing.assert_array_equal(*vectors)


def test_what_is_no_model_is_refused(run, folder, tmp_path, tokenizer_file, refused):
    assert refused(load_model, tmp_path / "none") == (
        f"{tmp_path / 'none'} is neither a run (run.json) nor a Hugging Face model (config.json)"
    )
    assert "is a file; name its folder" in refused(load_model, tokenizer_file)
    assert "which has no steps; leave --step" in refused(load_model, folder / "full", 3)
    line = refused(load_model, run, 4)
    assert line == f"{run} has no step 4; there are checkpoints of 3 and snapshots of none"

    bare = shutil.copytree(folder / "universal", tmp_path / "bare")
    for name in ("tokenizer.json", "sentencepiece.bpe.model"):
        (bare / name).unlink()
    assert f"{bare} has no tokenizer (sentencepiece.bpe.model, tokenizer.json" in refused(
        load_model, bare
    )
    write_tokenizer(load_tokenizer(tokenizer_file), bare, 32)
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    assert "missing: roberta.encoder.layer.3" in refused(load_model, bare)


def test_another_tokenizer_is_refused(folder, shared_data, tmp_path, refused):
    other = shutil.copytree(folder / "universal", tmp_path / "other")
    shutil.copy(shared_data / "tokenizers/xlmr/sentencepiece.bpe.model", other)
    assert str(other) in refused(load_model, other)

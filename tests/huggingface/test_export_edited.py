"""`export --edit`: an ordinary folder, whose model gives what the edited parameters give."""

import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.evaluation.encoder import reference_means
from langsamp_jax.evaluation.model import load_model
from langsamp_jax.models.edits import apply_edits, parse_edit
from langsamp_jax.training.checkpoint import model_of, restore_params
from langsamp_jax.training.run import open_run


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    [["attention@0=mean", "ffn@1", "head@2.3=mean", "norm@2"], ["block@1", "neurons=FILE"]],
)
def test_transformers_computes_the_edited_model(
    texts, run, corpus, tmp_path, padded, logits, stock_logits, load_strictly, capsys
):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "n.npz", chosen=rng.random((3, 64)) < 0.3, value=rng.normal(size=(3, 64)))
    texts = [text.replace("FILE", str(tmp_path / "n.npz")) for text in texts]
    held_out, folder = corpus / "held_out", tmp_path / "edited"
    call = ["export", "--run", run, "--output", folder, "--fold", "qaa_Latn"]
    call += ["--reference", held_out, "--edit", *texts]
    assert main([*map(str, call)]) == 0, capsys.readouterr().err

    edits = [parse_edit(text) for text in texts]
    means = reference_means(load_model(run), edits, held_out)
    _, params = restore_params(open_run(run))
    trained = open_run(run)
    model, params = apply_edits(edits, model_of(trained), params, means)
    lines = (held_out / "qaa_Latn.txt").read_text("utf-8").splitlines()[:5]
    batch = padded(trained.tokenizer, lines)
    ids = [np.full(5, row, np.int32) for row in trained.inventory.ids("qaa_Latn")]
    batch = batch._replace(ids=type(batch.ids)(*ids))
    ours = logits(model, params, batch)
    theirs = stock_logits(load_strictly(folder), batch)
    text = batch.attention_mask
    size = theirs.shape[-1]
    np.testing.assert_allclose(ours[text][:, :size], theirs[text], rtol=0, atol=1e-5)
    unedited = logits(model_of(trained), restore_params(trained)[1], batch)
    assert np.abs(unedited - ours)[text].max() > 0.1
    card = (folder / "README.md").read_text("utf-8")
    for text in texts:
        assert f"changed after training: `{text.split('=')[0]}" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    "edit, message",
    [
        (["attention@3"], "attention@3=zero: the layers are 0 to 2"),
        (["ffn@1=mean"], "ffn@1=mean needs a text over which the mean is: --reference CORPUS"),
        (["nothing"], "edit nothing: expected a form like attention@3=mean"),
    ],
)
def test_mistakes_are_one_line(edit, message, run, tmp_path, capsys):
    call = ["export", "--run", run, "--output", tmp_path / "edited", "--edit", *edit]
    assert main([*map(str, call)]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not (tmp_path / "edited").exists()

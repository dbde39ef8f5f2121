"""The two forms of an export that know languages: one folded in, and the full model."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from langsamp_jax.data.feed import Batch
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.training.checkpoint import model_of, restore_params
from langsamp_jax.training.export import export_run
from langsamp_jax.training.run import Run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KINDS = ["trained", "xlm-roberta", "xlm-roberta-xl", "bert", "input", "language", "script"]


class Case(NamedTuple):
    """A run, and the full model made of it."""

    run: Run
    model: LangSamp
    params: Any
    folder: Path

    def batch(self, padded, corpus: Path) -> tuple[list[str], Batch]:
        """The first line of each language-script, in its own language and script."""
        files = sorted(corpus.glob("*.txt"))
        names = [file.stem for file in files]
        lines = [file.read_text("utf-8").splitlines()[0] for file in files]
        ids = np.array([self.run.inventory.ids(name) for name in names], np.int32)
        batch = padded(self.run.tokenizer, lines)
        return names, batch._replace(ids=TableIds(*ids.T))


@pytest.fixture(
    scope="module",
    params=[KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])],
)
def case(request, store_path, wordpiece_store, trained_run, make_run, tmp_path_factory) -> Case:
    fields = {
        "xlm-roberta": {},
        "xlm-roberta-xl": {"architecture": "xlm-roberta-xl"},
        "bert": {"architecture": "bert", "layer_norm_eps": 1e-12},
        "input": {"placement": "input"},
        "language": {"use_script": False},
        "script": {"use_language": False},
    }
    store = wordpiece_store if request.param == "bert" else store_path
    trained = request.param == "trained"
    run = trained_run if trained else make_run(store, **fields[request.param])
    folder = tmp_path_factory.mktemp("export") / "model"
    export_run(run, folder, full=True)
    return Case(
        run,
        model_of(run),
        restore_params(run)[1],
        folder,
    )


def test_folded_for_every_language(
    case, corpus, padded, logits, stock_logits, load_strictly, tmp_path
):
    """A stock model gives for one language what the model gives for it, on any text."""
    names, batch = case.batch(padded, corpus)
    assert set(names) == set(case.run.tokens)
    text, found = batch.attention_mask, []
    for name in names:
        export_run(case.run, tmp_path / name, fold=name)
        stock = load_strictly(tmp_path / name)
        assert type(stock).__module__.startswith("transformers.models.")
        ids = TableIds(*(np.full(len(names), row) for row in case.run.inventory.ids(name)))
        ours = logits(case.model, case.params, batch._replace(ids=ids))
        assert np.abs(ours - stock_logits(stock, batch))[text].max() < 1e-5
        found.append(ours[text])
    # Two languages differ, by far more than the tolerance, where their rows do.
    tables = case.params["conditioning"]
    codes = [dict(zip(("language", "script"), name.split("_"), strict=True)) for name in names]
    used = [[code[table] for table in tables] for code in codes]
    differ = [np.abs(ours - found[0]).max() > 1e-3 for ours in found]
    assert differ == [rows != used[0] for rows in used]


def test_full_model_gives_our_logits(case, corpus, padded, logits, stock_logits, load_strictly):
    names, batch = case.batch(padded, corpus)
    model, text = load_strictly(case.folder), batch.attention_mask
    ours = logits(case.model, case.params, batch)
    by_name = stock_logits(model, batch, language=names)
    assert np.abs(ours - by_name)[text].max() < 1e-5
    rows = {
        "language": torch.tensor(batch.ids.language).long(),
        "script": torch.tensor(batch.ids.script).long(),
    }
    np.testing.assert_array_equal(stock_logits(model, batch, **rows), by_name)


@functools.partial(jax.jit, static_argnums=(0, 1))
def masked_loss(model, vocabulary, params, batch, keys):
    objective = MaskedLm(model, vocabulary, ObjectiveConfig(mask_rate=0.4))
    examples = objective.prepare(keys, batch)
    return examples, *objective.loss(params, examples, None)[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["trained", "xlm-roberta-xl", "bert", "input"], indirect=True)
def test_full_model_has_our_loss(case, corpus, padded, load_strictly):
    names, batch = case.batch(padded, corpus)
    keys = jax.random.split(jax.random.key(0), len(names))
    vocabulary = case.run.tokenizer.vocabulary
    masked, loss, count = masked_loss(case.model, vocabulary, case.params, batch, keys)
    assert count.sum() > 10

    labels = np.full(batch.tokens.shape, -100)
    for row, chosen in enumerate(np.asarray(masked.weights)):
        labels[row, masked.positions[row][chosen]] = masked.targets[row][chosen]
    theirs = load_strictly(case.folder)(
        input_ids=torch.tensor(np.asarray(masked.inputs)).long(),
        attention_mask=torch.tensor(batch.attention_mask).long(),
        labels=torch.tensor(labels),
        language=names,
    ).loss
    assert float(loss.sum() / count.sum()) == pytest.approx(theirs.item(), abs=1e-5)


def test_names_and_vectors(case):
    """The tables for analysis, each with the names of its rows, are those that the model uses."""
    tensors = load_file(case.folder / "model.safetensors")
    config = json.loads((case.folder / "config.json").read_text())
    names = json.loads((case.folder / "inventory.json").read_text())
    assert names["language_scripts"] == sorted(case.run.tokens)
    assert names["languages"] == list(case.run.inventory.languages)
    assert names["scripts"] == list(case.run.inventory.scripts)
    with np.load(case.folder / "language_script_vectors.npz", allow_pickle=False) as arrays:
        labelled = dict(arrays)
    tables = case.params["conditioning"]
    assert set(labelled) == {name for table in tables for name in (f"{table}s", f"{table}_vectors")}
    for table, tensor in (("language", "lang_type"), ("script", "script_type")):
        found = [name for name in tensors if f"{tensor}_embeddings" in name]
        assert len(found) == (table in tables)
        assert config[f"{table}s"] == (names[f"{table}s"] if found else [])
        if found:
            assert labelled[f"{table}s"].tolist() == names[f"{table}s"]
            np.testing.assert_array_equal(labelled[f"{table}_vectors"], tables[table])
            np.testing.assert_array_equal(tensors[found[0]], tables[table])


def test_code_on_the_model_cards_runs(case, tmp_path, load_strictly):
    """``load_strictly`` keeps the code of the folder out of the user's cache."""
    export_run(case.run, tmp_path / "folded", fold="qaa_Latn")
    for folder, result in ((case.folder, "logits"), (tmp_path / "folded", "fill_mask")):
        card = (folder / "README.md").read_text("utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        found = {"DIR": str(folder)}
        exec(code, found)
        assert result in found
    assert "qaa_Latn folded in" in card


# Forms that a run does not have


@pytest.fixture
def export_refused(command_refused) -> Callable[..., str]:
    """``export_refused(run, output, *options)``: the one line, not one of argparse's."""

    def export_refused(run: Run, output: Path, *options: str) -> str:
        line = command_refused("export", "--run", run.path, "--output", output, *options)
        assert line.startswith("langsamp: "), line
        return line

    return export_refused


@pytest.mark.parametrize("case", ["input"], indirect=True)
def test_vectors_at_the_input_have_no_universal_form(case, tmp_path, export_refused):
    line = export_refused(case.run, tmp_path / "out")
    assert "--fold" in line and "--full" in line and str(case.run.path) in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_language_suggests_known_ones(trained_run, tmp_path, export_refused):
    for name, hint in (
        ("qxa_Latn", "no language 'qxa'; did you mean qa"),
        ("qaa_Lato", "no script 'Lato'; did you mean Latn?"),
        ("german", "for example deu_Latn"),
    ):
        assert hint in export_refused(trained_run, tmp_path / "out", "--fold", name)
    assert list(tmp_path.iterdir()) == []


def test_run_without_vectors(store_path, make_run, tmp_path, export_refused):
    run = make_run(store_path, placement="none")
    for options in (["--fold", "qaa_Latn"], ["--full"]):
        line = export_refused(run, tmp_path / "out", *options)
        assert "no language and script vectors" in line
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_left_alone(trained_run, tmp_path, export_refused):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    assert str(tmp_path / "out") in export_refused(trained_run, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_full_disk_leaves_nothing(trained_run, small_disk, export_refused):
    """The disk has room for the tokenizer, not for the weights."""
    line = export_refused(trained_run, small_disk / "out", "--full")
    assert "disk is full" in line
    assert list(small_disk.iterdir()) == []

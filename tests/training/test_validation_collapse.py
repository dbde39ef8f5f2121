"""How alike the encoder's vectors are: worked out pair by pair; an encoder that says nothing."""

import json

import jax
import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.data.feed import Rows
from langsamp_jax.data.store import Store
from langsamp_jax.languages.inventory import EMPTY, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.training.config import rate_warnings
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.validation import SENTENCE_COSINE as NAME
from langsamp_jax.training.validation import LossEvaluator, SentenceCosine, collapse_warning
from tests.tiny import SIZES, model_of_store, random_params

MODEL = ModelConfig(**SIZES, hidden_dropout=0.5)  # which must not be used


@pytest.fixture(scope="module")
def store(store_path) -> Store:
    return Store(store_path)


@pytest.fixture(scope="module")
def model(store):
    return model_of_store(store, MODEL)


def with_last_norm(params, **changed):
    """Parameters whose last layer ends with another LayerNorm."""
    layers = params["encoder"]["layers"]
    norm = {name: leaf.copy() for name, leaf in layers["output_layer_norm"].items()}
    for name, value in changed.items():
        norm[name][-1] = value(norm[name][-1])
    layers = {**layers, "output_layer_norm": norm}
    return {**params, "encoder": {**params["encoder"], "layers": layers}}


@pytest.fixture(scope="module")
def params(model):
    """Of an encoder whose states differ: they are those of the words, with little added to them."""
    params = jax.tree.map(lambda leaf: 0.1 * leaf, random_params(model))
    params = {**params, "word_embeddings": 100 * params["word_embeddings"]}
    params["encoder"]["layer_norm"]["scale"] += 1
    params["encoder"]["layers"]["attention_layer_norm"]["scale"] += 1
    return with_last_norm(params, scale=np.ones_like, bias=np.zeros_like)


@pytest.fixture(scope="module")
def cosine(store, model):
    """``cosine(batch_size)``: the evaluator; one, but for the size, for all tests."""

    def cosine(batch_size: int = 16, max_rows: int | None = 2) -> SentenceCosine:
        objective = MaskedLm(model, store.manifest.vocabulary, ObjectiveConfig())
        inventory = EMPTY.extended(store.manifest.names)
        sharding = batch_sharding(make_mesh(MeshConfig()))
        parts = store.split("validation"), inventory, sharding, batch_size, max_rows
        return SentenceCosine(model, LossEvaluator(objective, *parts))

    return cosine


@pytest.fixture(scope="module")
def vectors(store, model):
    """``vectors(params, rows)``: of each row the mean of its states, float64."""

    @jax.jit
    def states(params, tokens, valid):
        ids = TableIds(*np.zeros((2, len(tokens)), np.int32))
        return model.apply({"params": params}, tokens, valid, ids, method=model.encode)

    def vectors(params, rows) -> np.ndarray:
        tokens, lengths = store.split("validation").read(*rows)
        valid = np.arange(tokens.shape[1]) < lengths[:, None]
        found = np.asarray(states(params, tokens, valid), np.float64)
        return np.array([row[:n].mean(axis=0) for row, n in zip(found, lengths, strict=True)])

    return vectors


@pytest.mark.parametrize("batch_size", [5, 16])
def test_the_mean_over_all_pairs(batch_size, store, params, cosine, vectors):
    evaluate = cosine(batch_size)
    assert set(evaluate.rows.language) == {*range(len(store.manifest.names))}
    x = vectors(params, evaluate.rows)
    x /= np.sqrt((x**2).mean(axis=0))
    products = x @ x.T / x.shape[1]
    expected = products[~np.eye(len(x), dtype=bool)].mean()
    assert evaluate(params) == {NAME: pytest.approx(expected, abs=1e-5)}
    assert 0.05 < expected < 0.95


def test_one_state_for_everything_is_a_collapse(params, cosine):
    evaluate = cosine()
    collapsed = with_last_norm(params, scale=np.zeros_like, bias=np.ones_like)
    near = with_last_norm(params, scale=lambda scale: 0.03 * scale, bias=np.ones_like)
    assert evaluate(collapsed)[NAME] == pytest.approx(1, abs=1e-5)
    assert 0.95 < evaluate(near)[NAME] < 1
    for wrecked in (collapsed, near):
        line = collapse_warning(1200, evaluate(wrecked))
        assert line.startswith("step 1,200: ") and "optimizer.learning_rate" in line
    assert collapse_warning(1200, evaluate(params)) is None


def test_a_few_large_dimensions_are_no_collapse(params, cosine, vectors):
    """XLM-R has two or so; raw cosines are near 1 there, whatever the texts."""
    evaluate = cosine()
    large = with_last_norm(params, bias=lambda bias: bias + 100 * (np.arange(len(bias)) < 2))
    x = vectors(large, evaluate.rows)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert (x @ x.T).min() > 0.99
    assert evaluate(large)[NAME] < evaluate(params)[NAME] + 2 / MODEL.hidden_size
    assert collapse_warning(1, evaluate(large)) is None


def test_one_row_has_nothing_to_compare_with(params, cosine):
    evaluate = cosine()
    evaluate.rows = Rows(*(field[:1] for field in evaluate.rows))
    assert evaluate(params) == {}
    assert collapse_warning(1, {}) is None


def test_no_more_rows_than_it_needs(store, cosine):
    rows = cosine(16, None).rows
    assert len({*zip(*rows, strict=True)}) == len(rows.row) == 64
    assert store.split("validation").rows.sum() > 64


def test_a_training_writes_it(trained_run):
    lines = [json.loads(line) for line in open(trained_run.path / "metrics.jsonl")]
    measured = {line["step"]: line[NAME] for line in lines if NAME in line}
    assert measured.keys() == {2, 4} == {line["step"] for line in lines if "eval/loss" in line}
    assert all(-1 < value < 1 for value in measured.values())


# Rates


def test_a_rate_from_scratch_for_trained_weights():
    assert rate_warnings(OptimizerConfig(), "start") == []
    assert rate_warnings(OptimizerConfig(learning_rate=2e-4), "start") == []
    assert rate_warnings(OptimizerConfig(learning_rate=1e-2), None) == []
    (line,) = rate_warnings(OptimizerConfig(learning_rate=1e-3), "start")
    assert "optimizer.learning_rate = 0.001" in line and "continued.gin" in line


@pytest.mark.parametrize("gin_file", ["small_text.gin", "continued.gin"])
def test_the_command_warns(gin_file, trained_run, store_path, capsys):
    start = trained_run.path.with_name("start")
    call = ["train", "--gin_file", gin_file, "--data", store_path, "--init_from", start]
    assert main([*map(str, call), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert ("continued.gin" in said) == (gin_file == "small_text.gin")

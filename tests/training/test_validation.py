"""The validation loss: sums by language-script, the same however the rows are cut into batches."""

import types

import jax
import numpy as np
import pytest

from langsamp_jax.data.store import Store
from langsamp_jax.languages.inventory import EMPTY, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import Masking, ObjectiveConfig, mask_rows
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.training.validation import VALIDATION_SEED, LossEvaluator
from tests.tiny import SIZES, model_of_store, random_params

MODEL = ModelConfig(**SIZES, hidden_dropout=0.5)  # evaluation must not use it
OBJECTIVE = ObjectiveConfig(logits_at_once=10_000)


@pytest.fixture(scope="module")
def store(store_path) -> Store:
    return Store(store_path)


@pytest.fixture(scope="module")
def model(store) -> LangSamp:
    return model_of_store(store, MODEL)


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def evaluator(store: Store, model: LangSamp, batch_size: int, max_rows=None) -> LossEvaluator:
    return LossEvaluator(
        MaskedLm(model, store.manifest.vocabulary, OBJECTIVE),
        store.split("validation"),
        EMPTY.extended(store.manifest.names),
        batch_sharding(make_mesh(MeshConfig())),
        batch_size,
        max_rows,
    )


@pytest.fixture(scope="module")
def one_by_one(store, model, params):
    """[(language, row, loss, targets)]: each row alone, from the logits of all its positions."""
    split, vocabulary = store.split("validation"), store.manifest.vocabulary
    inventory = EMPTY.extended(store.manifest.names)

    @jax.jit
    def nats(params, key, tokens, valid, ids):
        masked = mask_rows(key[None], tokens[None], valid[None], vocabulary, OBJECTIVE)
        logits = model.apply({"params": params}, masked.inputs, valid[None], ids)
        return masked, -jax.nn.log_softmax(logits)[0]

    records = []
    for language, name in enumerate(split.names):
        ids = TableIds(*(np.array([row], np.int32) for row in inventory.ids(name)))
        for row in range(split.rows[language]):
            tokens, (length,) = split.read(np.array([language]), np.array([row]))
            key = jax.random.fold_in(jax.random.key(VALIDATION_SEED), language)
            valid = np.arange(split.sequence_length) < length
            fields, cost = nats(params, jax.random.fold_in(key, row), tokens[0], valid, ids)
            masked, cost = (
                Masking(*(np.asarray(field[0]) for field in fields)),
                np.asarray(cost),
            )
            chosen = zip(masked.positions, masked.targets, masked.weights, strict=True)
            loss = sum(cost[position, target] for position, target, counts in chosen if counts)
            records.append((language, row, loss, masked.weights.sum()))
    return records


def summed(records, languages: int, max_rows: int | None):
    loss, count = np.zeros(languages), np.zeros(languages)
    for language, row, row_loss, row_count in records:
        if max_rows is None or row < max_rows:
            loss[language] += row_loss
            count[language] += row_count
    return loss, count


# 13 divides neither the number of all rows nor that of the first two of each.
@pytest.mark.parametrize(("batch_size", "max_rows"), [(1, 2), (13, 2), (13, None), (512, None)])
def test_sums_are_those_of_the_rows_one_by_one(
    batch_size, max_rows, store, model, params, one_by_one
):
    loss, count = evaluator(store, model, batch_size, max_rows).totals(params)
    expected_loss, expected_count = summed(one_by_one, len(store.manifest.names), max_rows)
    np.testing.assert_array_equal(count, expected_count)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert count.min() > 0


def test_the_same_parameters_give_the_same_sums_again(store, model, params):
    evaluate = evaluator(store, model, 13, 2).totals
    first, other = evaluate(params), evaluate(jax.tree.map(lambda leaf: leaf * 0.5, params))
    np.testing.assert_array_equal(evaluate(params), first)
    assert (np.abs(other[0] - first[0]) > 1e-3).all()


def test_rows_are_the_first_of_each_language(store, model):
    rows = evaluator(store, model, 8, 2).rows
    available = store.split("validation").rows
    expected = [(i, row) for i, n in enumerate(available) for row in range(min(n, 2))]
    assert list(zip(rows.language, rows.row, strict=True)) == expected


def test_the_measures_are_the_means_of_the_sums(store, model, params):
    evaluate = evaluator(store, model, 13, 2)
    loss, count = evaluate.totals(params)
    measures, names = evaluate(params), store.manifest.names
    assert measures.keys() == {"eval/loss", *(f"eval/loss/{name}" for name in names)}
    assert measures["eval/loss"] == pytest.approx(loss.sum() / count.sum())
    for name, mean in zip(names, loss / count, strict=True):
        assert measures[f"eval/loss/{name}"] == pytest.approx(mean)


def test_the_loss_weighs_by_targets_and_leaves_out_what_has_none(store, model, monkeypatch):
    evaluate = evaluator(store, model, 8, 1)
    totals = np.array([6.0, 0.0, 40.0]), np.array([2.0, 0.0, 8.0])
    names = ("aaa_Latn", "bbb_Latn", "ccc_Latn")
    monkeypatch.setattr(evaluate, "split", types.SimpleNamespace(names=names))
    monkeypatch.setattr(evaluate, "totals", lambda params: totals)
    assert evaluate({}) == {
        "eval/loss": pytest.approx(4.6),
        "eval/loss/aaa_Latn": pytest.approx(3.0),
        "eval/loss/ccc_Latn": pytest.approx(5.0),
    }

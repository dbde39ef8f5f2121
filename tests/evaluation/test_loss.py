"""The validation loss of each language-script, and the unigram entropy beside it."""

import jax
import numpy as np
import pytest
from scipy import stats

from data_pipelines.packing.prepare import prepare
from langsamp_jax.data.feed import Rows
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.loss import evaluate_masked_lm, unigram_entropy
from langsamp_jax.languages.inventory import EMPTY, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import Masking, ObjectiveConfig, mask_rows
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.run import Run
from langsamp_jax.training.setup import start_run, table_rows
from langsamp_jax.training.validation import VALIDATION_SEED, LossEvaluator
from tests.tiny import SIZES, random_params

MODEL = ModelConfig(**SIZES, hidden_dropout=0.5)  # evaluation must not use it
OBJECTIVE = ObjectiveConfig(logits_at_once=10_000)


@pytest.fixture(scope="module")
def store(store_path) -> Store:
    return Store(store_path)


@pytest.fixture(scope="module")
def model(store) -> LangSamp:
    inventory = EMPTY.extended(store.manifest.names)
    sizes = len(inventory.languages), len(inventory.scripts)
    return LangSamp(MODEL, store.manifest.vocabulary.size, *sizes)


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


# The report on a run


@pytest.fixture
def run(store, model, tmp_path) -> Run:
    configs = Configs(train=TrainConfig(num_steps=1), model=MODEL, objective=OBJECTIVE)
    inventory = table_rows(store, None)
    return start_run(tmp_path / "run", store, inventory, configs.all(), None, started=0.0)


def test_the_report_adds_up(run, store, params, one_by_one):
    report = evaluate_masked_lm(run, params, store)
    loss, count = summed(one_by_one, len(store.manifest.names), None)
    assert report["loss"] == pytest.approx(loss.sum() / count.sum(), rel=1e-5)
    split, specials = store.split("validation"), store.manifest.vocabulary.special_ids
    for index, record in enumerate(report["languages"]):
        rows = np.arange(split.rows[index])
        tokens, lengths = split.read(np.full(len(rows), index), rows)
        words = [t for row, n in zip(tokens, lengths, strict=True) for t in row[:n]]
        words = [t for t in words if t not in specials]
        entropy = stats.entropy(np.unique(words, return_counts=True)[1])
        assert record == {
            "language": store.manifest.names[index],
            "rows": len(rows),
            "targets": count[index],
            "loss": pytest.approx(loss[index] / count[index], rel=1e-5),
            "unigram_entropy": pytest.approx(entropy),
        }
    assert len(report["languages"]) == len(store.manifest.names)
    own = [record["unigram_entropy"] for record in report["languages"]]
    assert report["unigram_entropy"] > np.average(own, weights=count)  # languages differ in words


def test_a_language_without_validation_rows_has_no_loss(run, store, params, monkeypatch):
    """As where so little text was held out that no line of a language was."""
    whole = store.split("validation")
    whole.rows[0] = 0
    monkeypatch.setattr(store, "split", lambda name: whole)
    first, *others = evaluate_masked_lm(run, params, store)["languages"]
    nothing = {"rows": 0, "targets": 0, "loss": None, "unigram_entropy": None}
    assert first == {"language": store.manifest.names[0], **nothing}
    assert all(record["loss"] > 0 for record in others)


def test_a_store_without_validation_rows_is_refused(run, params, corpus, tokenizer_file, tmp_path):
    prepare(corpus, tokenizer_file, tmp_path / "store", 32, validation_fraction=0.0)
    with pytest.raises(UserError, match="has no validation rows"):
        evaluate_masked_lm(run, params, Store(tmp_path / "store"))


# Unigram entropy and the mean


class Held:
    """Two languages with rows of 8 tokens; 0 to 3 and 99 are special, the rest is padding."""

    names = ("aaa_Latn", "bbb_Latn", "ccc_Latn")
    sequence_length = 8
    tokens = {
        (0, 0): [0, 10, 10, 11, 2, 0, 12, 2],
        (0, 1): [0, 10, 12, 3, 2, 77, 77, 77],
        (1, 0): [0, 10, 20, 20, 20, 20, 99, 2],
    }
    lengths = {(0, 0): 8, (0, 1): 5, (1, 0): 8}

    def read(self, language, row):
        keys = list(zip(language.tolist(), row.tolist(), strict=True))
        return np.array([self.tokens[k] for k in keys]), np.array([self.lengths[k] for k in keys])


VOCABULARY = Vocabulary(100, 0, 1, 2, 3, 99)


def test_unigram_entropy_is_that_of_the_counts():
    rows = Rows(np.array([0, 0, 1]), np.array([0, 1, 0]))
    together, own = unigram_entropy(Held(), rows, VOCABULARY)
    assert own[0] == pytest.approx(stats.entropy([3, 1, 2]))  # of 10, 11 and 12
    assert own[1] == pytest.approx(stats.entropy([1, 4]))  # of 10 and 20
    assert np.isnan(own[2])
    assert together == pytest.approx(stats.entropy([4, 1, 2, 4]))


def test_unigram_entropy_of_the_rows_asked_for_alone():
    _, own = unigram_entropy(Held(), Rows(np.array([0]), np.array([1])), VOCABULARY)
    assert own[0] == pytest.approx(np.log(2))


def test_the_loss_weighs_by_targets_and_leaves_out_what_has_none(store, model, monkeypatch):
    evaluate = evaluator(store, model, 8, 1)
    totals = np.array([6.0, 0.0, 40.0]), np.array([2.0, 0.0, 8.0])
    monkeypatch.setattr(evaluate, "split", Held())
    monkeypatch.setattr(evaluate, "totals", lambda params: totals)
    assert evaluate({}) == {
        "eval/loss": pytest.approx(4.6),
        "eval/loss/aaa_Latn": pytest.approx(3.0),
        "eval/loss/ccc_Latn": pytest.approx(5.0),
    }

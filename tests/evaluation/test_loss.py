"""The validation loss of each language-script, and the unigram entropy beside it."""

import numpy as np
import pytest
from scipy import stats

from data_pipelines.packing.prepare import prepare
from langsamp_jax.data.feed import Rows
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.loss import evaluate_masked_lm, unigram_entropy
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.run import Run
from langsamp_jax.training.setup import start_run, table_rows
from langsamp_jax.training.validation import LossEvaluator
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


def evaluator(store: Store, model: LangSamp) -> LossEvaluator:
    return LossEvaluator(
        MaskedLm(model, store.manifest.vocabulary, OBJECTIVE),
        store.split("validation"),
        EMPTY.extended(store.manifest.names),
        batch_sharding(make_mesh(MeshConfig())),
        13,  # other batches than the report's
    )


# The report on a run


@pytest.fixture
def run(store, model, tmp_path) -> Run:
    configs = Configs(train=TrainConfig(num_steps=1), model=MODEL, objective=OBJECTIVE)
    inventory = table_rows(store, None)
    return start_run(tmp_path / "run", store, inventory, configs.all(), None, started=0.0)


def test_the_report_adds_up(run, store, model, params):
    report = evaluate_masked_lm(run, params, store)
    loss, count = evaluator(store, model).totals(params)
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


# Unigram entropy


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

"""The validation loss of each language-script, and the loss of unigrams beside it."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from data_pipelines.packing.prepare import prepare
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation import loss as loss_module
from langsamp_jax.evaluation.loss import (
    UNIGRAM_TOKENS,
    masked_lm_measure,
    predicted_tokens,
    unigram_losses,
    unigram_shares,
)
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.training.checkpoint import model_of
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
    report = masked_lm_measure(run, model_of(run), store)(params)
    loss, count = evaluator(store, model).totals(params)
    predicted = predicted_tokens(evaluator(store, model))
    pairs = zip(shares_by_hand(store), predicted, strict=True)
    unigram = np.array([-np.log(shares[tokens]).sum() for shares, tokens in pairs])
    assert report["loss"] == pytest.approx(loss.sum() / count.sum(), rel=1e-5)
    assert report["unigram_loss"] == pytest.approx(unigram.sum() / count.sum())
    assert report["unigram_tokens"] == UNIGRAM_TOKENS
    for index, record in enumerate(report["languages"]):
        assert record == {
            "language": store.manifest.names[index],
            "rows": store.split("validation").rows[index],
            "targets": count[index],
            "loss": pytest.approx(loss[index] / count[index], rel=1e-5),
            "unigram_loss": pytest.approx(unigram[index] / count[index]),
        }
    assert len(report["languages"]) == len(store.manifest.names)


def shares_by_hand(store: Store) -> np.ndarray:
    """The formula of ``unigram_shares``, counted from the store: float64 [languages, tokens]."""
    train, vocabulary = store.split("train"), store.manifest.vocabulary
    counts = np.zeros((len(train.names), vocabulary.size))
    for index, rows in enumerate(train.rows):
        tokens, _ = train.read(np.full(rows, index), np.arange(rows))  # all of them are full
        np.add.at(counts[index], tokens.ravel(), 1)
    counts[:, list(vocabulary.special_ids)] = 0
    pooled, kinds = counts.sum(axis=0), np.count_nonzero(counts.sum(axis=0))
    uniform = 1 / (vocabulary.size - len(vocabulary.special_ids))
    pooled = (pooled + kinds * uniform) / (pooled.sum() + kinds)
    kinds = np.count_nonzero(counts, axis=1)[:, None]
    return (counts + kinds * pooled) / (counts.sum(axis=1)[:, None] + kinds)


@dataclasses.dataclass(frozen=True)
class Unigrams:
    """An objective that predicts the same tokens; its parameters are the share of each token."""

    masked_lm: MaskedLm

    def prepare(self, keys, batch):
        return self.masked_lm.prepare(keys, batch)

    def loss(self, params, examples, dropout_key):
        losses = -jnp.log(params[examples.targets]) * examples.weights
        return losses.sum(), (losses.sum(axis=1), examples.weights.sum(axis=1))


def test_a_model_that_knows_the_language_alone_is_at_the_baseline(store, model):
    """On the very tokens that the loss is of, so that it is 0 but for rounding."""
    masked = evaluator(store, model)
    own = LossEvaluator(
        Unigrams(MaskedLm(model, store.manifest.vocabulary, OBJECTIVE)),
        *(store.split("validation"), EMPTY.extended(store.manifest.names)),
        *(batch_sharding(make_mesh(MeshConfig())), 13),
    )
    sizes = store.manifest.vocabulary.special_ids, store.manifest.vocabulary.size
    baseline = unigram_losses(
        unigram_shares(store.split("train"), *sizes), predicted_tokens(masked)
    )
    for index, shares in enumerate(shares_by_hand(store)):
        loss, _ = own.totals(jnp.asarray(shares))
        assert loss[index] == pytest.approx(baseline[index], rel=1e-5)


def test_a_language_without_validation_rows_has_no_loss(run, store, params, monkeypatch):
    """As where so little text was held out that no line of a language was."""
    whole = store.split("validation")
    whole.rows[0] = 0
    monkeypatch.setattr(store, "split", lambda name: whole)
    first, *others = masked_lm_measure(run, model_of(run), store)(params)["languages"]
    nothing = {"rows": 0, "targets": 0, "loss": None, "unigram_loss": None}
    assert first == {"language": store.manifest.names[0], **nothing}
    assert all(record["loss"] > 0 for record in others)


def test_a_store_without_validation_rows_is_refused(run, params, corpus, tokenizer_file, tmp_path):
    prepare(corpus, tokenizer_file, tmp_path / "store", 32, validation_fraction=0.0)
    with pytest.raises(UserError, match="has no validation rows"):
        masked_lm_measure(run, model_of(run), Store(tmp_path / "store"))(params)


# The baseline


class Rows:
    """The split of languages of one row each; 0 to 3 and 99 are special tokens."""

    def __init__(self, *languages: Sequence[int]):
        self.names = [f"l{place}" for place in range(len(languages))]
        self.rows = np.array([len(tokens) > 0 for tokens in languages], np.int64)
        self.sequence_length = max(map(len, languages))
        self._languages = languages

    def read(self, language, row):
        assert not row.any()
        tokens = np.full((len(row), self.sequence_length), 77)  # of padding, not to be counted
        for place, index in enumerate(language):
            tokens[place, : len(self._languages[index])] = self._languages[index]
        return tokens, np.array([len(self._languages[index]) for index in language])


SPECIAL = (0, 1, 2, 3, 99)


def test_the_baseline_by_hand():
    """Own counts 10: 2 and 11: 1, pooled 10: 3, 11: 1, 20: 4, uniform over 95."""
    train = Rows([0, 10, 10, 11, 2, 99], [0, 10, 20, 20, 20, 20, 3, 2], [])
    predicted = [np.array([10, 20, 20]), np.array([20]), np.array([11, 12])]
    pooled = {10: 3 + 3 / 95, 11: 1 + 3 / 95, 20: 4 + 3 / 95, 12: 3 / 95}
    pooled = {token: value / (8 + 3) for token, value in pooled.items()}
    found = unigram_losses(unigram_shares(train, SPECIAL, 100), predicted)
    first = (2 + 2 * pooled[10]) / (3 + 2), 2 * pooled[20] / (3 + 2)
    assert found[0] == pytest.approx(-math.log(first[0]) - 2 * math.log(first[1]))
    assert found[1] == pytest.approx(-math.log((4 + 2 * pooled[20]) / (5 + 2)))
    assert found[2] == pytest.approx(-math.log(pooled[11]) - math.log(pooled[12]))  # no text of it


def test_shares_sum_to_one_and_have_no_zero():
    everything = np.setdiff1d(np.arange(100), SPECIAL)
    train = Rows([10, 10, 11], [20], [])
    shares = unigram_shares(train, SPECIAL, 100)
    losses = [unigram_losses(shares, [np.array([token])] * 3) for token in everything]
    assert np.exp(-np.array(losses)).sum(axis=0) == pytest.approx(1)


def test_of_much_text_as_much_is_counted_as_is_enough(monkeypatch):
    """In rows that are spaced evenly."""
    monkeypatch.setattr(loss_module, "UNIGRAM_TOKENS", 6)
    read = []

    class Long:
        names, rows, sequence_length = ("l0",), np.array([10]), 2

        def read(self, language, row):
            read.extend(row.tolist())
            return np.full((len(row), 2), 10), np.full(len(row), 2)

    unigram_losses(unigram_shares(Long(), SPECIAL, 100), [np.array([10])])
    assert read == [0, 3, 6]


def test_a_world_of_bigrams():
    """Who knows the token before is below the baseline by the mutual information of neighbours;
    who knows the language alone is at it, though far below the entropy of both languages pooled."""
    rng, size, words = np.random.default_rng(0), 100, 20
    texts, transitions, stationary = [], [], []
    for first in (10, 40):
        matrix = rng.dirichlet(np.full(words, 0.2), words)
        often = np.linalg.matrix_power(matrix, 1000)[0]
        text = [0]
        for uniform in rng.random(40_000):
            text.append(min(words - 1, np.searchsorted(np.cumsum(matrix[text[-1]]), uniform)))
        texts.append(first + np.array(text))
        transitions.append(matrix)
        stationary.append(often)
    train = Rows(*(text[:20_000] for text in texts))
    held_out = [text[20_001:] for text in texts]
    baseline = unigram_losses(unigram_shares(train, SPECIAL, size), held_out) / [
        len(text) for text in held_out
    ]
    for place, first in enumerate((10, 40)):
        text, often = texts[place][20_000:] - first, stationary[place]
        unigram = -np.log(often[text[1:]]).mean()
        bigram = -np.log(transitions[place][text[:-1], text[1:]]).mean()
        information = stats.entropy(often) - often @ stats.entropy(transitions[place], axis=1)
        assert unigram == pytest.approx(baseline[place], abs=0.01)
        assert baseline[place] - bigram == pytest.approx(information, abs=0.05) and bigram < 2
    pooled = stats.entropy(np.bincount(np.concatenate(held_out)))
    assert pooled - baseline.mean() > 0.6  # what the two languages differ by is not the model's

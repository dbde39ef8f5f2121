"""One update: what its loss is a mean of, and that parts of a batch add up to the whole."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from langsamp_jax.data.feed import Batch, Feed
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import EMPTY, TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import TrainConfig
from langsamp_jax.training.loop import check_finite
from langsamp_jax.training.run import require_rows_fit
from langsamp_jax.training.step import TrainState, make_initialise, make_train_step
from tests import tiny
from tests.tiny import LENGTH, SIZES, tiny_model

VOCABULARY = Vocabulary(300, 0, 1, 2, 3, 299)
ROWS = 16
MODEL = ModelConfig(**SIZES, hidden_dropout=0.0, attention_dropout=0.0)
# Rows of 1 to 32 valid tokens: 1 to 5 targets.
LENGTHS = np.array([32, 32, 32, 32, 30, 27, 20, 14, 9, 5, 3, 2, 1, 1, 32, 25])


random_params = functools.partial(tiny.random_params, scale=0.2)


def batch_of(tokens) -> Batch:
    valid = np.arange(LENGTH) < LENGTHS[:, None]
    ids = np.arange(ROWS) % 5, np.arange(ROWS) % 3
    return Batch(tokens.astype("i"), valid, TableIds(*(i.astype("i") for i in ids)))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of(np.random.default_rng(1).integers(4, 299, (ROWS, LENGTH)))


# Changes parameters by the gradient itself, so that noise in a gradient that should be 0 stays
# small; Adam would blow it up to the size of the learning rate.
SGD = optax.sgd(1.0)


@functools.cache
def step_of(parts: int = 1, seed: int = 0, model: ModelConfig = MODEL):
    """A compiled step, which takes most of the time here; it donates nothing."""
    config, shuffled = ObjectiveConfig(logits_at_once=10_000), model.tables == "shuffled"
    objective = MaskedLm(tiny_model(model), VOCABULARY, config, shuffled)
    step = make_train_step(objective, SGD, parts, seed)
    return jax.jit(step)


def start(params, step: int = 0) -> TrainState:
    return TrainState(np.int32(step), params, SGD.init(params))


def largest_difference(a, b) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_the_whole(batch):
    """The parts have unequal numbers of targets, so a mean of means would differ."""
    params, ends = random_params(tiny_model(MODEL)), []
    for parts in (1, 2, 4):
        state = start(params)
        for _ in range(3):
            state, metrics = step_of(parts)(state, batch)
        ends.append((state.params, metrics))
    assert largest_difference(ends[0][0], params) > 1e-2
    for end, metrics in ends[1:]:
        assert largest_difference(end, ends[0][0]) < 1e-6
        for name in metrics:
            np.testing.assert_allclose(metrics[name], ends[0][1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_loss_is_the_mean_over_all_targets(parts):
    """Without word embeddings a logit is the decoder's bias; with one piece a row, a row's loss
    is known whatever is masked."""
    params = random_params(tiny_model(MODEL))
    params["word_embeddings"] *= 0
    piece = np.arange(100, 100 + ROWS)
    bias = params["decoder_bias"][:300].astype("d")
    nats = math.log(np.exp(bias).sum()) - bias[piece]
    targets = np.array([max(1, round(0.15 * n)) for n in LENGTHS])
    assert len(set(targets)) == 5
    _, metrics = step_of(parts)(start(params), batch_of(np.repeat(piece[:, None], LENGTH, 1)))
    np.testing.assert_allclose(metrics["row_loss"], nats * targets, rtol=1e-5)
    expected = (nats * targets).sum() / targets.sum()
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - nats.mean()) > 1e-3  # it is no mean of rows


def test_the_gradient_norm_is_that_of_the_update(batch):
    params = random_params(tiny_model(MODEL))
    state, metrics = step_of()(start(params), batch)
    moved = jax.tree.map(lambda a, b: np.asarray(a, "d") - np.asarray(b, "d"), state.params, params)
    norm = math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved)))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


def test_a_step_is_counted_and_is_a_function_of_state_batch_and_seed(batch):
    params = random_params(tiny_model(MODEL))
    state, metrics = step_of()(start(params, step=7), batch)
    again, _ = step_of()(start(params, step=7), batch)
    assert int(state.step) == 8
    assert largest_difference(state.params, again.params) == 0
    # Another step or seed masks other tokens.
    for other in (step_of()(start(params, step=8), batch), step_of(seed=1)(start(params), batch)):
        assert abs(float(other[1]["loss"]) - float(metrics["loss"])) > 1e-4


def test_rows_that_no_one_uses_have_no_gradient(batch):
    """Language 4 and script 2 are in no row that has targets."""
    params = random_params(tiny_model(MODEL))
    ids = TableIds(np.arange(ROWS, dtype="i") % 4, np.zeros(ROWS, "i"))
    state, _ = step_of()(start(params), batch._replace(ids=ids))
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(axis=1), state.params["conditioning"], params["conditioning"]
    )
    np.testing.assert_array_equal(moved["language"] > 0, [True] * 4 + [False])
    np.testing.assert_array_equal(moved["script"] > 0, [True, False, False])


def test_dropout_is_on_where_the_model_has_it(batch):
    params = random_params(tiny_model(MODEL))
    dropped = dataclasses.replace(MODEL, hidden_dropout=0.3)
    _, with_dropout = step_of(model=dropped)(start(params), batch)
    _, without = step_of()(start(params), batch)
    assert abs(float(with_dropout["loss"]) - float(without["loss"])) > 1e-4
    assert np.isfinite(with_dropout["grad_norm"])


@pytest.mark.slow
def test_updates_lower_the_loss():
    """Rows of one repeated piece each: what is hidden can be read off the rest."""
    state = nn.unbox(jax.jit(make_initialise(tiny_model(MODEL), SGD, seed=0))())
    batch = batch_of(np.repeat(np.arange(100, 100 + ROWS)[:, None], LENGTH, 1))
    losses = []
    for _ in range(60):
        state, metrics = step_of()(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(math.log(300), abs=0.2)  # knows nothing yet
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


# What the loop checks


@pytest.fixture
def feed(store_path) -> Feed:
    store = Store(store_path)
    sampler = MixtureConfig().sampler(store.manifest, 0, num_steps=10, batch_size=4)
    inventory = EMPTY.extended(store.manifest.names)
    sharding = batch_sharding(make_mesh(MeshConfig()))
    return Feed(store.split("train"), sampler, inventory, 4, sharding)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan)])
def test_a_loss_that_is_not_finite_names_step_and_rows(loss, norm, feed):
    row_loss = np.array([1.0, loss, 1.0, 1.0])
    metrics = {"loss": loss, "grad_norm": norm, "row_loss": row_loss}
    language, row = feed.rows(4)
    named = [f"{feed.split.names[a]}:{b}" for a, b in zip(language, row, strict=True)]
    expected = ", ".join(named[1:2] if not math.isfinite(loss) else named)  # or all of them
    with pytest.raises(UserError, match=rf"^step 5: .*in rows {expected};"):
        check_finite(5, metrics, feed)


def test_a_finite_loss_is_returned(feed):
    metrics = {"loss": np.float32(2.5), "grad_norm": np.float32(1), "row_loss": np.zeros(4)}
    assert check_finite(1, metrics, feed) == 2.5


def test_rows_must_fit_the_positions(store_path):
    rows = store_path, Store(store_path).manifest.sequence_length
    require_rows_fit(*rows, ModelConfig(max_length=32))
    with pytest.raises(UserError, match=r"rows of 32 tokens, model\.max_length is 31"):
        require_rows_fit(*rows, ModelConfig(max_length=31))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("num_steps", 1e3),
        ("global_batch_size", 0),
        ("accumulation_steps", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("checkpoint_every", 0),
        ("eval_every", -5),
        ("eval_rows", 0),
        ("log_every", 0),
        ("log_every", True),
        ("max_to_keep", 0),
        ("early_stopping_patience", 0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(UserError, match=rf"^train\.{field} = .*: expected "):
        TrainConfig(**{field: value})


def after_a_step(batch: Batch, tables: str):
    model = dataclasses.replace(MODEL, tables=tables)
    return step_of(model=model)(start(random_params(tiny_model(MODEL))), batch)[0].params


@pytest.mark.slow
def test_frozen_tables_stay_as_they_began_and_all_else_learns(batch):
    begin, end = random_params(tiny_model(MODEL)), after_a_step(batch, "frozen")
    trained = after_a_step(batch, "trained")
    assert largest_difference(end["conditioning"], begin["conditioning"]) == 0
    assert largest_difference(trained["conditioning"], begin["conditioning"]) > 1e-4
    for part in ("encoder", "head", "word_embeddings"):
        assert largest_difference(end[part], trained[part]) == 0


@pytest.mark.slow
def test_shuffled_ids_are_those_of_the_batch_at_other_rows(batch):
    alike = batch._replace(ids=TableIds(np.full(ROWS, 2, np.int32), np.full(ROWS, 1, np.int32)))
    same = after_a_step(alike, "shuffled"), after_a_step(alike, "trained")
    assert largest_difference(*same) == 0
    mixed = after_a_step(batch, "shuffled"), after_a_step(batch, "trained")
    assert largest_difference(*mixed) > 1e-4

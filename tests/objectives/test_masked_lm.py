"""Masked language modelling: the loss of the hidden tokens, and the control that shuffles ids."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from langsamp_jax.data.feed import Batch
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.objectives.base import step_keys
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.text.tokenizer import Vocabulary

VOCABULARY = Vocabulary(300, 0, 1, 2, 3, 299)
MODEL = ModelConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=64,
    max_length=32,
)


def text(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, 299, (rows, length)).astype(np.int32)


def test_loss_is_the_cross_entropy_at_the_targets():
    model, rng = LangSamp(MODEL, 300, 3, 2), np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype("f"), shapes)
    tokens = text(4, 32)
    tokens[3] = 2  # nothing to predict
    valid = np.arange(32) < np.array([32, 32, 9, 32])[:, None]
    ids = TableIds(np.array([0, 1, 2, 1], "i"), np.array([0, 1, 0, 1], "i"))
    objective = MaskedLm(model, VOCABULARY, ObjectiveConfig())
    keys = jax.random.split(jax.random.key(0), 4)
    examples = objective.prepare(keys, Batch(tokens, valid, ids))
    masked = jax.tree.map(np.asarray, examples)

    @jax.jit
    def gradient(params):
        def total(params):
            return objective.loss(params, examples, None)

        return jax.grad(total, has_aux=True)(params)

    gradients, (loss, count) = gradient(params)
    np.testing.assert_array_equal(count, [5, 5, 1, 0])
    logits = model.apply({"params": params}, masked.inputs, valid, ids)
    nats = -np.asarray(jax.nn.log_softmax(logits))
    for row in range(4):
        pairs = zip(masked.positions[row], masked.targets[row], masked.weights[row], strict=True)
        expected = sum(nats[row, position, target] for position, target, counts in pairs if counts)
        assert float(loss[row]) == pytest.approx(expected, rel=1e-5)
    assert loss[3] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def pairs(ids: TableIds) -> list[tuple[int, int]]:
    return list(zip(*(np.asarray(rows).tolist() for rows in ids), strict=True))


def test_shuffled_ids_are_a_permutation_of_the_pairs_of_the_batch():
    """Language and script go together, and the masks are those of the unshuffled batch."""
    rows = 32
    ids = TableIds(np.arange(rows, dtype="i"), np.arange(100, 100 + rows, dtype="i"))
    batch = Batch(text(rows, 16), np.ones((rows, 16), bool), ids)
    plain = MaskedLm(LangSamp(MODEL, 300, rows, 200), VOCABULARY, ObjectiveConfig())
    shuffled, orders = dataclasses.replace(plain, shuffle_ids=True), []
    for step in (0, 1):
        keys, _ = step_keys(0, step, rows)
        own, given = plain.prepare(keys, batch), shuffled.prepare(keys, batch)
        assert pairs(own.ids) == pairs(ids)
        orders.append(pairs(given.ids))
        assert sorted(orders[-1]) == pairs(ids) and orders[-1] != pairs(ids)
        for field in set(own._fields) - {"ids"}:
            np.testing.assert_array_equal(getattr(given, field), getattr(own, field))
    assert orders[0] != orders[1]

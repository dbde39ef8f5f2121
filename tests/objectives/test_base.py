"""The keys of a step: what is random in one place of it has no part in another."""

import jax
import numpy as np
import pytest

from langsamp_jax.data.feed import Batch
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.base import step_keys
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.text.tokenizer import Vocabulary

ROWS, PARTS = 8, 4


def test_keys_are_a_function_of_seed_and_step_and_no_two_are_alike():
    seen = set()
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        row_keys, dropout_key = step_keys(seed, step, ROWS)
        again = step_keys(seed, step, ROWS)
        for keys, same in zip((row_keys, dropout_key), again, strict=True):
            np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(same))
        seen |= {_data(key) for key in (*row_keys, dropout_key)}
    assert len(seen) == 3 * (ROWS + 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_key_of_a_step_is_used_twice(seed, monkeypatch):
    """Rows, dropout, its parts, and what ``prepare`` makes of a row's key: choice, action, piece
    and shuffle. Every key that a draw takes is recorded."""
    drawn: list[tuple[int, ...]] = []
    for name in ("uniform", "randint"):
        monkeypatch.setattr(jax.random, name, _recording(getattr(jax.random, name), drawn))
    ids = TableIds(np.arange(ROWS, dtype="i"), np.zeros(ROWS, "i"))
    batch = Batch(np.full((ROWS, 16), 77, np.int32), np.ones((ROWS, 16), bool), ids)
    model = LangSamp(ModelConfig(), 300, ROWS, 1)
    objective = MaskedLm(model, Vocabulary(300, 0, 1, 2, 3, 299), ObjectiveConfig(), True)
    row_keys, dropout_key = step_keys(seed, 5, ROWS)
    objective.prepare(row_keys, batch)
    jax.effects_barrier()
    assert len(drawn) == 4 * ROWS
    parts = jax.random.split(dropout_key, PARTS)
    keys = [*drawn, *(_data(key) for key in (*row_keys, dropout_key, *parts))]
    assert len(set(keys)) == len(keys) == 4 * ROWS + ROWS + 1 + PARTS


def _recording(draw, drawn: list[tuple[int, ...]]):
    def recorded(key, *arguments, **options):
        data = jax.random.key_data(key)
        jax.debug.callback(lambda value: drawn.append(tuple(value.ravel().tolist())), data)
        return draw(key, *arguments, **options)

    return recorded


def _data(key: jax.Array) -> tuple[int, ...]:
    return tuple(jax.random.key_data(key).ravel().tolist())

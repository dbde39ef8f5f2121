"""Masking, and the cross-entropy that never holds all the logits."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats

from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.objectives.masked_lm import MaskedExamples, MaskedLm
from langsamp_jax.objectives.masking import Masking, ObjectiveConfig, mask_rows
from langsamp_jax.text.tokenizer import Vocabulary
from tests.tiny import random_params, tiny_model

VOCABULARY = Vocabulary(300, 0, 1, 2, 3, 299)
MASK = VOCABULARY.mask_id
PIECES = np.arange(4, 299)  # all that stands for text
CONFIG = ObjectiveConfig()


@functools.partial(jax.jit, static_argnums=(2, 3))
def masking(keys, rows, vocabulary, config):
    return mask_rows(keys, *rows, vocabulary, config)


def mask(tokens, valid=None, seed=0, keys=None, vocabulary=VOCABULARY, config=CONFIG) -> Masking:
    """Masked rows as numpy arrays; all positions valid unless said otherwise."""
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    keys = jax.random.split(jax.random.key(seed), len(tokens)) if keys is None else keys
    tokens = np.asarray(tokens, np.int32)
    return Masking(*map(np.asarray, masking(keys, (tokens, valid), vocabulary, config)))


def chosen(masked: Masking) -> np.ndarray:
    """bool [batch, length]: the positions that count."""
    where = np.zeros(masked.inputs.shape, bool)
    for row, positions, weights in zip(where, masked.positions, masked.weights, strict=True):
        assert len(set(positions)) == len(positions)
        row[positions[weights]] = True
    return where


def text(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(PIECES, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("length", [1, 10, 32, 190, 512])
def test_a_full_row_has_exactly_k_targets(length):
    masked = mask(text(8, length))
    k = max(1, round(0.15 * length))
    assert CONFIG.num_targets(length) == k == masked.positions.shape[1]
    assert (chosen(masked).sum(axis=1) == k).all()


@pytest.mark.parametrize(("rate", "length"), [(0.14, 75), (0.55, 110), (1.0, 32)])
def test_other_rates_give_exactly_k_targets_too(rate, length):
    """The first two are halves in decimal, where float32 rounds to another whole number."""
    config = ObjectiveConfig(mask_rate=rate)
    masked = mask(text(4, length), config=config)
    assert (masked.weights.sum(axis=1) == round(rate * length)).all()


def test_a_short_row_has_as_many_targets_as_a_full_row_of_its_length():
    lengths = np.arange(1, 513)
    valid = np.arange(512) < lengths[:, None]
    where = chosen(mask(text(512, 512), valid))
    assert not (where & ~valid).any()
    expected = [max(1, round(0.15 * n)) for n in range(1, 513)]
    np.testing.assert_array_equal(where.sum(axis=1), expected)


def test_special_tokens_are_never_chosen_however_many_there_are():
    tokens, rng = text(200, 64), np.random.default_rng(1)
    share = np.linspace(0, 1, 200)[:, None]  # from rows of text to rows of specials
    special = rng.random(tokens.shape) < share
    tokens[special] = rng.choice(VOCABULARY.special_ids, special.sum())
    valid = np.arange(64) < rng.integers(1, 65, (200, 1))
    maskable = valid & ~np.isin(tokens, VOCABULARY.special_ids)
    masked = mask(tokens, valid)
    where = chosen(masked)
    assert not (where & ~maskable).any()
    wanted = [max(1, round(0.15 * n)) for n in valid.sum(axis=1)]
    np.testing.assert_array_equal(where.sum(axis=1), np.minimum(wanted, maskable.sum(axis=1)))
    np.testing.assert_array_equal(masked.inputs[~where], tokens[~where])
    assert (maskable.sum(axis=1) < np.array(wanted)).any()  # the minimum was put to use


def test_a_row_with_nothing_to_mask_has_weight_0():
    tokens = np.array([[0, 2, 0, 2, 3, 3, 299, 1], [0, 50, 2, 1, 1, 1, 1, 1], [7] * 8])
    valid = np.array([[1] * 8, [1] * 3 + [0] * 5, [0] * 8], bool)
    masked = mask(tokens, valid)
    np.testing.assert_array_equal(masked.weights.sum(axis=1), [0, 1, 0])
    np.testing.assert_array_equal(masked.inputs[[0, 2]], tokens[[0, 2]])
    assert masked.positions[1][masked.weights[1]] == 1
    assert masked.targets[1][masked.weights[1]] == 50


def test_targets_are_the_tokens_that_stood_there():
    tokens = text(50, 64)
    masked = mask(tokens)
    np.testing.assert_array_equal(
        masked.targets, np.take_along_axis(tokens, masked.positions, axis=1)
    )
    where = chosen(masked)
    np.testing.assert_array_equal(masked.inputs[~where], tokens[~where])
    # Of what is chosen, some stands unchanged: it is predicted like the rest.
    assert 0 < (masked.inputs[where] == tokens[where]).sum() < where.sum() / 4


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, MaskedExamples]:
    """76,000 targets, all of them the same piece."""
    tokens = np.full((4000, 128), 77)
    return tokens, mask(tokens, seed=3)


def assert_share(hits: int, total: int, share: float) -> None:
    assert abs(hits - share * total) <= 4 * np.sqrt(total * share * (1 - share))


def test_four_fifths_masked_a_tenth_random_a_tenth_kept(many):
    _, masked = many
    shown = masked.inputs[chosen(masked)]
    total, same_by_chance = 4000 * 19, 0.1 / len(PIECES)
    assert len(shown) == total
    assert_share((shown == MASK).sum(), total, 0.8)
    assert_share((shown == 77).sum(), total, 0.1 + same_by_chance)
    assert_share(((shown != MASK) & (shown != 77)).sum(), total, 0.1 - same_by_chance)


@pytest.mark.parametrize(("mask_share", "random_share"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.25)])
def test_shares_are_settings(mask_share, random_share):
    config = ObjectiveConfig(mask_share=mask_share, random_share=random_share)
    masked = mask(np.full((500, 128), 77), config=config)
    shown = masked.inputs[chosen(masked)]
    changed = (shown != MASK) & (shown != 77)
    assert_share((shown == MASK).sum(), len(shown), mask_share)
    assert_share(changed.sum(), len(shown), random_share * (1 - 1 / len(PIECES)))


def test_random_replacements_are_uniform_over_the_pieces(many):
    _, masked = many
    shown = masked.inputs[chosen(masked)]
    drawn = shown[(shown != MASK) & (shown != 77)]
    counts = np.bincount(drawn, minlength=300)
    assert not counts[list(VOCABULARY.special_ids)].any()
    assert stats.chisquare(np.delete(counts[PIECES], 77 - 4)).pvalue > 1e-3


def test_special_ids_anywhere_in_the_vocabulary_are_stepped_over():
    vocabulary = Vocabulary(20, 19, 0, 5, 4, 10)
    config = ObjectiveConfig(mask_share=0.0, random_share=1.0)
    masked = mask(np.full((500, 128), 7), vocabulary=vocabulary, config=config)
    counts = np.bincount(masked.inputs[chosen(masked)], minlength=20)
    assert not counts[list(vocabulary.special_ids)].any()
    pieces = sorted(set(range(20)) - set(vocabulary.special_ids))
    assert stats.chisquare(counts[pieces]).pvalue > 1e-3


def test_positions_are_uniform(many):
    _, masked = many
    counts = chosen(masked).sum(axis=0)
    # K of 128 without replacement: smaller variance than independent draws would have
    assert stats.chisquare(counts).pvalue > 1e-3
    halves = masked.positions % 2 == 0
    treated = np.take_along_axis(masked.inputs, masked.positions, axis=1) == MASK
    assert abs(treated[halves].mean() - treated[~halves].mean()) < 0.02  # place and fate unrelated


def test_a_rows_masks_depend_on_its_own_key_alone():
    tokens, keys = text(16, 64), jax.random.split(jax.random.key(5), 16)
    together = mask(tokens, keys=keys)
    order = np.random.default_rng(0).permutation(16)
    shuffled = mask(tokens[order], keys=keys[order])
    others = mask(np.where(np.arange(16)[:, None] == 3, tokens, text(16, 64, seed=9)), keys=keys)
    alone = mask(tokens[3:4], keys=keys[3:4])
    for field in Masking._fields:
        whole = getattr(together, field)
        np.testing.assert_array_equal(getattr(shuffled, field), whole[order])
        np.testing.assert_array_equal(getattr(alone, field)[0], whole[3])
        np.testing.assert_array_equal(getattr(others, field)[3], whole[3])
    same = mask(np.repeat(tokens[:1], 16, axis=0), keys=keys)
    assert len({tuple(sorted(row)) for row in same.positions}) == 16  # and keys do matter


# The loss of a batch


def test_loss_is_the_cross_entropy_at_the_targets():
    model = tiny_model()
    params = random_params(model)
    tokens = text(4, 32)
    tokens[3] = 2  # nothing to predict
    valid = np.arange(32) < np.array([32, 32, 9, 32])[:, None]
    ids = TableIds(np.array([0, 1, 2, 1], "i"), np.array([0, 1, 0, 1], "i"))
    masked = mask(tokens, valid)
    examples = MaskedExamples(attention_mask=valid, ids=ids, **masked._asdict())
    objective = MaskedLm(model, VOCABULARY, CONFIG)

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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_rate", 0.0),
        ("mask_rate", 1.1),
        ("mask_rate", "0.15"),
        ("mask_share", -0.1),
        ("mask_share", 1.1),
        ("random_share", 0.3),
        ("random_share", -0.1),
        ("logits_at_once", 0),
        ("logits_at_once", 1.5),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(UserError, match=rf"^objective\.{field} = .*: expected "):
        ObjectiveConfig(**{field: value})

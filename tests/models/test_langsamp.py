"""What the model's output depends on, and what it must not depend on."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from tests.tiny import LANGUAGES, SCRIPTS, SIZES, random_params, tiny_model
from tests.tiny import VOCABULARY_SIZE as VOCAB

LENGTH = 20  # shorter than the model's


def make(**fields) -> LangSamp:
    return tiny_model(ModelConfig(**SIZES, **fields))


OUTPUT, INPUT, NONE = (make(placement=placement) for placement in ("output", "input", "none"))


def shapes_of(model: LangSamp):
    return nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, mask, ids):
    return model.apply({"params": params}, tokens, mask, ids)


@functools.partial(jax.jit, static_argnums=0)
def encoded(model, params, tokens, mask, ids):
    return model.apply({"params": params}, tokens, mask, ids, method=model.encode)


@pytest.fixture(scope="module")
def batch():
    """4 rows of 20, 20, 13 and 2 valid tokens, and two assignments of ids that differ in all."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, VOCAB, (4, LENGTH), dtype=np.int32)
    mask = np.arange(LENGTH) < np.array([20, 20, 13, 2])[:, None]
    first = TableIds(np.array([0, 1, 2, 3], np.int32), np.array([0, 1, 2, 0], np.int32))
    second = TableIds(np.array([4, 2, 1, 0], np.int32), np.array([1, 2, 0, 2], np.int32))
    return tokens, mask, first, second


def test_the_encoder_knows_the_ids_only_with_input_placement(batch):
    tokens, mask, first, second = batch
    for model, same in ((OUTPUT, True), (NONE, True), (INPUT, False)):
        params = random_params(model)
        a = encoded(model, params, tokens, mask, first)
        b = encoded(model, params, tokens, mask, second)
        for row in range(len(tokens)):
            assert np.array_equal(a[row], b[row]) == same, (model.config.placement, row)


def test_each_id_matters_to_the_logits_of_its_own_row_alone(batch):
    tokens, mask, (languages, scripts), _ = batch
    for model in (OUTPUT, INPUT):
        params = random_params(model)
        before = logits(model, params, tokens, mask, TableIds(languages, scripts))
        for ids in (
            ([4, *languages[1:]], scripts),
            (languages, [2, *scripts[1:]]),
        ):
            after = logits(
                model, params, tokens, mask, TableIds(*(np.array(i, np.int32) for i in ids))
            )
            assert np.abs(after[0] - before[0]).max() > 1e-3
            assert np.array_equal(after[1:], before[1:])


@pytest.mark.parametrize("model", [OUTPUT, INPUT], ids=["output", "input"])
def test_zero_tables_are_plain_xlmr(model, batch):
    """Bitwise, one operation at a time: the compiler may round two programs differently."""
    tokens, mask, ids, _ = batch
    params = random_params(model)
    plain = {name: part for name, part in params.items() if name != "conditioning"}
    zeros = jax.tree.map(np.zeros_like, params["conditioning"])

    def eager(model, params):
        return model.apply({"params": params}, tokens, mask, ids)

    given = eager(model, {**params, "conditioning": zeros})
    assert np.array_equal(given, eager(NONE, plain))
    assert np.abs(given - eager(model, params)).max() > 1e-3


@pytest.mark.parametrize("used", ["language", "script"])
def test_one_vector_alone_ignores_the_other_ids(used, batch):
    tokens, mask, first, second = batch
    model = make(use_language=used == "language", use_script=used == "script")
    params = random_params(model)
    assert list(params["conditioning"]) == [used]
    before = logits(model, params, tokens, mask, first)
    changed = {
        "language": logits(model, params, tokens, mask, TableIds(second[0], first[1])),
        "script": logits(model, params, tokens, mask, TableIds(first[0], second[1])),
    }
    other = "script" if used == "language" else "language"
    assert np.array_equal(changed[other], before)
    assert np.abs(changed[used] - before)[mask].max() > 1e-3


@pytest.mark.parametrize("model", [OUTPUT, INPUT, NONE], ids=["output", "input", "none"])
def test_tokens_at_padding_change_no_valid_logit(model, batch):
    tokens, mask, ids, _ = batch
    params = random_params(model)
    before = np.asarray(logits(model, params, tokens, mask, ids))
    for filler in (0, 1, VOCAB - 1, np.random.default_rng(2).integers(0, VOCAB, tokens.shape)):
        other = np.where(mask, tokens, filler).astype(np.int32)
        after = np.asarray(logits(model, params, other, mask, ids))
        assert np.array_equal(after[mask], before[mask])


def test_padded_and_unpadded_rows_agree(batch):
    tokens, mask, (languages, scripts), _ = batch
    params = random_params(OUTPUT)
    padded = logits(OUTPUT, params, tokens, mask, TableIds(languages, scripts))
    for row, length in enumerate(mask.sum(axis=1)):
        one = slice(row, row + 1)
        ids = TableIds(languages[one], scripts[one])
        alone = logits(OUTPUT, params, tokens[one, :length], mask[one, :length], ids)
        np.testing.assert_allclose(padded[row, :length], alone[0], atol=1e-5)


def test_valid_tokens_matter_everywhere(batch):
    """The counterpart: the mask hides padding and nothing else, and attention looks both ways."""
    tokens, mask, ids, _ = batch
    params = random_params(OUTPUT)
    before = np.asarray(logits(OUTPUT, params, tokens, mask, ids))
    for row, column in ((0, 0), (1, 19), (2, 12)):
        other = tokens.copy()
        other[row, column] = (tokens[row, column] + 1 - 4) % (VOCAB - 4) + 4
        difference = np.abs(np.asarray(logits(OUTPUT, params, other, mask, ids)) - before)
        assert (difference[row][mask[row]].max(axis=1) > 1e-6).all()


def test_features_and_decoder_make_up_the_logits(batch):
    tokens, mask, ids, _ = batch
    params = random_params(OUTPUT)
    hidden = encoded(OUTPUT, params, tokens, mask, ids)
    features = OUTPUT.apply({"params": params}, hidden, ids, method=OUTPUT.features)
    table, bias = params["word_embeddings"], params["decoder_bias"]  # tied
    by_hand = np.asarray(features) @ np.asarray(table)[:VOCAB].T + np.asarray(bias)[:VOCAB]
    whole = logits(OUTPUT, params, tokens, mask, ids)
    assert whole.shape == (*tokens.shape, VOCAB)
    np.testing.assert_allclose(whole, by_hand, atol=1e-5)


def test_bfloat16_computes_close_by_and_keeps_float32_where_it_counts(batch):
    tokens, mask, ids, _ = batch
    model = make(dtype="bfloat16")
    params = random_params(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(model))} == {jnp.dtype("float32")}
    assert encoded(model, params, tokens, mask, ids).dtype == jnp.bfloat16
    low, full = (np.asarray(logits(m, params, tokens, mask, ids))[mask] for m in (model, OUTPUT))
    assert low.dtype == np.float32
    assert np.corrcoef(low.ravel(), full.ravel())[0, 1] > 0.999


@pytest.mark.slow
def test_remat_changes_no_gradient(batch):
    tokens, mask, ids, _ = batch
    params = random_params(OUTPUT)

    def gradient(model):
        def loss(p):
            return (logits(model, p, tokens, mask, ids) ** 2).mean()

        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradient(make(remat="layer")),
        gradient(OUTPUT),
    )


@pytest.mark.slow
def test_dropout_needs_a_key_and_both_rates_count(batch):
    tokens, mask, ids, _ = batch
    params = random_params(OUTPUT)
    plain = encoded(OUTPUT, params, tokens, mask, ids)
    for rates in ((0.3, 0.0), (0.0, 0.3)):
        model = make(hidden_dropout=rates[0], attention_dropout=rates[1])

        @jax.jit
        def dropped(key, model=model):
            rngs = {"dropout": key}
            arguments = tokens, mask, ids, False
            return model.apply({"params": params}, *arguments, rngs=rngs, method=model.encode)

        a, again, b = (dropped(jax.random.key(seed)) for seed in (0, 0, 1))
        assert np.array_equal(a, again)
        assert np.abs(a - b).max() > 1e-3
        assert np.array_equal(encoded(model, params, tokens, mask, ids), plain)
    with pytest.raises(Exception, match="dropout"):
        model.apply({"params": params}, tokens, mask, ids, False, method=model.encode)


def test_layers_are_initialised_one_by_one():
    """A scan that shared its rng would give every layer the same kernel."""
    params = nn.unbox(jax.jit(lambda: init_params(OUTPUT, jax.random.key(0)))())
    kernel = np.asarray(params["encoder"]["layers"]["intermediate"]["kernel"])
    assert kernel.shape == (2, 32, 64)
    assert not np.array_equal(kernel[0], kernel[1])
    assert kernel.std() == pytest.approx(0.02, rel=0.1)
    tables = params["conditioning"]
    assert tables["language"].shape == (LANGUAGES, 32)
    assert tables["script"].shape == (SCRIPTS, 32)
    assert np.asarray(params["word_embeddings"]).std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", 32.0),
        ("num_hidden_layers", -1),
        ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("num_attention_heads", True),
        ("intermediate_size", 0),
        ("max_length", 0),
        ("hidden_dropout", 1.0),
        ("hidden_dropout", -0.1),
        ("attention_dropout", 1.5),
        ("layer_norm_eps", 0.0),
        ("initializer_range", float("nan")),
        ("placement", "middle"),
        ("use_language", 1),
        ("dtype", "float16"),
        ("remat", "all"),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(UserError, match=rf"^model\.{field} = .*: expected "):
        ModelConfig(**{**SIZES, field: value})


def test_a_placement_needs_a_vector_to_place():
    with pytest.raises(UserError, match=r"model\.placement"):
        ModelConfig(use_language=False, use_script=False)
    ModelConfig(placement="none", use_language=False, use_script=False)

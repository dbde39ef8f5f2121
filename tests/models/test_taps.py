"""Each site is PyTorch's, of every layer, and pooling is that of what was not pooled."""

import functools

import jax
import numpy as np
import pytest

from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.edits import with_blocks
from langsamp_jax.models.taps import SITES, mean_over_positions, share_above_zero, unchanged
from tests.tiny import LENGTH, SIZES, VOCABULARY_SIZE, random_params, tiny_model

EVERYTHING = tuple((site, unchanged) for site in SITES)
MODULES = {  # whose outputs they are, in transformers
    "heads": "attention.self",
    "attention": "attention.output.dense",
    "neurons": "intermediate",
    "feed_forward": "output.dense",
    "states": "",
}


@functools.partial(jax.jit, static_argnums=(0, 4))
def read(model, params, tokens, mask, taps, positions=None):
    inputs = tokens, mask, None, taps, positions
    return model.apply({"params": params}, *inputs, method=model.read)


@pytest.fixture(scope="module")
def batch():
    """3 rows of 32, 9 and 1 tokens."""
    tokens = np.random.default_rng(0).integers(4, VOCABULARY_SIZE, (3, LENGTH), dtype=np.int32)
    return tokens, np.arange(LENGTH) < np.array([32, 9, 1])[:, None]


@pytest.fixture(scope="module", params=["xlm-roberta", "xlm-roberta-xl"])
def model(request):
    return tiny_model(ModelConfig(**SIZES, architecture=request.param, placement="none"))


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.mark.parametrize("kind", ["xlm-roberta", "xlm-roberta-xl"])
def test_every_site_is_that_of_pytorch(kind, make_checkpoint, import_folder, tmp_path, batch):
    torch = pytest.importorskip("torch")
    theirs = make_checkpoint(tmp_path, kind, VOCABULARY_SIZE)
    outputs = {site: [] for site in SITES}

    def keep(site):
        return lambda _, __, y: outputs[site].append((y[0] if isinstance(y, tuple) else y).numpy())

    for layer in theirs.roberta.encoder.layer:
        for site, name in MODULES.items():
            layer.get_submodule(name).register_forward_hook(keep(site))
    tokens, mask = batch
    with torch.no_grad():
        inputs = {"attention_mask": torch.tensor(mask).long(), "output_hidden_states": True}
        states = theirs(torch.tensor(tokens).long(), **inputs).hidden_states
    outputs["states"] = [state.numpy() for state in states]

    found = read(*import_folder(tmp_path), tokens, mask, EVERYTHING)
    assert found.keys() == SITES.keys()
    for site, width in SITES.items():
        layers = 3 + (site == "states")
        assert found[site].shape == (layers, 3, LENGTH, SIZES[width])
        expected = np.stack(outputs[site])[:, mask]
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(found[site][:, mask], expected, rtol=0, atol=2e-6 * scale)
        assert expected.std() > 0.1


def test_states_are_the_outputs_of_models_of_fewer_blocks(model, params, batch):
    """Bit for bit, one operation at a time: the compiler may round two programs differently."""

    def eager(model, params, method, *inputs):
        return model.apply({"params": params}, *batch, *inputs, method=method)

    states = eager(model, params, model.hidden_states)
    for layers in (1, 2):
        lower, cut = with_blocks(model, params, range(layers))
        if not model.config.norm_first or layers == 2:  # else it normalises its last output
            assert np.array_equal(states[layers], eager(lower, cut, lower.encode))


@pytest.mark.parametrize("remat", ["products", "layer"])
def test_remat_changes_nothing(model, params, batch, remat):
    other = tiny_model(ModelConfig(**vars(model.config) | {"remat": remat}))
    kept = read(model, params, *batch, EVERYTHING)
    again = read(other, params, *batch, EVERYTHING)
    jax.tree.map(np.testing.assert_array_equal, kept, again)


def test_pooling_is_over_the_positions_asked_about(model, params, batch):
    tokens, mask = batch
    positions = mask & (np.random.default_rng(1).random(mask.shape) < 0.5)
    positions[2] = False
    whole = read(model, params, tokens, mask, EVERYTHING)
    for tap, values in ((mean_over_positions, lambda y: y), (share_above_zero, lambda y: y > 0)):
        pooled = read(model, params, tokens, mask, tuple((s, tap) for s in SITES), positions)
        for site in SITES:
            for row in range(2):
                expected = values(np.asarray(whole[site]))[:, row, positions[row]].mean(axis=1)
                scale = max(1, np.abs(expected).max())
                found = pooled[site][:, row]
                np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale)
            assert not np.asarray(pooled[site][:, 2]).any()  # no position: 0, not NaN


def test_a_tap_may_return_a_tree(model, params, batch):
    def both(values, positions):
        return {"mean": mean_over_positions(values, positions), "values": unchanged(values, None)}

    found = read(model, params, *batch, (("states", both), ("neurons", both)))
    alone = read(model, params, *batch, (("states", mean_over_positions),))
    np.testing.assert_allclose(found["states"]["mean"], alone["states"], rtol=0, atol=1e-5)
    assert found["states"]["values"].shape[0] == 3 and found["neurons"]["values"].shape[0] == 2

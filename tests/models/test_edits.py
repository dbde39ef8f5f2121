"""An edited model is the unedited one with something overwritten inside, as by PyTorch's hooks."""

import functools
import json

import jax
import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.models.edits import (
    Edit,
    apply_edits,
    clamp,
    parameter_digest,
    parse_edit,
    with_blocks,
)
from langsamp_jax.models.taps import SITES, unchanged
from tests.tiny import LENGTH, SIZES, VOCABULARY_SIZE, random_params, tiny_model

LAYERS, HEAD = 3, 8
NEURONS = SIZES["intermediate_size"]


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, mask):
    return model.apply({"params": params}, tokens, mask)


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, tokens, mask):
    taps = tuple((site, unchanged) for site in SITES)
    return model.apply({"params": params}, tokens, mask, None, taps, method=model.read)


@pytest.fixture(scope="module", params=["xlm-roberta", "xlm-roberta-xl"])
def pair(request, make_checkpoint, import_folder, tmp_path_factory):
    """A random model in PyTorch, and the same here with its parameters."""
    folder = tmp_path_factory.mktemp("model")
    theirs = make_checkpoint(folder, request.param, VOCABULARY_SIZE)
    return theirs, *import_folder(folder)


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(4, VOCABULARY_SIZE, (3, LENGTH), dtype=np.int32)
    return tokens, np.arange(LENGTH) < np.array([32, 9, 20])[:, None]


@pytest.fixture(scope="module")
def means(pair, batch):
    """Of each site the mean over all tokens of the batch, [layers, width]."""
    values = read(*pair[1:], *batch)
    return {site: np.asarray(values[site])[:, batch[1]].mean(axis=1) for site in SITES}


@pytest.fixture
def overwritten(pair, batch):
    """``overwritten((layer, module), change)``: PyTorch's logits where ``change`` is made of what a
    module gives."""
    torch = pytest.importorskip("torch")
    tokens, mask = (torch.tensor(part).long() for part in batch)

    def overwritten(*places):
        layers, hooks = pair[0].roberta.encoder.layer, []
        for layer, name, change in places:

            def hook(module, inputs, output, change=change):
                values = output[0] if isinstance(output, tuple) else output
                change(values)
                return output

            hooks.append(layers[layer].get_submodule(name).register_forward_hook(hook))
        with torch.no_grad():
            found = pair[0](tokens, attention_mask=mask).logits.numpy()
        for hook in hooks:
            hook.remove()
        return found

    return overwritten


def assert_same(ours, theirs, mask):
    theirs = theirs[mask]
    np.testing.assert_allclose(ours[mask], theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


def edited(pair, means, *texts):
    return apply_edits([parse_edit(text) for text in texts], *pair[1:], means)


def put(value, where=slice(None)):
    """A change of a tensor [..., width] in place."""
    torch = pytest.importorskip("torch")

    def change(values):
        values[..., where] = torch.tensor(np.asarray(value, np.float32))

    return change


def test_clamping_is_overwriting(pair, batch, overwritten, means, tmp_path):
    rng = np.random.default_rng(1)
    chosen = rng.random((LAYERS, NEURONS)) < 0.3
    value = rng.normal(0, 1, chosen.shape).astype(np.float32)
    np.savez(tmp_path / "neurons.npz", chosen=chosen, value=value)
    theirs = overwritten(
        *((i, "intermediate", put(value[i, chosen[i]], chosen[i])) for i in range(LAYERS))
    )
    model, params = edited(pair, means, f"neurons={tmp_path}/neurons.npz")
    assert_same(logits(model, params, *batch), theirs, batch[1])
    assert np.abs(theirs - overwritten())[batch[1]].max() > 0.1  # it matters
    some = clamp(pair[2], chosen, 0.5)  # one value for all
    theirs = overwritten(
        *((i, "intermediate", put(0.5, np.flatnonzero(chosen[i]))) for i in range(LAYERS))
    )
    assert_same(logits(model, some, *batch), theirs, batch[1])


@pytest.mark.parametrize("part", ["attention", "ffn"])
@pytest.mark.parametrize("how", ["zero", "mean"])
def test_a_constant_sub_layer(pair, batch, overwritten, means, part, how):
    module = {"attention": "attention.output.dense", "ffn": "output.dense"}[part]
    site = {"attention": "attention", "ffn": "feed_forward"}[part]
    value = np.zeros_like(means[site]) if how == "zero" else means[site]
    for text, layers in (("1", [1]), ("0-1", [0, 1]), ("all", [0, 1, 2])):
        theirs = overwritten(*((i, module, put(value[i])) for i in layers))
        ours = logits(*edited(pair, means, f"{part}@{text}={how}"), *batch)
        assert_same(ours, theirs, batch[1])


@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_a_rotation_leaves_the_norm_and_the_rest(pair, batch, means, part):
    site = {"attention": "attention", "ffn": "feed_forward"}[part]
    before = read(*pair[1:], *batch)
    after = read(*edited(pair, means, f"{part}@0=rotated"), *batch)
    ours, theirs = (np.asarray(values[site])[0, batch[1]] for values in (after, before))
    norms = np.linalg.norm(theirs, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), norms, rtol=1e-5)
    cosine = (ours * theirs).sum(axis=-1) / norms**2
    assert np.abs(cosine).max() < 0.8  # elsewhere
    # One rotation: it keeps the angles between what different tokens get.
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4 * norms.max() ** 2)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_a_constant_head(pair, batch, overwritten, means, how):
    where = slice(2 * HEAD, 3 * HEAD)
    value = means["heads"][1, where] if how == "mean" else 0
    theirs = overwritten((1, "attention.self", put(value, where)))
    assert_same(logits(*edited(pair, means, f"head@1.2={how}"), *batch), theirs, batch[1])


@pytest.mark.parametrize(
    "texts, order",
    [
        (["block@1"], [0, 2]),
        (["block@0-1=drop"], [2]),
        (["block@1=repeat"], [0, 1, 1, 2]),
        (["block@0=swap"], [1, 0, 2]),
        (["block@0", "block@2"], [1]),  # both numbers are of the model before any edit
        (["block@1=swap", "block@1"], [0, 2]),
    ],
)
def test_other_blocks(pair, batch, texts, order, means):
    torch = pytest.importorskip("torch")
    model, params = edited(pair, means, *texts)
    stack, whole = pair[0].roberta.encoder, pair[0].roberta.encoder.layer
    stack.layer = torch.nn.ModuleList([whole[i] for i in order])
    with torch.no_grad():
        tokens, mask = (torch.tensor(part).long() for part in batch)
        theirs = pair[0](tokens, attention_mask=mask).logits.numpy()
    stack.layer = whole
    assert_same(logits(model, params, *batch), theirs, batch[1])


def test_norms_without_scale_and_bias(pair, batch, means):
    torch = pytest.importorskip("torch")
    theirs, model, params = pair
    kept = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if ".layer.1." in name and "norm" in name.lower():
                tensor.fill_(float(name.endswith("weight")))
        tokens, mask = (torch.tensor(part).long() for part in batch)
        expected = theirs(tokens, attention_mask=mask).logits.numpy()
    theirs.load_state_dict(kept)
    assert_same(logits(*edited(pair, means, "norm@1"), *batch), expected, batch[1])


def test_a_table_without_difference():
    model = tiny_model()
    params = random_params(model)
    for table in ("language", "script"):
        rows = params["conditioning"][table]
        for how, value in (("zero", np.zeros_like(rows[0])), ("mean", rows.mean(axis=0))):
            _, other = apply_edits([parse_edit(f"{table}={how}")], model, params, {})
            changed = other["conditioning"].pop(table)
            np.testing.assert_allclose(changed, np.tile(value, (len(rows), 1)), atol=1e-6)
            assert other["conditioning"].items() <= params["conditioning"].items()


def test_no_edit_and_edits_that_undo_each_other_leave_the_very_parameters():
    model = tiny_model()
    params = random_params(model)
    assert apply_edits([], model, params, {}) == (model, params)
    twice = [parse_edit("block@0=swap")] * 2
    assert apply_edits(twice, model, params, {}) == (model, params)
    nothing = clamp(params, np.zeros((2, NEURONS), bool), 1.0)
    jax.tree.map(np.testing.assert_array_equal, nothing, params)


def test_its_own_mean_changes_nothing_of_a_constant(batch):
    """A sub-layer with no kernel gives its bias: that is its mean."""
    model = tiny_model()
    params = random_params(model)
    _, constant = apply_edits([parse_edit("ffn@0=zero")], model, params, {})
    bias = np.random.default_rng(0).normal(size=(2, SIZES["hidden_size"]))
    _, given = apply_edits([parse_edit("ffn@0=mean")], model, params, {"feed_forward": bias})
    _, again = apply_edits([parse_edit("ffn@0=mean")], model, constant, {"feed_forward": bias})
    jax.tree.map(np.testing.assert_array_equal, given, again)


@pytest.mark.parametrize(
    "text, edit",
    [
        ("attention@3=mean", Edit("attention", "mean", 3, 3)),
        ("ffn@0-2=zero", Edit("ffn", "zero", 0, 2)),
        ("ffn@all", Edit("ffn", "zero")),
        ("head@3.1", Edit("head", "zero", 3, 3, 1)),
        ("block@5", Edit("block", "drop", 5, 5)),
        ("norm@5", Edit("norm", "plain", 5, 5)),
        ("language", Edit("language", "zero")),
        ("neurons=a=b.npz", Edit("neurons", "a=b.npz")),
    ],
)
def test_the_grammar(text, edit):
    assert parse_edit(text) == edit
    assert parse_edit(str(edit)) == edit  # it is written as it is read


@pytest.mark.parametrize(
    "text",
    ["", "attention", "ffn@", "ffn@1=", "ffn@a", "head@1", "ffn@1.2", "script@1", "neurons", "x@1"],
)
def test_no_edit(text):
    with pytest.raises(UserError, match="expected a form like attention@3=mean"):
        parse_edit(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("ffn@2", "ffn@2=zero: the layers are 0 to 1"),
        ("ffn@1-0", "ffn@1-0=zero: the layers are 0 to 1"),
        ("head@1.4", "head@1.4=zero: the heads are 0 to 3"),
        ("block@all", "block@all=drop: no block is left"),
        ("block@1=swap", "block@1=swap: block 1 is the last"),
        ("block@0-1=swap", "block@0-1=swap: name one block"),
        ("ffn@1=drop", "ffn can be zero or mean or rotated, not drop"),
        ("script", "script=zero: the model has no script table"),
        ("neurons=no.npz", "no.npz cannot be read"),
        ("neurons=no.json:deu_Latn", "no.json cannot be read"),
    ],
)
def test_what_the_model_lacks(text, message):
    model = tiny_model()
    params = random_params(model)
    params["conditioning"].pop("script")
    with pytest.raises(UserError, match=message):
        apply_edits([parse_edit(text)], model, params, {})


def test_neurons_of_another_model(tmp_path):
    model = tiny_model()
    np.savez(tmp_path / "n.npz", chosen=np.ones((3, NEURONS), bool), value=np.ones((3, NEURONS)))
    with pytest.raises(UserError, match=r"is of another model: .* this one has 2 layers of 64"):
        apply_edits([Edit("neurons", str(tmp_path / "n.npz"))], model, random_params(model), {})
    whole = (tmp_path / "n.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    array = (tmp_path / "array.npy").read_bytes()
    for damaged in (b"no archive", whole[: len(whole) // 2], array, b""):
        (tmp_path / "n.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            apply_edits([Edit("neurons", str(tmp_path / "n.npz"))], model, random_params(model), {})


def test_the_neurons_of_a_language_in_a_result(tmp_path):
    model = tiny_model()
    params = random_params(model)
    result = {"digests": ["of step 0", parameter_digest(params)]}
    result["own_neurons"] = {"deu_Latn": [[0, 3], [1, 63]], "fra_Latn": []}
    (tmp_path / "neurons.json").write_text(json.dumps(result))
    edit = parse_edit(f"neurons={tmp_path}/neurons.json:deu_Latn")
    _, found = apply_edits([edit], model, params, {})
    chosen = np.zeros((2, NEURONS), bool)
    chosen[0, 3] = chosen[1, 63] = True
    jax.tree.map(np.testing.assert_array_equal, found, clamp(params, chosen, 0.0))
    # It is about the model before other edits.
    first = parse_edit("ffn@0")
    _, both = apply_edits([first, edit], model, params, {})
    _, other = apply_edits([edit, first], model, params, {})
    jax.tree.map(np.testing.assert_array_equal, both, other)


@pytest.mark.parametrize(
    ("changes", "language", "message"),
    [
        ({"digests": ["of another"]}, "deu_Latn", "is of another model, or of another step"),
        ({}, "ita_Latn", "has no neurons of ita_Latn; it has some of deu_Latn$"),
        ({}, "fra_Latn", "has no neurons of fra_Latn; it has some of deu_Latn$"),
        ({"digests": []}, "deu_Latn", "is no result of evaluate neurons"),
    ],
)
def test_a_result_that_has_none_for_this_model(changes, language, message, tmp_path):
    model = tiny_model()
    params = random_params(model)
    result = {"digests": [parameter_digest(params)]}
    result["own_neurons"] = {"deu_Latn": [[0, 3]], "fra_Latn": []}
    (tmp_path / "neurons.json").write_text(json.dumps(result | changes))
    edit = parse_edit(f"neurons={tmp_path}/neurons.json:{language}")
    with pytest.raises(UserError, match=message):
        apply_edits([edit], model, params, {})


def test_the_digest_is_of_every_byte():
    params = {"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)}
    other = {"a": params["a"], "b": np.nextafter(params["b"], 2, dtype=np.float32)}
    assert parameter_digest(params) == parameter_digest(jax.tree.map(jax.numpy.asarray, params))
    assert parameter_digest(params) != parameter_digest(other)


def test_blocks_of_the_original_are_untouched():
    model = tiny_model()
    params = random_params(model)
    before = jax.tree.map(np.copy, params)
    texts = ["ffn@0", "head@0.1", "norm@1", "language", "block@1=repeat"]
    apply_edits([parse_edit(text) for text in texts], model, params, {})
    with_blocks(model, params, [1, 1])
    jax.tree.map(np.testing.assert_array_equal, params, before)

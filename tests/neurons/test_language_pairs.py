"""Which languages are compared, over which pieces, and a neuron that must tell them apart."""

import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.batching import split_lines
from langsamp_jax.evaluation.encoder import sentence_reader
from langsamp_jax.models.edits import detectors
from langsamp_jax.models.taps import unchanged
from langsamp_jax.neurons.activations import all_tokens, firing
from langsamp_jax.neurons.language_pairs import (
    COMPARED,
    activation_reader,
    compared_languages,
    kind_of_pair,
    measure_halves,
    measure_pairs,
    measure_shared_pieces,
    planted_neuron,
    rank_disagreement,
    read_languages,
)
from langsamp_jax.neurons.selectivity import Draws, make_draws, ranks, separate

NAMES = ("qaa_Latn", "qab_Latn", "qaa_Cyrl")
N, EOS = 60, 2


@pytest.fixture(scope="module")
def text(corpus):
    """The same sentences in two languages, and in another script of the first."""
    files = sorted((corpus / "held_out").glob("*.txt"))
    twins = [f.stem for f in files if f.stem.startswith("qaa_")]
    other = next(f.stem for f in files if f.stem.endswith(twins[0][-5:]) and f.stem != twins[0])
    return {
        name: (corpus / "held_out" / f"{name}.txt").read_text("utf-8").splitlines()[:N]
        for name in (twins[0], other, twins[1])
    }


@pytest.fixture(scope="module")
def model(random_model):
    return random_model()


def test_two_languages_of_each_script_in_turn():
    assert compared_languages(["a_Latn", "b_Cyrl"]) == ["a_Latn", "b_Cyrl"]
    latin = [f"l{k:02}_Latn" for k in range(30)]
    names = [*latin, "c0_Cyrl", "c1_Cyrl", "c2_Cyrl", "d0_Deva", "x9_Latn", "x9_Thai"]
    found = compared_languages(names)
    # of those with a twin first: Latn (31), Thai (1); then Cyrl, Deva; then two more of Latn
    assert found == sorted(
        ["x9_Latn", "l00_Latn", "x9_Thai", "c0_Cyrl", "c1_Cyrl", "d0_Deva", "l01_Latn", "l02_Latn"]
    )
    assert compared_languages(names[::-1]) == found and len(found) == COMPARED
    kinds = [("a_Latn", "b_Latn"), ("a_Latn", "b_Cyrl"), ("a_Latn", "a_Cyrl")]
    assert [kind_of_pair(*pair) for pair in kinds] == [
        *("within_script", "across_scripts", "two_scripts"),
    ]


def test_languages_are_read_one_after_the_other(model, text):
    at = all_tokens(model.tokenizer)
    means = {name: np.zeros((3, N, 64), np.float32) for name in [*text][:2]}
    found = read_languages(activation_reader(model, at), text, means)
    for name, lines in text.items():
        values = sentence_reader(model, (("neurons", firing),), at)(lines, name).values["neurons"]
        assert found[name]["tokens"] == sum(len(ids) - 2 for ids in cut(model, lines))
        np.testing.assert_allclose(found[name]["rates"], values["share"].mean(axis=1), atol=1e-6)
        if name in means:
            np.testing.assert_array_equal(means[name], values["mean"])
    layers = model.params["encoder"]["layers"]
    broken = {**layers, "output": {**layers["output"], "bias": layers["output"]["bias"] * np.nan}}
    params = {**model.params, "encoder": {**model.params["encoder"], "layers": broken}}
    object.__setattr__(model, "params", params)
    try:
        with pytest.raises(UserError, match="not finite in qaa_"):
            read_languages(activation_reader(model, at), text, {})
    finally:
        whole = {**model.params["encoder"], "layers": layers}
        object.__setattr__(model, "params", {**model.params, "encoder": whole})


def cut(model, lines):
    return [
        ids if len(ids) <= 40 else np.append(ids[:39], EOS)
        for ids in split_lines(*model.tokenizer.encode(lines))
    ]


def test_pairs_and_halves_are_those_of_each_layer():
    rng, draws = np.random.default_rng(0), make_draws(N)
    means = rng.normal(size=(3, 2, N, 5)).astype(np.float32)
    pairs = measure_pairs(means, [(0, 2), (1, 2)], draws)
    assert pairs.separability.shape == (2, 2, 5)
    for place, (a, b) in enumerate([(0, 2), (1, 2)]):
        for layer in range(2):
            x, y = means[a, layer], means[b, layer]
            one = separate(x, y, ranks(x), ranks(y), draws)
            np.testing.assert_allclose(pairs.separability[place, layer], one.separability, 1e-6)
            np.testing.assert_array_equal(pairs.null[place, layer], one.null)
            np.testing.assert_array_equal(pairs.resampled[place, layer], one.resampled)
    halves = measure_halves(means, draws)
    assert halves.separability.shape == (3, 2, 5) and draws.first.sum() == N // 2
    x, y = means[2, 1, draws.first], means[2, 1, ~draws.first]
    first = Draws(*(drawn[..., : N // 2] for drawn in draws))
    own = separate(x, y, ranks(x), ranks(y), first)
    np.testing.assert_allclose(halves.separability[2, 1], own.separability, 1e-6)
    np.testing.assert_array_equal(halves.null[2, 1], own.null)
    orders = rank_disagreement(means[0], np.stack([means[0, 0], -means[0, 1]]))
    assert orders == pytest.approx([0, 2])


def test_shared_pieces_are_what_both_languages_use(model, text):
    """Against reading each sentence for itself; of twins in two scripts little is left."""
    pairs, draws = [tuple(text)[:2], tuple(text)[::2]], make_draws(N)
    found = measure_shared_pieces(model, text, pairs, all_tokens(model.tokenizer), draws)
    used = {name: {*np.concatenate(cut(model, lines)).tolist()} for name, lines in text.items()}
    everything = sentence_reader(model, (("neurons", unchanged),))
    specials = {*model.tokenizer.vocabulary.special_ids} - {3}
    one, other = pairs[0]
    sides, kept = [], []
    for name in (one, other):
        rows = []
        for line, ids in zip(text[name], cut(model, text[name]), strict=True):
            at = [k for k, i in enumerate(ids.tolist()) if i in used[one] & used[other] - specials]
            values = everything([line], name).values["neurons"][:, 0]
            rows.append(values[:, at].mean(axis=1) if at else None)
        sides.append(rows)
        kept.append([row is not None for row in rows])
    both = np.flatnonzero(np.all(kept, axis=0))
    shared = next(pair for pair in found if pair["pair"] == 0)
    assert shared["sentences"] == len(both) >= 20
    a, b = (np.stack([side[i] for i in both], axis=1) for side in sides)
    for layer in range(3):
        own = type(draws)(*(drawn[..., both] for drawn in draws))
        alone = separate(a[layer], b[layer], ranks(a[layer]), ranks(b[layer]), own)
        assert shared["separability"][layer] == pytest.approx(alone.separability.mean(), abs=5e-3)
        assert shared["null"][layer] == pytest.approx(alone.null.mean(), abs=5e-3)
    assert all(pair["pieces"] <= shared["pieces"] for pair in found)


def test_a_planted_neuron_tells_languages_apart(model, text):
    """In one script, and in none where both names are of the same text."""
    first, second = [*text][:2]
    at = all_tokens(model.tokenizer)
    assert planted_neuron(model, {first: text[first], second: text[second]}, at) > 0.9
    same = {first: text[first], "qab_Cyrl": text[first]}
    assert planted_neuron(model, same, at) < 0.05
    # Other sentences under each name, with fewer sentences than dimensions: nothing to be learnt.
    lines = text[first][:24]
    assert planted_neuron(model, {first: lines[::2], "qab_Cyrl": lines[1::2]}, at) < 0.8


def test_detectors_see_and_do_nothing(model, text):
    """x = gelu(x) - gelu(-x), and the output is that of a model without them."""
    lines, eye = text["qaa_Latn"][:4], np.eye(32, dtype=np.float32)
    kernel = np.concatenate([eye[:, :8], -eye[:, :8]], axis=1)
    taps = (("neurons", unchanged), ("attention", unchanged), ("states", unchanged))

    def read(params):
        changed = type(model)(*(
            params if name == "params" else getattr(model, name)
            for name in ("path", "step", "model", "params", "tokenizer", "inventory", "has_head",
                         "max_length", "tokens", "mesh")
        ))  # fmt: skip
        return sentence_reader(changed, taps)(lines, "qaa_Latn").values

    found = read(detectors(model.params, 0, kernel, np.zeros(16, np.float32)))
    seen = found["neurons"][0][..., :8] - found["neurons"][0][..., 8:16]
    x = found["states"][0] + found["attention"][0]
    norm = {k: np.asarray(v)[0] for k, v in
            model.params["encoder"]["layers"]["attention_layer_norm"].items()}  # fmt: skip
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = (x * norm["scale"] + norm["bias"])[..., :8]
    np.testing.assert_allclose(seen, expected, atol=2e-5)
    others = read(detectors(model.params, 0, 3 * kernel, np.ones(16, np.float32)))
    np.testing.assert_array_equal(found["states"], others["states"])

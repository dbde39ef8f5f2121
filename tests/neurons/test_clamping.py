"""Losses with neurons clamped, against the model's own logits; the excess on the diagonal."""

import dataclasses

import numpy as np
import pytest

from langsamp_jax.data.feed import Batch
from langsamp_jax.evaluation.batching import split_lines
from langsamp_jax.neurons import clamping
from langsamp_jax.neurons.clamping import MATCHED, clamp_own, clamped_losses, diagonal_excess

NAMES = ("qaa_Latn", "qab_Cyrl")


@pytest.fixture(scope="module")
def model(random_model):
    return random_model()


@pytest.fixture(scope="module")
def text(corpus, model):
    text = {}
    for name in NAMES:
        file = next((corpus / "held_out").glob(f"{name[:3]}_*.txt"))
        text[name] = file.read_text("utf-8").splitlines()[:30]
    return text


@pytest.mark.slow
def test_losses_are_those_of_the_logits(model, text, logits):
    """Hidden is what differs from the text: 15 % of a sentence, at the same places in all sets."""
    hidden, prepare = [], clamping._hidden

    def keep(*arguments):
        hidden.append(prepare(*arguments))
        return hidden[-1]

    chosen = np.zeros((3, 64), bool)
    chosen[1, :20] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clamping, "_hidden", keep)
        found = clamped_losses(model, text, [np.zeros_like(chosen), chosen])
    output = model.params["encoder"]["layers"]["output"]
    kernel = np.array(output["kernel"])
    kernel[1, :20] = 0  # held at 0
    layers = {**model.params["encoder"]["layers"], "output": {**output, "kernel": kernel}}
    edited = {**model.params, "encoder": {**model.params["encoder"], "layers": layers}}
    expected = np.zeros((2, 2))
    for examples in hidden:
        batch = examples.inputs, examples.attention_mask, examples.ids
        for place, params in enumerate((model.params, edited)):
            scores = logits(model.model, params, Batch(*batch)).astype(np.float64)
            scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
            for row, at in zip(*np.nonzero(np.asarray(examples.weights)), strict=True):
                assert examples.inputs[row, examples.positions[row, at]] == mask_id(model)
                language = int(examples.ids.language[row])
                target = examples.targets[row, at]
                expected[place, language] -= scores[row, examples.positions[row, at], target]
    np.testing.assert_allclose(found.sums.sum(axis=2), expected, rtol=1e-5)
    assert np.abs(found.sums[0] - found.sums[1]).max() > 0.1
    lengths = [
        [min(40, len(ids)) for ids in split_lines(*model.tokenizer.encode(lines))]
        for lines in text.values()
    ]
    np.testing.assert_array_equal(found.counts, np.maximum(1, np.round(0.15 * np.array(lengths))))


def mask_id(model):
    return model.tokenizer.vocabulary.mask_id


def test_excess_by_hand():
    own = np.array([[0.5, 0.1, 0.0], [0.2, 0.8, 0.2]])  # edited: first and second of three
    matched = np.array([[0.1, 0.1, 0.1], [0.0, 0.3, 0.0]])
    rises = np.stack([own, *[matched] * MATCHED], axis=1)
    found = diagonal_excess(np.stack([rises] * 5), [0, 1])
    expected = ((0.5 - 0.05) - (0.1 - 0.1)) / 2 + ((0.8 - 0.2) - (0.3 - 0.0)) / 2
    assert found == pytest.approx({"value": expected, "low": expected, "high": expected})


def test_excess_does_not_depend_on_how_many_languages_are_tested():
    for tested in (2, 8):
        rises = np.zeros((5, 1, 1 + MATCHED, tested))
        rises[:, 0, 0, 0] = 1
        assert diagonal_excess(rises, [0])["value"] == 1


def test_the_interval_allows_for_which_neurons_were_matched():
    rises = np.zeros((201, 1, 1 + MATCHED, 2))
    rises[:, 0, 1:, 0] = np.arange(MATCHED)  # the sentences decide nothing
    found = diagonal_excess(rises, [0])
    assert found["low"] < found["value"] == -np.arange(MATCHED).mean() < found["high"]


def test_what_a_language_needs_raises_its_loss_alone(model, text):
    """Own neurons that matter to all of the model, at rates that others have too."""
    rng = np.random.default_rng(0)
    rates = {name: rng.random((3, 64)) for name in NAMES}
    own = {name: np.zeros((3, 64), bool) for name in NAMES}
    own["qaa_Latn"][2, :8] = True
    found = clamp_own(model, text, rates, own)
    assert found["edited"] == ["qaa_Latn"] and found["tested"] == list(NAMES)
    assert found["neurons"] == [8] and found["sentences"] == 30
    assert found["skipped"] == {"qab_Cyrl": "it has no neurons of its own"}
    losses = clamped_losses(model, text, [np.zeros((3, 64), bool), own["qaa_Latn"]])
    mean = losses.sums.sum(axis=2) / losses.counts.sum(axis=1)
    np.testing.assert_allclose(found["own"][0], mean[1] - mean[0], atol=1e-9)
    np.testing.assert_allclose(found["loss"], mean[0])
    rise, other = np.array(found["own"][0]), np.array(found["matched"][0])
    excess = found["excess"]
    assert excess["value"] == pytest.approx((rise[0] - rise[1]) - (other[0] - other[1]))
    assert excess["low"] < excess["value"] < excess["high"]


def test_what_is_left_out_says_why(model, text):
    none = {name: np.zeros((3, 64), bool) for name in NAMES}
    rates = {name: np.zeros((3, 64)) for name in NAMES}
    found = clamp_own(dataclasses.replace(model, has_head=False), text, rates, none)
    assert "plain encoder" in found["left_out"]
    assert "has neurons of its own" in clamp_own(model, text, rates, none)["left_out"]
    unknown = {"qaa_Latn": text["qaa_Latn"], "qzz_Latn": text["qab_Cyrl"]}
    every = {name: np.ones((3, 64), bool) for name in unknown}
    rates = {name: np.zeros((3, 64)) for name in unknown}
    found = clamp_own(model, unknown, rates, every)
    assert "qzz_Latn" in found["left_out"]

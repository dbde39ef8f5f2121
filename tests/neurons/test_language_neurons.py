"""The protocol of neurons: its record, its tests over steps, and the controls in it."""

import dataclasses
import json
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.evaluation.encoder import readable_sentences
from langsamp_jax.evaluation.statistics import max_test
from langsamp_jax.models.langsamp import init_params
from langsamp_jax.neurons import language_neurons as neurons
from langsamp_jax.neurons import selectivity

SENTENCES, LAYERS = 60, 3


@pytest.fixture(scope="module")
def model(random_model):
    return random_model()


def at_step(model, seed: int):
    """The model with fresh parameters: with random biases a neuron fires always, or never."""
    params = nn.unbox(init_params(model.model, jax.random.key(seed)))
    return dataclasses.replace(model, params=params, step=100 * seed)


@pytest.fixture(scope="module")
def measured(model, corpus):
    """The records of two steps as they come back from the journal."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selectivity, "RATE", 0.1)  # two of so few neurons are hardly of a language
        for seed in (0, 1):
            other = at_step(model, seed)
            record = neurons.evaluate(other, corpus / "held_out", None, SENTENCES, None)
            found.append(json.loads(json.dumps({"step": other.step, **record})))
    return found


@pytest.fixture(scope="module")
def record(measured):
    return json.loads(json.dumps(neurons.over_steps(measured)))


@pytest.mark.slow
def test_the_result_has_what_is_promised(record, measured, corpus):
    assert record["steps"] == [0, 100] and record["layers"] == LAYERS
    assert np.shape(record["selectivity"]) == (2, LAYERS)
    assert set(record["contrast"]) == {"value", "low", "high", "null_mean", "null_max95"}
    assert record["contrast"] == record["contrasts"][-1]["outer - middle"]
    for control in record["controls"].values():
        assert set(control) == {"value", "expected", "ok"}
    assert record["languages"] == sorted(f.stem for f in (corpus / "held_out").glob("*.txt"))
    assert record["sentences"] == SENTENCES and record["skipped"] == {}
    assert record["truncated"] > 0 and record["positions"] == "tokens"
    assert len(record["pairs"]) == 15 and record["pairs_left_out"] == 0
    assert len(record["shared_pieces"]) + record["shared_pieces_left_out"] == 6
    by_pair, kinds = record["by_pair"]["separability"], {}
    for (one, other), by_layer in zip(record["pairs"], by_pair, strict=True):
        assert np.shape(by_layer) == (LAYERS,)
        kinds.setdefault(neurons.language_pairs.kind_of_pair(one, other), []).append(by_layer)
    assert record["selectivity"][-1] == pytest.approx(np.mean(by_pair, axis=0).tolist(), abs=2e-6)
    assert len(kinds["two_scripts"]) == 1 and len(kinds["within_script"]) > 1
    for kind, rows in kinds.items():
        assert record[kind][-1] == pytest.approx(np.mean(rows, axis=0).tolist(), abs=2e-6)
    assert np.array(record["selectivity"]).min() > record["null"]["max95"] > 0
    assert record["null"]["p"] == pytest.approx(1 / 201)
    assert record["above_step_0"][0] == [0, 0, 0]
    own = record["own_neurons"]
    for name, by_layer in record["by_language"]["own"].items():
        assert by_layer == [sum(layer == k for layer, _ in own[name]) for k in range(LAYERS)]
    different = {tuple(place) for places in own.values() for place in places}
    assert 1 <= len(different) == sum(record["specific"][-1]) <= round(0.1 * LAYERS * 64)
    assert {"draws", "planted", "by_layer", "step"}.isdisjoint(record)
    assert len(json.dumps(record)) < 40_000


@pytest.mark.slow
def test_contrasts_are_of_the_layers_with_an_interval_and_a_joint_null(record, measured):
    for step, values in enumerate(record["selectivity"]):
        found = record["contrasts"][step]
        expected = (values[0] + values[2]) / 2 - values[1]
        assert found["outer - middle"]["value"] == pytest.approx(expected, abs=2e-6)
        assert found["first - middle"]["value"] == pytest.approx(values[0] - values[1], abs=2e-6)
        assert found["last - middle"]["value"] == pytest.approx(values[2] - values[1], abs=2e-6)
        for contrast in found.values():
            assert contrast["low"] < contrast["value"] < contrast["high"]
    null = np.array([m["draws"]["null"] for m in measured])  # [steps, draws, layers]
    outer = (null[..., 0] + null[..., 2]) / 2 - null[..., 1]
    for step in range(2):
        found = record["contrasts"][step]["outer - middle"]
        assert found["null_mean"] == pytest.approx(outer[step].mean(), abs=1e-6)
        assert found["null_max95"] == pytest.approx(np.quantile(outer.max(axis=0), 0.95), abs=1e-6)


@pytest.mark.slow
def test_one_step_is_one_of_many(record, measured):
    alone = neurons.over_steps(measured[-1:])
    assert alone["selectivity"] == record["selectivity"][-1:] and alone["above_step_0"] is None
    assert alone["contrast"]["value"] == record["contrast"]["value"]
    assert alone["null"]["max95"] <= record["null"]["max95"]


@pytest.mark.slow
def test_controls_hold_and_what_fails_is_said(record, measured):
    assert all(control["ok"] for control in record["controls"].values()), record["controls"]
    assert "CONTROL FAILED" not in neurons.show(record)
    broken = json.loads(json.dumps(measured))
    broken[0]["planted"]["separability"] = 0.5  # at any step
    broken[1]["draws"]["halves"][0] = [0.9] * LAYERS
    found = neurons.over_steps(broken)
    shown = neurons.show(found)
    assert "CONTROL FAILED: planted_neuron: 0.5, expected > 0.9" in shown
    assert "CONTROL FAILED: same_language_p: 0.004975, expected > 0.05" in shown
    assert found["controls"]["swapped_labels_to_theory"]["ok"]


@pytest.mark.slow
def test_it_is_shown_and_measured(record):
    shown = neurons.show(record)
    assert "15 pairs of 6 languages (0 pairs left out), 60 sentences, positions: tokens" in shown
    assert "outer - middle layers: " in shown and "own neurons clamped: " in shown
    assert "were cut" in shown
    found = neurons.measures(record)
    assert found["outer - middle"] == record["contrast"]["value"]
    above = np.subtract(record["selectivity"][-1], record["null"]["mean"][-1]).mean()
    assert found["above null"] == pytest.approx(above)
    assert "clamped, above matched" in found and all(map(math.isfinite, found.values()))


def test_the_same_text_under_two_names_is_nothing(model, write_corpus, tmp_path, corpus):
    lines = (corpus / "held_out" / "qaa_Latn.txt").read_text("utf-8").splitlines()
    data = write_corpus(tmp_path / "data", qaa_Latn=lines, qab_Latn=lines)
    found = neurons.over_steps([neurons.evaluate(model, data, None, SENTENCES, None)])
    assert found["selectivity"] == [[0.0] * LAYERS]
    assert found["null"]["p"] == 1 and found["rank_disagreement"] == [[0.0] * LAYERS]
    assert found["across_scripts"] == [[None] * LAYERS]
    assert not found["controls"]["planted_neuron"]["ok"]  # and nothing can tell them apart


@pytest.mark.slow
def test_a_neuron_of_one_language_is_found_and_matters_to_it_alone(
    random_model, corpus, monkeypatch
):
    """The input says the language; neuron 5 of the first layer fires where it is qab."""
    monkeypatch.setattr(selectivity, "BAR", 0.5)  # many neurons always fire where it is qab
    monkeypatch.setattr(selectivity, "RATE", 0.1)
    model = at_step(random_model(placement="input"), 0)
    sign = np.tile(np.float32([1, -1]), 16)
    layers, tables = model.params["encoder"]["layers"], model.params["conditioning"]
    inner, output = layers["intermediate"], layers["output"]
    inner = {
        "kernel": inner["kernel"].at[0, :, 5].set(sign),
        "bias": inner["bias"].at[0, 5].set(-20),
    }
    output = {**output, "kernel": output["kernel"].at[0, 5].set(0.1 * np.arange(32) % 0.7)}
    encoder = {
        **model.params["encoder"],
        "layers": {**layers, "intermediate": inner, "output": output},
    }
    tables = {**tables, "language": np.stack([0 * sign, 0.05 * sign])}
    model = dataclasses.replace(
        model, params={**model.params, "encoder": encoder, "conditioning": tables}
    )
    found = neurons.over_steps(
        [neurons.evaluate(model, corpus / "held_out", None, SENTENCES, None)]
    )
    names = ["qaa_Cyrl", "qaa_Latn", "qab_Cyrl"]
    assert found["languages"] == found["clamped"]["tested"] == names
    assert [0, 5] in found["own_neurons"]["qab_Cyrl"]
    assert [0, 5] not in found["own_neurons"]["qaa_Cyrl"] + found["own_neurons"]["qaa_Latn"]
    rise = found["clamped"]["own"][found["clamped"]["edited"].index("qab_Cyrl")]
    assert np.abs(rise[:2]).max() < 1e-5 < 1e-3 < abs(rise[2])


@pytest.mark.slow
def test_halves_of_one_text_lie_in_their_null(measured):
    """And rank disagreement of halves is far below that of languages."""
    draws = np.array([m["draws"]["halves"] for m in measured]).swapaxes(0, 1)
    spread = draws[1:].std(axis=0)
    z = (draws - draws[1:].mean(axis=0)) / spread
    assert max_test(z[0], z[1:])[1] > 0.05
    last = measured[-1]["by_layer"]
    assert np.less(last["rank_disagreement_halves"], last["rank_disagreement"]).all()


def test_word_ends_and_few_layers_and_no_head(random_model, corpus):
    """A result of 2 layers has no contrast; what has no head clamps nothing."""
    two = dataclasses.replace(random_model(num_hidden_layers=2), has_head=False)
    found = neurons.over_steps([neurons.evaluate(two, corpus / "held_out", None, 20, "words")])
    assert found["positions"] == "words" and found["layers"] == 2
    assert found["contrast"]["value"] is None
    files = {name: (corpus / "held_out" / f"{name}.txt").read_text("utf-8").splitlines()[:20]
             for name in found["languages"]}  # fmt: skip
    for name, lines in files.items():
        assert found["tokens"][name] <= sum(len(line.split()) for line in lines)
    shown = neurons.show(found)
    assert "fewer than 3" in shown and "plain encoder" in shown
    assert set(neurons.measures(found)) == {"selectivity", "above null"}


def test_what_cannot_be_measured_is_said_in_one_line(
    model, corpus, write_corpus, tmp_path, refused
):
    def said(data, sentences=SENTENCES, of=model):
        return refused(neurons.evaluate, of, data, None, sentences, None)

    assert "--sentences 19: at least 20" in said(corpus / "held_out", 19)
    assert "no two languages with 500 aligned lines" in said(corpus / "held_out", 500)
    one = write_corpus(tmp_path / "one", qaa_Latn=["a"] * 60)
    assert "no two languages" in said(one)


def test_languages_that_an_input_side_model_lacks_are_named(
    random_model, corpus, write_corpus, tmp_path, refused
):
    model = random_model(placement="input")
    lines, _, skipped = readable_sentences(model, corpus / "held_out", SENTENCES)
    assert [*lines] == ["qaa_Cyrl", "qaa_Latn", "qab_Cyrl"]
    assert len(skipped) == 3 and "no language 'qac'" in skipped["qac_Latn"]
    text = ["a b"] * SENTENCES
    data = write_corpus(tmp_path / "unknown", fra_Latn=text, deu_Latn=text)
    line = refused(neurons.evaluate, model, data, None, SENTENCES, None)
    assert "no two languages that the model reads; deu_Latn: " in line


@pytest.mark.slow
def test_the_command_writes_a_result(run, corpus, capsys):
    data = str(corpus / "held_out")
    options = ["--model", str(run), "--data", data, "--sentences", "40"]
    assert main(["evaluate", "neurons", *options]) == 0
    assert main(["evaluate", "neurons", *options, "--positions", "words"]) == 0
    folder = run / "evaluation"
    for stem, positions in (("neurons", "tokens"), ("neurons-positions-words", "words")):
        record = json.loads((folder / f"{stem}.json").read_text())
        assert record["task"] == "neurons" and record["positions"] == positions
        assert record["steps"] == [3] == [record["step"]]
        assert record["measures"]["selectivity"] > 0
    assert "rank disagreement" in capsys.readouterr().out

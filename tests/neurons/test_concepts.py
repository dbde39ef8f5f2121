"""Concept experts of a model: what is read, the planted neuron, forcing, and the whole protocol."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from data_pipelines.synthetic.world import synthesize
from langsamp_jax.data.feed import Batch
from langsamp_jax.evaluation import encoder
from langsamp_jax.evaluation.batching import padded, repeat_ids, split_lines
from langsamp_jax.evaluation.jobs import Journal
from langsamp_jax.evaluation.model import LoadedModel
from langsamp_jax.models.edits import clamp
from langsamp_jax.models.taps import unchanged
from langsamp_jax.neurons import concepts, forcing
from langsamp_jax.neurons.activations import all_tokens
from langsamp_jax.neurons.concept_labels import halves
from langsamp_jax.neurons.forcing import Forced, force
from langsamp_jax.neurons.planting import planted
from tests.tiny import random_params

OPTIONS = {"pivot": "eng_Latn", "units": None, "sentences": 400, "concepts": 10}
NAMES = ("qaa_Cyrl", "qaa_Latn", "qab_Cyrl", "qac_Latn")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """400 sentences in 4 language-scripts; the tiny model knows all codes but qac."""
    folder = tmp_path_factory.mktemp("concepts") / "world"
    synthesize(folder, num_languages=4, num_sentences=100, seed=1, num_held_out=400)
    return folder / "held_out"


@pytest.fixture(scope="module")
def model(random_model) -> LoadedModel:
    """Fresh weights, so that attention mixes little: a token is told from others by its state."""
    loaded = random_model()
    shapes = loaded.params
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.ones_like(leaf) * ("scale" in jax.tree_util.keystr(path))
        if "norm" in jax.tree_util.keystr(path) else leaf / 3, shapes,
    )  # fmt: skip
    return dataclasses.replace(loaded, params=params, step=0)


@pytest.fixture(scope="module")
def record(model, data, tmp_path_factory) -> dict:
    with Journal(tmp_path_factory.mktemp("journal") / "result.json", {}) as journal:
        return concepts.evaluate(model, data, journal, **OPTIONS)


def sentences(data: Path, name: str) -> list[str]:
    return (data / f"{name}.txt").read_text("utf-8").splitlines()


def test_the_record_and_its_result(record):
    assert record["languages"] == [*NAMES] and record["layers"] == 3
    assert record["sentences"] == 400 and record["unit_count"] == 3 * 64
    assert np.shape(record["null_draws"]) == (500, 4)
    result = json.loads(json.dumps(concepts.over_steps([json.loads(json.dumps(record))])))
    assert np.shape(result["overlap"]) == (1, 3) and result["steps"] == [0]
    assert result["chance"][0] == [5 / 64] * 3
    controls = result["controls"]
    assert len(controls) == 3 and all(control["ok"] for control in controls.values()), controls
    assert all(map(math.isfinite, concepts.measures(result).values()))
    assert "one language in two scripts" in concepts.show(result)
    assert result["forcing"]["experts"] == [*NAMES]
    assert result["forcing"]["readout"] == [*NAMES[:3]]
    assert "qac" in result["forcing"]["skipped"]["qac_Latn"]  # the head has no vector of it


def test_a_unit_responds_by_its_mean_over_text(model, data):
    """Against every token of every sentence by itself, without the specials."""
    lines = sorted(sentences(data, NAMES[1]), key=len)[:6]
    read = concepts.sentence_reader(model, concepts._taps("all"), all_tokens(model.tokenizer))
    values, length, _ = concepts._responses(read, lines, NAMES[1])
    assert values.shape == (6, 3 * (64 + 32 + 32))
    rows = split_lines(*model.tokenizer.encode(lines))
    tokens, mask = padded(rows, 6, 40, model.tokenizer.vocabulary.pad_id)
    keep = tuple((site, unchanged) for site in ("neurons", "attention", "feed_forward"))
    found = encoder._read(model.model, keep, model.params, tokens, mask, None, mask)
    for row, ids in enumerate(rows):
        assert length[row] == len(ids) - 2
        for layer in range(3):
            by_token = [np.asarray(found[site])[layer, row, 1 : len(ids) - 1] for site, _ in keep]
            expected = np.concatenate([part.mean(axis=0) for part in by_token])
            mine = values[row, 128 * layer : 128 * (layer + 1)]
            np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-5)


def test_precisions_are_those_of_scikit_learn_in_each_half():
    rng = np.random.default_rng(0)
    responses = rng.integers(0, 9, (60, 4)).astype(np.float32)
    labels = concepts.with_null(rng.random((60, 3)) < 0.3)
    assert labels.shape == (60, 6)
    order = np.random.default_rng(2).permutation(60)
    np.testing.assert_array_equal(labels[:, 3:], labels[order, :3])
    found = concepts.in_halves(responses, labels)
    for half, where in enumerate((~halves(60), halves(60))):
        for unit in range(4):
            for concept in range(6):
                expected = average_precision_score(labels[where, concept], responses[where, unit])
                assert found[half, unit, concept] == pytest.approx(expected, abs=1e-6)


def test_what_the_length_tells_is_taken_away():
    rng = np.random.default_rng(0)
    length = rng.integers(3, 30, 200).astype(np.float32)
    signal = rng.normal(size=200).astype(np.float32)
    responses = np.stack([2 + length / 9, 1 / length - 3, signal + length], axis=1)
    left = concepts.without_length(responses, length)
    assert np.abs(left[:, :2]).max() < 1e-4
    assert np.corrcoef(left[:, 2], signal)[0, 1] > 0.98
    assert np.abs(np.corrcoef(rankdata(left[:, 2]), rankdata(length))[0, 1]) < 0.1


def test_kinds_of_pairs():
    names = ["qaa_Cyrl", "qaa_Latn", "qab_Latn", "qac_Latn", "qad_Grek"]
    families = {"qaa_Latn": "1", "qaa_Cyrl": "1", "qab_Latn": "1", "qac_Latn": "2", "qad_Grek": "3"}
    kinds = {k: v.tolist() for k, v in concepts.kinds_of_pairs(names, families).items()}
    assert kinds == {
        "two_scripts": [[0, 1]],
        "family": [[0, 2], [1, 2]],
        "other_script": [[0, 3], [0, 4], [1, 4], [2, 4], [3, 4]],
        "same_script": [[1, 3], [2, 3]],
    }
    assert "family" not in concepts.kinds_of_pairs(names, {})


def test_a_planted_neuron_is_an_expert_in_every_language(model, data):
    found = planted(model, {name: sentences(data, name) for name in NAMES})
    assert set(found["expert"]) == set(NAMES) and all(found["expert"].values())
    assert min(found["precision"].values()) > 0.9
    assert found["token"] == ","
    alone = planted(model, {"qaa_Latn": ["cezxesa"] * 20, "qab_Cyrl": ["чазхаса"] * 20})
    assert "no token" in alone["left_out"]


def test_forced_words_become_likelier(model, logits):
    """A neuron whose output is the direction of a word's piece: only it raises that word, in every
    language alike; random neurons do not."""
    tokenizer = model.tokenizer
    spoken = [i for i in np.flatnonzero(tokenizer.is_text) if tokenizer.surfaces[i].startswith(" ")]
    pieces = [i for i in spoken if len(tokenizer.surfaces[i]) > 2][:2]
    words = [{n: [tokenizer.surfaces[i].strip()] for n in ("qaa_Latn", "qab_Cyrl")} for i in pieces]
    sets = forcing._piece_sets(tokenizer, [[*by["qaa_Latn"]] for by in words])
    assert [np.flatnonzero(row).tolist() for row in sets] == [[int(i)] for i in pieces]
    chosen, value = np.zeros((2, 2, 3, 64), bool), np.zeros((2, 2, 3, 64), np.float32)
    chosen[0, :, 1, 5] = chosen[1, :, 2, 7] = True
    value[chosen] = 3.0
    neutral = {name: ["abe cezxesa lo tata", "ta lo cez"] for name in ("qaa_Latn", "qab_Cyrl")}
    forced = Forced(["a", "b"], ["qaa_Latn", "qab_Cyrl"], chosen, value)
    found = force(model, forced, words, {**neutral, "qac_Latn": neutral["qaa_Latn"]})
    assert found["readout"] == ["qaa_Latn", "qab_Cyrl"]
    assert "known words" in found["skipped"]["qac_Latn"]
    assert np.shape(found["own"]) == np.shape(found["other"]) == (2, 2)
    tokens, mask, positions = forcing._contexts(model, neutral["qab_Cyrl"])
    assert (tokens[range(2), positions[:, 0]] == tokenizer.vocabulary.mask_id).all()

    def slowly(params: dict) -> np.ndarray:
        ids = model.head_ids("qab_Cyrl")
        rows = repeat_ids(ids, len(tokens))
        scores = logits(model.model, params, Batch(tokens, mask, rows)).astype(np.float64)
        at = scores[range(len(tokens)), positions[:, 0]]
        log = at - np.log(np.exp(at).sum(axis=1, keepdims=True))
        return log[:, pieces].mean(axis=0)

    rises = np.array([
        [slowly(clamp(model.params, chosen[c, a], value[c, a])) - slowly(model.params)
         for a in range(2)] for c in range(2)
    ])  # fmt: skip
    np.testing.assert_allclose(
        np.array(found["own"])[:, 1], (rises[0, :, 0] + rises[1, :, 1]) / 2, atol=2e-4
    )
    np.testing.assert_allclose(
        np.array(found["other"])[:, 1], (rises[0, :, 1] + rises[1, :, 0]) / 2, atol=2e-4
    )
    assert set(found["specific"]) == {"within", "across"}


def test_a_model_without_a_head_is_not_forced(model, data):
    plain = dataclasses.replace(model, has_head=False)
    forced = Forced(["a"], ["qaa_Latn"], np.zeros((1, 1, 3, 64), bool), np.zeros((1, 1, 3, 64)))
    assert "plain encoder" in force(plain, forced, [{}], {})["left_out"]
    unknown = force(model, forced, [{}], {"qaa_Latn": ["ta"]})
    assert "qaa_Latn: fewer than 2 concepts have known words" in unknown["left_out"]


def test_a_language_that_the_model_cannot_read_is_named(random_model, data, journal):
    """With the vectors at the input: there is none of qaz."""
    lines = sentences(data, NAMES[1])
    (data.parent / "more").mkdir()
    for name in ("qaa_Latn", "qab_Cyrl", "qaz_Latn"):
        text = "".join(f"{line} stone{i % 16}\n" for i, line in enumerate(lines))
        (data.parent / "more" / f"{name}.txt").write_text(text, "utf-8")
    options = OPTIONS | {"pivot": "qaa_Latn", "concepts": 3, "units": "all"}
    given = random_model(placement="input")
    found = concepts.evaluate(given, data.parent / "more", journal, **options)
    assert found["languages"] == ["qaa_Latn", "qab_Cyrl"] and "qaz" in found["skipped"]["qaz_Latn"]
    assert found["unit_count"] == 3 * 128 and found["labels"] == "words of qaa_Latn"
    assert found["forcing"]["readout"] == ["qaa_Latn"]
    result = concepts.over_steps([found])
    # The same text in two languages, read by another vector: nearly all is shared.
    assert result["overall"]["overlap"][0] > result["overall"]["overlap_other"][0]


def test_compiled_once_for_all_steps(model, data, journal, record):
    sizes = [f._cache_size() for f in (forcing._log_probabilities,)]
    other = dataclasses.replace(model, params=random_params(model.model, seed=5), step=9)
    again = concepts.evaluate(other, data, journal, **OPTIONS)
    assert [f._cache_size() for f in (forcing._log_probabilities,)] == sizes
    assert again["languages"] == record["languages"] and again["shared"] != record["shared"]
    assert concepts.over_steps([record, again])["steps"] == [0, 9]


def test_too_few_sentences_are_refused(model, data, journal, refused):
    line = refused(concepts.evaluate, model, data, journal, **OPTIONS | {"sentences": 40})
    assert "give more sentences" in line

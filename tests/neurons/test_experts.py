"""Experts: their overlap against loops, its chance level and nulls, and what several steps say."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from langsamp_jax.neurons import concepts
from langsamp_jax.neurons.experts import (
    excess,
    expert_count,
    experts,
    over_concepts,
    relabelled,
    shared,
    sharing,
)
from tests.concept_records import LAYERS, WIDTH, step_record

NAMES = ("qaa_Latn", "qaa_Cyrl", "qab_Latn", "qac_Cyrl")


@pytest.fixture(scope="module")
def precisions() -> np.ndarray:
    """3 languages, 2 halves, 60 units, 5 concepts; with ties."""
    return np.random.default_rng(0).integers(0, 30, (3, 2, 60, 5)) / 30


def slow_experts(values: np.ndarray, count: int) -> set[int]:
    return set(sorted(range(len(values)), key=lambda unit: (-values[unit], unit))[:count])


def test_experts_are_the_highest_and_of_equals_the_first(precisions):
    chosen = experts(precisions, 7)
    assert chosen.shape == (3, 2, 5, 60)
    for a, half, concept in itertools.product(range(3), range(2), range(5)):
        expected = slow_experts(precisions[a, half, :, concept], 7)
        assert set(np.flatnonzero(chosen[a, half, concept])) == expected


def test_there_is_one_expert_in_a_hundred_units_and_at_least_5():
    assert [expert_count(n) for n in (3, 64, 500, 1536, 36864)] == [3, 5, 5, 15, 369]


def test_overlap_and_cross_ap_against_loops(precisions):
    count = 7
    chosen = experts(precisions, count)
    overlap = shared(chosen[:, 0], chosen[:, 1], count)
    cross = shared(chosen[:, 0], np.swapaxes(precisions[:, 1], 1, 2), count)
    pairs = [pair for pair in itertools.product(range(3), repeat=2) if pair[0] != pair[1]]
    between = np.zeros((5, 5))
    for a, b in itertools.product(range(3), repeat=2):
        mine = [slow_experts(precisions[a, 0, :, c], count) for c in range(5)]
        theirs = [slow_experts(precisions[b, 1, :, c], count) for c in range(5)]
        matrix = np.array([[len(x & y) / count for y in theirs] for x in mine])
        reading = np.array(
            [[np.mean([precisions[b, 1, u, d] for u in x]) for d in range(5)] for x in mine]
        )
        between += matrix * ((a, b) in pairs) / len(pairs)
        for measured, expected in ((overlap, matrix), (cross, reading)):
            np.testing.assert_allclose(measured.same[a, b], np.diag(expected), atol=1e-6)
            others = [np.mean([expected[c, d] for c in range(5) if c != d]) for d in range(5)]
            np.testing.assert_allclose(measured.other[a, b], others, atol=1e-6)
    np.testing.assert_allclose(overlap.between(np.array(pairs)), between, atol=1e-6)


def test_random_experts_overlap_by_chance_and_share_nothing():
    rng = np.random.default_rng(0)
    found = sharing(
        rng.random((6, 2, 1000, 20)), rng.random((6, 2, 1000, 20)), np.zeros(20),
        {"same_script": np.array([[0, 1], [2, 3]])},
    )  # fmt: skip
    assert found["experts"] == 10 and found["chance"] == 0.01
    assert found["overlap"] == pytest.approx(0.01, abs=0.003)
    assert found["low"] < 0 < found["high"]
    assert abs(found["reliability"]) < 0.001 and abs(found["expert_ap"]) < 0.001
    assert abs(found["permuted"]["shared"]) < 4 * found["permuted"]["error"]


def test_units_that_detect_everything_look_shared_and_are_not():
    """The null of another concept: the overlap is whole, and O* is 0."""
    precisions = np.random.default_rng(0).random((4, 2, 500, 10)) / 2
    precisions[:, :, :5] += 1
    found = sharing(precisions, precisions / 9, np.zeros(10), {})
    assert found["overlap"] == found["overlap_other"] == 1
    assert found["shared"] == 0
    precisions[:, :, 5:55].reshape(4, 2, 10, 5, 10)[:, :, range(10), :, range(10)] += 2
    found = sharing(precisions, precisions / 9, np.zeros(10), {})
    assert found["shared"] == 1 and found["low"] == found["high"] == 1
    np.testing.assert_array_equal(found["between_concepts"], np.eye(10))
    assert found["null"].max() < 1 and found["null"].mean() == pytest.approx(0, abs=0.05)


def test_intervals_are_over_concepts():
    same, other = np.linspace(0.2, 0.6, 30), np.full(30, 0.1)
    value, low, high = over_concepts(same, other)
    assert value == pytest.approx((0.4 - 0.1) / 0.9)
    error = same.std(ddof=1) / math.sqrt(30) / 0.9
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert excess(np.array(1.0), np.array(1.0)) == 0


def test_relabelled_concepts_by_hand():
    between = np.arange(16.0).reshape(4, 4) / 16
    null = relabelled(between, 200)
    possible = []
    for order in itertools.permutations(range(4)):
        chosen = between[range(4), order]
        possible.append(excess(chosen.mean(), (between.sum() - chosen.sum()) / 12))
    assert {round(x, 9) for x in null} <= {round(x, 9) for x in possible}
    np.testing.assert_array_equal(relabelled(between, 200), null)


@pytest.fixture(scope="module")
def series() -> list[dict]:
    return [step_record(step, s, NAMES) for step, s in ((0, 0), (1, 0), (10, 0.05), (90, 0.3))]


def test_steps_together(series):
    record = json.loads(json.dumps(concepts.over_steps(series)))
    assert record["steps"] == [0, 1, 10, 90] and record["layers"] == LAYERS
    for name in ("overlap", "overlap_other", "chance", "shared", "reliability"):
        assert np.shape(record[name]) == (4, LAYERS)
        assert len(record["overall"][name]) == 4
    assert np.array(record["shared"])[3].argmax() == 1 and record["test"]["p"] < 0.05
    assert record["overall"]["chance"] == [5 / (LAYERS * WIDTH)] * 4
    assert {k: p["pairs"] for k, p in record["pairs"].items()} == {
        "two_scripts": 1, "same_script": 2, "other_script": 3,
    }  # fmt: skip
    expected = [spearmanr(x, record["steps"]).statistic for x in np.array(record["shared"]).T]
    assert record["trend"]["layers"] == pytest.approx(expected)
    assert [unit["layer"] for unit in record["tracked"]] == [1, 1]
    assert [unit["unit"] for unit in record["tracked"]] == [0, 1]
    assert all(np.diff(unit["precision"])[-1] > 0.1 for unit in record["tracked"])
    assert all(control["ok"] for control in record["controls"].values())
    assert len(record["controls"]) == 3
    assert "null_draws" not in record and "unit_precisions" not in record
    assert sum(record["expert_share"][0]) == pytest.approx(1)
    text = concepts.show(record)
    assert "at step 90" in text and "CONTROL FAILED" not in text and "too rare: 1" in text
    measures = concepts.measures(record)
    assert measures["two_scripts/shared"] > 0.1 and all(map(math.isfinite, measures.values()))
    assert measures["forcing within/rise"] == 0.3


def test_a_control_that_fails_is_said():
    shared_at_first = step_record(0, 0.3, NAMES)
    shared_at_first["planted"]["expert"]["qaa_Latn"] = False
    record = concepts.over_steps([shared_at_first])
    text = concepts.show(record)
    assert "CONTROL FAILED: step 0, languages in two scripts: " in text
    assert "CONTROL FAILED: a planted neuron is an expert in every language: 0.75" in text
    assert record["trend"] is None


def test_without_forcing_and_without_steps(series):
    less = {"step": None, "forcing": {"left_out": "no head"}, "planted": {"left_out": "no token"}}
    record = concepts.over_steps([series[-1] | less])
    text = concepts.show(record)
    assert "no forcing: no head" in text and "no neuron was planted: no token" in text
    assert "step 0, languages in two scripts" not in record["controls"]
    assert not any(name.startswith("forcing") for name in concepts.measures(record))

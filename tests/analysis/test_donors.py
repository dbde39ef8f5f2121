"""Donor selection: what each choice takes on tables made by hand, and what is said of it."""

import itertools
import json

import numpy as np
import pytest

from langsamp_jax.analysis.donors import (
    Transfer,
    choose,
    donor_selection,
    similarities,
)
from langsamp_jax.analysis.geometry import Table
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.statistics import rank_correlations
from langsamp_jax.languages.typology import Reference

NAN = np.nan
DONORS = ("eng_Latn", "deu_Latn", "rus_Cyrl")
TARGETS = ("nld_Latn", "ukr_Cyrl", "deu_Latn", "eng_Latn")
TRANSFER = Transfer(
    TARGETS, DONORS, np.array([[60, 70, 40], [50, NAN, 80], [65, 90, 45], [95, 55, 55]])
)
NEAR = np.array([[0.5, 0.9, 0.1], [0.2, 0.9, 0.7], [0.6, 1.0, 0.3], [1.0, 0.4, 0.4]])
KNOWN = np.array([[0.2, 0.9, NAN], [NAN, NAN, NAN], [NAN, 1.0, 0.8], [1.0, NAN, NAN]])
SIMILARITIES = {"language vectors": NEAR, "typology": KNOWN}
SIZES = {"eng_Latn": 10, "rus_Cyrl": 30}
CHOICES = ["language vectors", "typology", "size", "random", "same script", "English", "oracle"]


def found(**changed) -> dict:
    arguments = {"transfer": TRANSFER, "similarities": SIMILARITIES, "sizes": SIZES}
    arguments |= {"pivot": "eng_Latn", "resamples": 500, "permutations": 99}
    return donor_selection(**arguments | changed)


def by_choice(record: dict) -> dict[str, dict]:
    return {each["choice"]: each for each in record["choices"]}


# Similarity


def test_similarities_worked_by_hand():
    tables = {
        "language": Table(("deu", "nld", "eng"), np.array([[1.0, 0], [3, 4], [0, 1]], np.float32)),
        "script": Table(("Latn", "Cyrl"), np.array([[0, 1.0], [-1, 0]], np.float32)),
    }
    reference = Reference("typology", ("deu", "nld"), np.array([[0, 0.3], [0.3, 0]]))
    matrices = similarities(
        ["nld_Latn", "xxx_Latn"], ["deu_Latn", "deu_Cyrl", "eng_Grek"], tables, [reference]
    )
    assert list(matrices) == ["language vectors", "language + script vectors", "typology"]
    expected = {
        "language vectors": [0.6, 0.6, 0.8],
        # (3, 5) with (1, 1), with (0, 0), and with nothing
        "language + script vectors": [8 / np.sqrt(68), 0, NAN],
        "typology": [-0.3, -0.3, NAN],
    }
    for name, row in expected.items():
        np.testing.assert_allclose(matrices[name], [row, [NAN] * 3], rtol=0, atol=1e-12)


def test_model_with_one_table_has_fewer_similarities():
    language = Table(("deu",), np.ones((1, 2), np.float32))
    names = ["deu_Latn"], ["deu_Latn"]
    assert list(similarities(*names, {"language": language})) == ["language vectors"]
    assert similarities(*names, {"script": language}) == {}


# Choices


def test_choices_worked_by_hand():
    chosen = choose(TRANSFER, SIMILARITIES, SIZES, "eng_Latn")
    assert {name: columns.tolist() for name, columns in chosen.items()} == {
        "language vectors": [1, 2, 0, 1],  # ukr: deu was not tested; eng: of equals, the first
        "typology": [1, -1, 2, -1],  # ukr: nothing known; eng: only of itself
        "size": [2, 2, 2, 2],
        "English": [0, 0, 0, -1],
        "oracle": [1, 2, 0, 1],
    }


def test_pivot_that_is_not_english_has_its_own_name():
    assert "deu_Latn" in choose(TRANSFER, SIMILARITIES, SIZES, "deu_Latn")
    record = found(pivot="deu_Latn")
    assert record["pivot"] == "deu_Latn" and "English" not in by_choice(record)
    assert by_choice(record)["oracle"]["against"].keys() == {"random", "same script", "deu_Latn"}


def test_records_worked_by_hand():
    record = found()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["targets"] == list(TARGETS) and record["donors"] == list(DONORS)
    assert record["scores"][1] == [50, None, 80] and record["scores"][2][1] == 90
    choices = by_choice(record)
    assert list(choices) == CHOICES
    assert {name: each["mean"] for name, each in choices.items()} == {
        "language vectors": (70 + 80 + 65 + 55) / 4,
        "typology": (70 + 45) / 2,
        "size": (40 + 80 + 45 + 55) / 4,
        "random": (170 / 3 + 65 + 55 + 55) / 4,
        "same script": (65 + 80 + 65 + 55) / 4,
        "English": pytest.approx((60 + 50 + 65) / 3),
        "oracle": (70 + 80 + 65 + 55) / 4,
    }
    counts = {name: (each["targets"], each["left_out"]) for name, each in choices.items()}
    assert counts.pop("typology") == (2, 2) and counts.pop("English") == (3, 1)
    assert set(counts.values()) == {(4, 0)}
    assert choices["typology"]["chosen"] == {"nld_Latn": "deu_Latn", "deu_Latn": "rus_Cyrl"}
    assert choices["random"]["chosen"] == choices["same script"]["chosen"] == {}
    against = choices["typology"]["against"]
    assert against["random"]["difference"] == pytest.approx((70 - 170 / 3 + 45 - 55) / 2)
    assert against["same script"]["difference"] == pytest.approx((70 - 65 + 45 - 65) / 2)
    assert against["English"]["difference"] == pytest.approx((70 - 60 + 45 - 65) / 2)
    assert against["English"]["targets"] == 2
    assert choices["English"]["against"].keys() == {"random", "same script"}
    assert choices["random"]["against"].keys() == {"same script", "English"}


def test_a_target_that_no_donor_shares_its_script_with_has_no_such_baseline():
    scores = np.array([[1.0, 2.0], [3.0, 5.0]])
    transfer = Transfer(("ell_Grek", "nld_Latn"), ("eng_Latn", "rus_Cyrl"), scores)
    record = by_choice(found(transfer=transfer, similarities={}))["same script"]
    assert (record["mean"], record["targets"], record["left_out"]) == (3, 1, 1)


def world(seed: int, targets: int = 40, donors: int = 8) -> tuple[Transfer, np.ndarray]:
    """Scores that go with a similarity, a donor of its own goodness, and entries missing."""
    rng = np.random.default_rng(seed)
    scripts = itertools.cycle(["Latn", "Cyrl"])
    codes = (f"q{a}{b}" for a in "abcdefgh" for b in "abcdefgh")
    names = tuple(f"{code}_{next(scripts)}" for code in codes)[:targets]
    similarity = rng.normal(size=(targets, donors))
    scores = 50 + 5 * similarity + 10 * rng.normal(size=donors) + rng.normal(size=similarity.shape)
    scores[rng.random(scores.shape) < 0.2] = NAN
    return Transfer(names, names[:donors], scores), similarity


@pytest.mark.parametrize("seed", range(5))
def test_nothing_beats_the_oracle(seed):
    transfer, similarity = world(seed)
    scores, chosen = transfer.zero_shot(), choose(transfer, {"x": similarity}, {}, "qac_Latn")
    assert (chosen.pop("size") == -1).all()
    best = np.nanmax(scores, axis=1)
    reached = {
        name: np.where(columns < 0, NAN, scores[np.arange(len(scores)), columns])
        for name, columns in chosen.items()
    }
    np.testing.assert_array_equal(reached["oracle"], best)
    for values in reached.values():
        assert not (values > best).any()
    for columns in chosen.values():
        own = [transfer.targets.index(donor) for donor in transfer.donors]
        assert not (columns[own] == np.arange(len(own))).any()


# Intervals


def test_intervals_are_those_of_the_bootstrap():
    transfer, similarity = world(0)
    record = by_choice(found(transfer=transfer, similarities={"x": similarity}, pivot="qaa_Latn"))
    for each in record.values():
        for fields in (each, *each["against"].values()):
            mean = fields.get("mean", fields.get("difference"))
            assert mean is None or fields["low"] < mean < fields["high"]
    scores = transfer.zero_shot()[:, 0]
    scores = scores[~np.isnan(scores)]
    normal = 1.96 * scores.std() / np.sqrt(len(scores))
    fields = record["qaa_Latn"]
    assert fields["targets"] == len(scores)
    np.testing.assert_allclose(fields["high"] - fields["low"], 2 * normal, rtol=0.1)
    assert record["size"]["mean"] is record["size"]["low"] is None
    assert record["size"]["targets"] == 0 and record["size"]["left_out"] == 40


def test_differences_are_paired():
    """Targets differ by far more than the choices do."""
    level = np.linspace(0, 100, 30)[:, None]
    scores = level + [0, 1, 3]
    names = tuple(f"q{a}{b}_Latn" for a in "abcdef" for b in "abcde")
    donors = ("eng_Latn", "xaa_Latn", "xab_Latn")
    near = np.tile([0.0, 0.0, 1.0], (30, 1))
    record = donor_selection(
        Transfer(names, donors, scores), {"near": near}, {}, "eng_Latn", permutations=99
    )
    choice = by_choice(record)["near"]
    assert choice["high"] - choice["low"] > 15
    against = choice["against"]["English"]
    np.testing.assert_allclose([against[k] for k in ("low", "difference", "high")], 3, atol=1e-9)


def test_the_seed_settles_everything():
    assert found(seed=1) == found(seed=1) != found(seed=2)


def test_one_target_has_no_interval():
    transfer = Transfer(TARGETS[:1], DONORS, TRANSFER.scores[:1])
    near = {"language vectors": NEAR[:1]}
    choice = by_choice(found(transfer=transfer, similarities=near))["language vectors"]
    assert choice["mean"] == 70 and choice["low"] is choice["high"] is None


# Correlations


def test_p_is_small_where_the_signal_is_real():
    transfer, similarity = world(3)
    record = found(
        transfer=transfer,
        similarities={"near": similarity, "far": -similarity},
        pivot="qaa_Latn",
        permutations=999,
    )
    near, far = record["correlations"]
    rho = rank_correlations(similarity, transfer.zero_shot())
    assert near["similarity"] == "near" and near["targets"] == np.sum(~np.isnan(rho))
    np.testing.assert_allclose([near["rho"], far["rho"]], [np.nanmean(rho), -np.nanmean(rho)])
    assert near["low"] < near["rho"] < near["high"]
    assert near["p"] < 0.01 and far["p"] > 0.9


def test_correlation_that_is_undefined():
    record = found(similarities={"typology": KNOWN})
    (correlation,) = record["correlations"]
    assert correlation["targets"] == 0
    assert {correlation[key] for key in ("rho", "low", "high", "p")} == {None}


# Bad input


def test_refused():
    with pytest.raises(UserError, match="fra_Latn is none of the donors eng_Latn, deu_Latn"):
        found(pivot="fra_Latn")
    own = Transfer(("eng_Latn",), ("eng_Latn",), np.array([[90.0]]))
    with pytest.raises(UserError, match="another language than its own"):
        found(transfer=own, similarities={})

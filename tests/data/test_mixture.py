"""The mixture: rates from the counts of a store, limits, schedules, and who is left out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from langsamp_jax.config import from_gin, parse_gin
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.mixture_report import mixture_report, mixture_warnings
from langsamp_jax.data.sampling import Sampler
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.resume import reopen_run
from langsamp_jax.training.setup import start_run

SEEN = "deu_Latn"  # one of XLM-R's
PLAN = {"num_steps": 200, "batch_size": 25}


# Rules


def test_a_limit_that_the_rule_has_no_use_for_is_told(manifest):
    config = MixtureConfig(rule="langsamp", minimum_sentences=1, maximum_count={"xyz_Latn": 1})
    lines = mixture_warnings(config, manifest, config.sampler(manifest, seed=0, **PLAN), **PLAN)
    assert "mixture.maximum_count: the rule langsamp has no use for it" in lines


def test_temperature_rule_is_a_power_of_the_training_rows(manifest):
    rows = np.array([manifest.counts["train"][name].rows for name in manifest.names])
    default = rows**0.3
    np.testing.assert_allclose(MixtureConfig().rates(manifest), default / default.sum())
    capped = np.minimum(rows, 60) ** 0.5
    found = MixtureConfig(temperature=2, maximum_count=60).rates(manifest)
    np.testing.assert_allclose(found, capped / capped.sum())
    assert len(set(rows.tolist())) > 4 and sum(rows > 60) > 1  # else the cap shows nothing


@pytest.mark.parametrize(
    ("count", "sizes"),
    [("rows", [4, 40, 400, 0]), ("lines", [900, 90, 9, 0]), ("tokens", [400, 4000, 40000, 0])],
)
@pytest.mark.parametrize("temperature", [1, 2, 1 / 0.3])
def test_temperature_rule_counts_rows_lines_or_tokens(four, count, sizes, temperature):
    """Who has no row is not drawn, whatever lines it has."""
    expected = np.array(sizes, float) ** (1 / temperature)
    expected[-1] = 0
    found = MixtureConfig(count=count, temperature=temperature).rates(four)
    np.testing.assert_allclose(found, expected / expected.sum())


def test_single_language_scripts_can_have_their_own_maximum(four):
    found = MixtureConfig(temperature=1, maximum_count={"ccc_Latn": 100}).rates(four)
    np.testing.assert_allclose(found, np.array([4, 40, 100, 0]) / 144)
    found = MixtureConfig(temperature=1, maximum_count={"ccc_Latn": 100, "*": 10}).rates(four)
    np.testing.assert_allclose(found, np.array([4, 10, 100, 0]) / 114)


def test_langsamp_rule_counts_lines_and_knows_what_xlmr_has_seen(manifest, with_train_counts):
    """Of language-scripts that XLM-R has not seen, small ones are left out, and named."""
    counts = {
        SEEN: (10, 7),
        "aak_Latn": (40_000, 7),
        "abn_Latn": (80_000, 1),
        "qaa_Latn": (29_999, 900),
        "deu_Cyrl": (29_999, 900),  # the language alone does not make it seen
    }
    made = with_train_counts(manifest, counts)
    quota = {SEEN: 30 * 40_000, "aak_Latn": 30 * 40_000, "abn_Latn": int(30 * 40_000 * 2**0.3)}
    expected = np.array([quota.get(name, 0) for name in made.names]) / sum(quota.values())
    config = MixtureConfig(rule="langsamp")
    np.testing.assert_allclose(config.rates(made), expected, rtol=1e-6)
    lower = MixtureConfig(rule="langsamp", minimum_sentences=29_999).rates(made)
    assert np.all(lower > 0)
    sampler = config.sampler(made, seed=0, **PLAN)
    language, _ = sampler.span(0, 1000)
    assert {made.names[index] for index in language} == set(quota)
    (line,) = mixture_warnings(config, made, sampler, **PLAN)
    assert "mixture.minimum_sentences = 30000" in line
    assert line.endswith("2 of 5: deu_Cyrl, qaa_Latn")


def test_langsamp_rule_leaves_out_whose_text_is_shorter_than_a_row(manifest, with_train_counts):
    made = with_train_counts(manifest, {SEEN: (10, 7), "fra_Latn": (3, 0)})
    config = MixtureConfig(rule="langsamp")
    assert config.rates(made).tolist() == [1, 0]
    (line,) = mixture_warnings(config, made, config.sampler(made, seed=0, **PLAN), **PLAN)
    assert line == "never drawn, the training text is shorter than one row: 1 of 2: fra_Latn"


def test_weights_are_relative_and_who_is_not_named_is_said_to_be_left_out(four):
    config = MixtureConfig(rule="weights", weights={"aaa_Latn": 1.5, "ccc_Latn": 0.5})
    assert config.rates(four).tolist() == [0.75, 0, 0.25, 0]
    sampler = config.sampler(four, seed=0, **PLAN)
    assert sampler.drawn(5000).tolist() == [3750, 0, 1250, 0]
    lines = mixture_warnings(config, four, sampler, **PLAN)
    assert len(lines) == 2
    assert "no weight" in lines[0] and lines[0].endswith("1 of 4: bbb_Latn")
    assert "shorter than one row" in lines[1] and lines[1].endswith("1 of 4: ddd_Latn")


def test_a_rate_too_small_for_the_plan_is_announced(four):
    config = MixtureConfig(rule="weights", weights={"aaa_Latn": 1e-6, "bbb_Latn": 1, "ccc_Latn": 1})
    lines = mixture_warnings(config, four, config.sampler(four, seed=0, **PLAN), **PLAN)
    assert "less than one row of the plan: 1 of 4: aaa_Latn" in lines[0]


# The sampler


def test_sampler_has_the_rows_rates_and_seed(manifest):
    config = MixtureConfig(temperature=3)
    sampler = config.sampler(manifest, seed=11, **PLAN)
    assert np.array_equal(sampler.rows, manifest.column("train", "rows"))
    expected = Sampler.create(sampler.rows, config.rates(manifest), 11)
    assert np.array_equal(sampler.batch(5, 64), expected.batch(5, 64))
    other = config.sampler(manifest, seed=12, **PLAN)
    assert not np.array_equal(sampler.batch(5, 64), other.batch(5, 64))


def test_a_schedule_changes_the_rates_from_its_steps_on(manifest):
    """An entry replaces fields of the mixture, not of the entry before it."""
    schedule = [
        {"from_step": 50, "temperature": 5.0},
        {"from_step": 120, "maximum_count": 20},
        {"from_step": 200, "temperature": 9.0},  # behind the last step
    ]
    config = MixtureConfig(temperature=1, schedule=schedule)
    sampler = config.sampler(manifest, seed=3, **PLAN)
    assert sampler.starts == (0, 50 * 25, 120 * 25)
    phases = [
        MixtureConfig(temperature=1),
        MixtureConfig(temperature=5),
        MixtureConfig(temperature=1, maximum_count=20),
    ]
    drawn = np.diff(sampler.drawn(np.array([*sampler.starts, 5000])), axis=0)
    for count, length, phase in zip(drawn, (1250, 1750, 2000), phases, strict=True):
        assert np.abs(count - length * phase.rates(manifest)).max() < 2
    constant = phases[0].sampler(manifest, seed=3, **PLAN)
    assert np.array_equal(sampler.batch(49, 25), constant.batch(49, 25))
    assert "step 200 is behind the last one" in mixture_report(config, manifest, sampler, **PLAN)


def filled(wanted: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Water filling, plainly: who is above the limit stays there, the others share the rest."""
    total, full, rows = wanted.sum(), np.zeros(len(wanted), bool), wanted
    while np.any(rows > most):
        full |= rows > most
        rest = total - most[full].sum()
        rows = np.where(full, most, wanted * rest / wanted[~full].sum())
    return rows


@given(st.lists(st.integers(1, 300), min_size=2, max_size=20), st.floats(0.5, 30), st.data())
def test_no_language_passes_over_its_rows_more_often_than_allowed(
    manifest, with_train_counts, rows, epochs, data
):
    names = [f"q{chr(97 + index)}a_Latn" for index in range(len(rows))]
    made = with_train_counts(manifest, {n: (1, r) for n, r in zip(names, rows, strict=True)})
    limit = np.floor(epochs * np.array(rows))
    steps = int(limit.sum() // 25)
    assume(steps > 0)
    steps = data.draw(st.integers(1, steps))
    config = MixtureConfig(maximum_epochs=epochs)
    drawn = config.sampler(made, 0, steps, 25).drawn(steps * 25)
    assert np.all(drawn <= epochs * np.array(rows)) and drawn.sum() == steps * 25
    expected = filled(config.rates(made) * steps * 25, limit)
    assert np.abs(drawn - expected).max() < 1 + 1e-6


def test_a_limit_that_nothing_reaches_changes_no_count_by_more_than_a_row(manifest):
    free, limited = MixtureConfig(), MixtureConfig(maximum_epochs=1e6)
    counts = [config.sampler(manifest, 0, **PLAN).drawn(5000) for config in (free, limited)]
    assert np.abs(counts[0] - counts[1]).max() <= 2


def test_a_limit_holds_over_all_phases_together(four):
    """aaa_Latn has 4 rows and 3 epochs: 12 rows, half of them in each phase, as it is wanted."""
    weights = {"bbb_Latn": 1, "ccc_Latn": 9}
    config = MixtureConfig(
        rule="weights",
        weights={"aaa_Latn": 10, **weights},
        maximum_epochs=3,
        schedule=[{"from_step": 10, "weights": {"aaa_Latn": 20, "ccc_Latn": 20}}],
    )
    sampler = config.sampler(four, seed=0, num_steps=20, batch_size=20)
    drawn = sampler.drawn(np.array([200, 400]))
    assert drawn[0].tolist() == [6, 19, 175, 0]  # 194 rows as 1 : 9
    assert drawn[1].tolist() == [12, 19, 369, 0]
    assert "at the limit of 3 epochs: 1 of 4" in mixture_warnings(config, four, sampler, 20, 20)


def test_shipped_mixtures(manifest):
    parse_gin(["data/unimax.gin"], [])
    rows = manifest.column("train", "rows")
    drawn = from_gin(MixtureConfig).sampler(manifest, 0, **PLAN).drawn(5000)
    wanted = filled(np.full(len(rows), 5000 / len(rows)), np.minimum(4 * rows, 10**9))
    assert np.abs(drawn - wanted).max() <= 1 and np.sum(drawn == 4 * rows) > 1
    parse_gin(["data/annealed.gin"], [])
    sampler = from_gin(MixtureConfig).sampler(manifest, 0, num_steps=150_000, batch_size=8)
    for allocation, alpha in zip(sampler.allocations, (1, 0.5, 0.3), strict=True):
        np.testing.assert_allclose(allocation.rates, rows**alpha / np.sum(rows**alpha), atol=1e-8)


def test_a_plan_of_more_rows_than_the_limit_gives_is_refused(four):
    config = MixtureConfig(maximum_epochs=2)
    assert config.sampler(four, 0, num_steps=111, batch_size=8).drawn(888).tolist() == [
        8,
        80,
        800,
        0,
    ]
    with pytest.raises(UserError, match="plans 896 rows, the store can give 888 at that limit"):
        config.sampler(four, 0, num_steps=112, batch_size=8)
    schedule = [{"from_step": 100, "rule": "weights", "weights": {"aaa_Latn": 1}}]
    with pytest.raises(UserError, match="phase 2 of the schedule plans 80 rows"):
        MixtureConfig(maximum_epochs=2, schedule=schedule).sampler(four, 0, 110, 8)
    with pytest.raises(UserError, match="2,147,483,648 can be at that limit"):
        MixtureConfig(maximum_epochs=1e9).sampler(four, 0, 10**9, 8)


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "uniform"},
        {"temperature": 0},
        {"temperature": "high"},
        {"count": "bytes"},
        {"maximum_count": 0},
        {"maximum_count": 1.5},
        {"maximum_count": {"deu_Latn": 0}},
        {"maximum_count": {"deu_Latn": 1.5}},
        {"minimum_sentences": 0},
        {"maximum_epochs": 0},
        {"maximum_epochs": float("inf")},
        {"weights": {}},
        {"weights": {"deu_Latn": 0}},
        {"weights": {"deu_Latn": -1}},
        {"weights": {"deu_Latn": float("inf")}},
        {"weights": {"deu_Latn": float("nan")}},
        {"weights": {"deu_Latn": "much"}},
        {"schedule": {}},
        {"schedule": ["warm"]},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(UserError) as refused:
        MixtureConfig(**wrong)
    ((field, value),) = wrong.items()
    assert str(refused.value).startswith(f"mixture.{field} = {value!r}: expected ")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"weights": {"deu_Latn": 1}}, 'weights are for rule "weights"'),
        ({"rule": "weights"}, 'weights are for rule "weights", which needs them'),
        ({"schedule": [{"temperature": 2}]}, "{'temperature': 2}: from_step: expected a step"),
        ({"schedule": [{"from_step": 0}]}, "from_step: expected a step behind 0"),
        ({"schedule": [{"from_step": 1.5}]}, "from_step: expected a step behind 0"),
        ({"schedule": [{"from_step": 5}, {"from_step": 5}]}, "expected a step behind 5"),
        ({"schedule": [{"from_step": 5, "temprature": 2}]}, "temprature is none of count, "),
        ({"schedule": [{"from_step": 5, "schedule": []}]}, "schedule is none of "),
        ({"schedule": [{"from_step": 5, "maximum_epochs": 2}]}, "maximum_epochs is none of "),
        ({"schedule": [{"from_step": 5, "temperature": 0}]}, "5, 'temperature': 0}: mixture.temp"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(wrong, expected):
    for bound in (False, True):  # gin adds to the message of an error inside what it makes
        with pytest.raises(UserError) as refused:
            if bound:
                parse_gin([], [f"mixture.{field}={value!r}" for field, value in wrong.items()])
            from_gin(MixtureConfig) if bound else MixtureConfig(**wrong)
        line = str(refused.value).partition("\n  In call to configurable")[0]
        assert expected in line and "\n" not in line


@pytest.mark.parametrize("field", ["weights", "maximum_count"])
def test_names_that_the_store_does_not_have_are_refused(four, field):
    rule = {"rule": "weights"} if field == "weights" else {}
    config = MixtureConfig(**rule, **{field: {"bbb_Latin": 1}})
    with pytest.raises(UserError, match=f"mixture.{field}: bbb_Latin .* did you mean bbb_Latn?"):
        config.sampler(four, seed=0, **PLAN)
    with pytest.raises(UserError, match="ddd_Latn has no training row"):
        MixtureConfig(**rule, **{field: {"ddd_Latn": 1}}).sampler(four, seed=0, **PLAN)


def test_a_mixture_that_draws_from_no_language_is_refused(manifest, with_train_counts):
    made = with_train_counts(manifest, {"qaa_Latn": (100, 10)})
    with pytest.raises(UserError, match="mixture.minimum_sentences"):
        MixtureConfig(rule="langsamp").sampler(made, seed=0, **PLAN)
    made = with_train_counts(manifest, {"qaa_Latn": (100, 0)})
    with pytest.raises(UserError, match="no training rows"):
        MixtureConfig().sampler(made, seed=0, **PLAN)


def test_settings_come_back_from_a_run_as_they_were(store_path, tmp_path):
    store = Store(store_path)
    name = store.manifest.names[0]
    config = MixtureConfig(
        maximum_count={name: 10, "*": 20},
        maximum_epochs=2.5,
        schedule=[{"from_step": 4, "rule": "weights", "weights": {name: 1}}],
    )
    inventory = EMPTY.extended(store.manifest.names)
    configs = Configs(TrainConfig(num_steps=8, global_batch_size=8), mixture=config)
    start_run(tmp_path / "run", store, inventory, configs.all(), None, started=0.0)
    again = reopen_run(tmp_path / "run", 5, store, configs.all(), None)
    assert again.config(MixtureConfig) == config
    other = dataclasses.replace(configs, mixture=dataclasses.replace(config, schedule=None))
    with pytest.raises(UserError, match=r"mixture\.schedule"):
        reopen_run(tmp_path / "run", 5, store, other.all(), None)

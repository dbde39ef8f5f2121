"""The mixture: rates from the counts of a store, and the table of what is drawn."""

import dataclasses

import numpy as np
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.mixture import MIXTURE_COLUMNS, MixtureConfig, mixture_table
from langsamp_jax.progress import table
from langsamp_jax.sampling import Sampler
from langsamp_jax.store import Counts, Manifest, Store

SEEN = "deu_Latn"  # one of XLM-R's


def with_train_counts(manifest: Manifest, counts: dict[str, tuple[int, int]]) -> Manifest:
    """``manifest`` with these lines and rows by language-script."""
    train = {name: Counts(lines, 0, 0, rows) for name, (lines, rows) in sorted(counts.items())}
    return dataclasses.replace(manifest, counts={**manifest.counts, "train": train})


@pytest.fixture
def manifest(store_path) -> Manifest:
    return Store(store_path).manifest


def test_temperature_rule_is_a_power_of_the_training_rows(manifest):
    rows = np.array([manifest.counts["train"][name].rows for name in manifest.names])
    default = rows**0.3
    np.testing.assert_allclose(MixtureConfig().rates(manifest), default / default.sum())
    capped = np.minimum(rows, 60) ** 0.5
    found = MixtureConfig(temperature=2, maximum_rows=60).rates(manifest)
    np.testing.assert_allclose(found, capped / capped.sum())
    assert len(set(rows.tolist())) > 4 and sum(rows > 60) > 1  # else the cap shows nothing


def test_langsamp_rule_counts_lines_and_knows_what_xlmr_has_seen(manifest):
    """Of language-scripts that XLM-R has not seen, small ones are left out."""
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
    np.testing.assert_allclose(MixtureConfig(rule="langsamp").rates(made), expected, rtol=1e-6)
    lower = MixtureConfig(rule="langsamp", minimum_sentences=29_999).rates(made)
    assert np.all(lower > 0)
    sampler = MixtureConfig(rule="langsamp").sampler(made, seed=0)
    language, _ = sampler.span(0, 1000)
    assert {made.names[index] for index in language} == set(quota)


def test_langsamp_rule_without_any_language_is_refused(manifest):
    made = with_train_counts(manifest, {"qaa_Latn": (100, 10)})
    with pytest.raises(UserError, match="mixture.minimum_sentences"):
        MixtureConfig(rule="langsamp").sampler(made, seed=0)


def test_sampler_has_the_rows_rates_and_seed(manifest):
    config = MixtureConfig(temperature=3)
    sampler = config.sampler(manifest, seed=11)
    assert np.array_equal(sampler.rows, manifest.column("train", "rows"))
    np.testing.assert_allclose(sampler.rates, config.rates(manifest), atol=2**-30)
    expected = Sampler.create(sampler.rows, config.rates(manifest), 11)
    assert np.array_equal(sampler.batch(5, 64), expected.batch(5, 64))
    other = config.sampler(manifest, seed=12)
    assert not np.array_equal(sampler.batch(5, 64), other.batch(5, 64))


def test_table_says_what_will_be_drawn(manifest):
    sampler = MixtureConfig().sampler(manifest, seed=0)
    records = mixture_table(manifest, sampler, planned_rows=5000)
    assert [record["language"] for record in records] == sorted(manifest.names)
    drawn = np.bincount(sampler.span(0, 5000)[0], minlength=len(records))
    for record, number in zip(records, drawn, strict=True):
        counts = manifest.counts["train"][record["language"]]
        assert (record["lines"], record["rows"]) == (counts.lines, counts.rows)
        assert record["tokens"] == counts.tokens
        assert record["epochs"] == pytest.approx(number / counts.rows)
        assert record["rate"] == pytest.approx(number / 5000, abs=2 / 5000)
    assert sum(record["rate"] for record in records) == pytest.approx(1)
    assert all(type(value) in (str, int, float) for record in records for value in record.values())
    lines = table(records, MIXTURE_COLUMNS).splitlines()
    assert lines[0].split() == ["language", "lines", "rows", "tokens", "p", "epochs"]
    assert len(lines) == 2 + len(records)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "uniform"},
        {"temperature": 0},
        {"temperature": "high"},
        {"maximum_rows": 0},
        {"maximum_rows": 1.5},
        {"minimum_sentences": 0},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(UserError) as refused:
        MixtureConfig(**wrong)
    ((field, value),) = wrong.items()
    assert str(refused.value).startswith(f"mixture.{field} = {value!r}: expected ")

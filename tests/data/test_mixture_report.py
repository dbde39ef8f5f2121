"""The planned run: what is drawn from each language-script, as records and as a table."""

import json
import types

import numpy as np
import pytest

from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.mixture_report import mixture_report, mixture_table

PLAN = {"num_steps": 200, "batch_size": 25}


def test_table_says_what_will_be_drawn(manifest):
    sampler = MixtureConfig().sampler(manifest, seed=0, **PLAN)
    records = mixture_table(manifest, sampler, **PLAN)
    assert [record["language"] for record in records] == sorted(manifest.names)
    drawn = np.bincount(sampler.span(0, 5000)[0], minlength=len(records))
    for record, number in zip(records, drawn, strict=True):
        counts = manifest.counts["train"][record["language"]]
        assert (record["lines"], record["rows"]) == (counts.lines, counts.rows)
        assert (record["tokens"], record["drawn"]) == (counts.tokens, number)
        assert record["epochs"] == pytest.approx(number / counts.rows)
        assert record["rate"] == pytest.approx(number / 5000, abs=2 / 5000)
        assert record["rates"] == {0: record["rate"]}
    assert sum(record["rate"] for record in records) == pytest.approx(1)
    assert [record["language"] for record in json.loads(json.dumps(records))] == [*manifest.names]


def test_table_has_the_rates_of_every_phase(manifest):
    schedule = [{"from_step": step, "temperature": 1.0 + step} for step in (50, 60, 70, 80)]
    config = MixtureConfig(temperature=1, schedule=schedule)
    sampler = config.sampler(manifest, seed=0, **PLAN)
    for index, record in enumerate(mixture_table(manifest, sampler, **PLAN)):
        phases = [phase.rates(manifest)[index] for _, phase in config.phases()]
        assert [*record["rates"].values()] == pytest.approx(phases, abs=1e-8)
        assert [*record["rates"]] == [0, 50, 60, 70, 80]
        assert record["rate"] == pytest.approx(np.dot([50, 10, 10, 10, 120], phases) / 200)
    titles = mixture_report(config, manifest, sampler, **PLAN).splitlines()[0].split("  ")
    shown = [title.strip() for title in titles if title.strip().startswith("p from")]
    assert shown == ["p from 0", "p from 50", "p from 70", "p from 80"]


def test_report_shows_who_is_repeated_most_and_the_sums(four):
    config = MixtureConfig()
    sampler = config.sampler(four, seed=0, **PLAN)
    lines = mixture_report(config, four, sampler, **PLAN).splitlines()
    assert lines[0].split() == ["language", "lines", "rows", "tokens", "p", "epochs"]
    assert [line.split()[0] for line in lines[2:6]] == [*four.names]
    most = lines.index("3 of 4 are repeated, these most of all:")
    assert [line.split()[0] for line in lines[most + 3 : most + 6]] == [*four.names[:3]]
    assert "4 language-scripts: 1,002 lines, 444 rows, 44,400 tokens" in lines
    assert "200 steps of 25 rows: 5,000 rows, 11.26 times the store" in lines
    assert lines[-1].endswith("1 of 4: ddd_Latn")
    few = mixture_report(config, four, config.sampler(four, 0, 2, 50), 2, 50).splitlines()
    most = few.index("1 of 4 are repeated, these most of all:")
    assert few[most + 3].split()[0] == "aaa_Latn" and not few[most + 4]
    none = mixture_report(config, four, config.sampler(four, 0, 1, 4), 1, 4)
    assert "repeated" not in none


@pytest.mark.parametrize("maximum", [None, 300, {"qaa_Latn": 200, "*": 100}])
@pytest.mark.parametrize("temperature", [1, 2, 1 / 0.3, 100])
def test_p_of_the_table_is_that_of_seqio(manifest, temperature, maximum):
    """Of tasks with as many examples as there are lines; to the rounding to 2^-31."""
    import seqio  # seconds, of TensorFlow: for this test alone

    def rate(name: str) -> float:
        stats = {"examples": manifest.counts["train"][name].lines}
        task = types.SimpleNamespace(cache_dir="cached", get_cached_stats=lambda split: stats)
        cap = maximum.get(name, maximum["*"]) if isinstance(maximum, dict) else maximum
        return seqio.mixing_rate_num_examples(task, cap, temperature=temperature)

    config = MixtureConfig(temperature=temperature, count="lines", maximum_count=maximum)
    records = mixture_table(manifest, config.sampler(manifest, seed=0, **PLAN), **PLAN)
    rates = np.array([rate(record["language"]) for record in records])
    found = [record["rate"] for record in records]
    np.testing.assert_allclose(found, rates / rates.sum(), rtol=0, atol=2**-30)

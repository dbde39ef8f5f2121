"""Rates: seqio's rule, the published rule, and rows within limits."""

import collections
import csv

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from langsamp_jax.data.rates import limited_rows, reference_sentences, temperature_rates
from langsamp_jax.data.sampling import Sampler

examples = st.lists(st.integers(1, 10**10), min_size=1, max_size=50)


@pytest.mark.slow
@given(examples, st.floats(0.2, 100), st.one_of(st.none(), st.integers(1, 10**10)))
def test_rates_are_those_of_seqio(counts, temperature, maximum):
    import seqio  # seconds, of TensorFlow: for this test alone

    class Task:
        name, cache_dir = "task", "cached"

        def __init__(self, count: int):
            self.count = count

        def get_cached_stats(self, split: str) -> dict[str, int]:
            return {"examples": self.count}

    expected = np.array(
        [seqio.mixing_rate_num_examples(Task(n), maximum, 1.0, temperature) for n in counts]
    )
    found = temperature_rates(np.array(counts), temperature, maximum)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-9)
    assert abs(found.sum() - 1) < 1e-12


def test_temperature_from_proportional_to_uniform():
    counts = np.array([1, 0, 9, 90])
    np.testing.assert_allclose(temperature_rates(counts, 1), counts / 100)
    np.testing.assert_allclose(temperature_rates(counts, 1e9), [1 / 3, 0, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(temperature_rates(counts, 1, maximum=9), np.array([1, 0, 9, 9]) / 19)


def filled(rates: np.ndarray, total: int, most: np.ndarray) -> np.ndarray:
    """Water filling, plainly: who is above the limit stays there, the others share the rest."""
    given_rows, full = np.zeros(len(rates)), np.zeros(len(rates), bool)
    for _ in rates:
        rest = total - most[full].sum()
        given_rows = np.where(full, most, rest * rates / max(rates[~full].sum(), 1e-300))
        full = full | (given_rows > most)
    return given_rows


limited = st.tuples(st.one_of(st.just(0.0), st.floats(1e-3, 1.0)), st.integers(0, 1000))


@given(st.lists(limited, min_size=1, max_size=30), st.floats(0, 1))
@example([(0.5, 10), (0.5, 0)], 1.0)
@example([(1.0, 7), (0.01, 7), (0.0, 7)], 1.0)  # all that there is
def test_limited_rows_are_those_of_water_filling(languages, part):
    rates, most = map(np.array, zip(*languages, strict=True))
    total = int(part * most[rates > 0].sum())
    assume(total > 0)
    rows = limited_rows(rates, total, most)
    assert rows.sum() == total
    assert np.all((0 <= rows) & (rows <= most)) and not rows[rates == 0].any()
    assert np.abs(rows - filled(rates, total, most)).max() < 1 + 1e-6


def test_limited_rows_by_hand():
    """Of 100 rows in proportion 5 : 3 : 2 the first may have 30; 70 go to the others, 42 and 28;
    the third may have 20, and 8 of its go to the second."""
    rates = np.array([0.5, 0.3, 0.2])
    assert limited_rows(rates, 100, np.array([100, 100, 100])).tolist() == [50, 30, 20]
    assert limited_rows(rates, 100, np.array([30, 100, 100])).tolist() == [30, 42, 28]
    assert limited_rows(rates, 100, np.array([30, 100, 20])).tolist() == [30, 50, 20]
    assert limited_rows(rates, 100, np.array([30, 50, 20])).tolist() == [30, 50, 20]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), min_size=1, max_size=40))
@example([(29_999, False), (30_000, False), (30_001, False), (5, True)])
def test_reference_sentences_follow_the_published_rule(languages):
    counts, seen = map(np.array, zip(*languages, strict=True))
    taking_part = [c for c, s in languages if not s and c >= 30_000]
    smallest = min(taking_part, default=30_000)
    for (count, known), found in zip(languages, reference_sentences(counts, seen), strict=True):
        if known:
            assert found == 30 * smallest
        elif count < 30_000:
            assert found == 0
        else:
            assert abs(found - 30 * smallest * (count / smallest) ** 0.3) <= 1 + 1e-9 * found


def glot500c(shared_data) -> tuple[np.ndarray, np.ndarray]:
    """Sentences of each language-script of Glot500-c, and whether XLM-R has seen it."""
    with open(shared_data / "langsamp" / "glot500c_language_stats.csv", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    counts = np.array([int(record["new_length"]) for record in records])
    return counts, np.array([record["XLM-R"] == "True" for record in records])


def test_reference_sentences_reproduce_the_published_facts(shared_data):
    counts, seen = glot500c(shared_data)
    quota = reference_sentences(counts, seen)
    assert collections.Counter(seen[quota > 0].tolist()) == {True: 100, False: 470}
    assert counts[~seen & (quota > 0)].min() == 30_015
    assert set(quota[seen].tolist()) == {900_450}
    assert round(quota[seen].sum() / 1e6, 1) == 90.0
    assert round(quota[~seen].sum() / 1e6) == 830
    assert round(quota.max() / 1e6, 2) == 8.95
    assert round(quota.sum() / 1e6) == 920


@pytest.mark.parametrize(
    ("alpha", "starved_by_floors", "starved_by_decimals"),
    [(1.0, 408, 174), (0.7, 306, 0), (0.5, 168, 0), (0.3, 0, 0)],
)
def test_every_language_of_glot500c_is_drawn(
    shared_data, alpha, starved_by_floors, starved_by_decimals
):
    """The 562 of 30,000 sentences or more: of each as many as its rate says, in a run of 150,000
    steps of 1,024 rows and in one pass over the corpus. Levanter gives each floor(2048 p) of every
    block of 2,048, MaxText rounds p to four decimals: who gets 0 so is never drawn."""
    counts, _ = glot500c(shared_data)
    large = counts[counts >= 30_000]
    rates = temperature_rates(large, 1 / alpha)
    assert len(large) == 562
    assert (np.floor(2048 * rates) == 0).sum() == starved_by_floors
    assert (np.round(rates, 4) == 0).sum() == starved_by_decimals
    for sizes in (large, counts):  # in the whole table there are smaller ones, down to 1,201
        rates = temperature_rates(sizes, 1 / alpha)
        for rows in (150_000 * 1024, int(sizes.sum())):
            drawn = Sampler.create(sizes, rates, seed=0).drawn(rows)
            assert drawn.min() > 100
            assert np.abs(drawn - rows * rates).max() < 2

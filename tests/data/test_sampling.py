"""The sampler: exact counts, close to expectation at every row, epochs without repetition."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langsamp_jax.data import sampling
from langsamp_jax.data.rates import temperature_rates
from langsamp_jax.data.sampling import (
    PERIOD,
    Allocation,
    Sampler,
    integer_rates,
    permute,
)
from langsamp_jax.errors import UserError

FAR = 2**55  # rows; a batch of 1,024 rows a second gets there in a million years

seeds = st.integers(-(2**63), 2**63 - 1)
rate = st.one_of(st.just(0.0), st.floats(1e-13, 1e-6), st.floats(1e-3, 1.0))
language = st.tuples(st.integers(1, 50), rate)  # rows, rate


languages = st.lists(language, min_size=1, max_size=30).filter(
    lambda drawn: any(r for _, r in drawn)
)
of_rates = languages.map(lambda drawn: integer_rates(np.array([rate for _, rate in drawn])))
of_counts = st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any).map(np.array)
allocations = st.one_of(of_rates, of_counts).map(Allocation)


@st.composite
def samplers(draw: st.DrawFn) -> Sampler:
    """One to four allocations, of rates or of counts, from row 0, soon, and much later on."""
    rows, rates = map(np.array, zip(*draw(languages), strict=True))
    weights = [integer_rates(rates)]
    start = st.one_of(st.integers(1, 400), st.integers(1, 2**40))
    starts = sorted({0, *draw(st.lists(start, max_size=3))})
    for _ in starts[1:]:
        counts = st.lists(st.integers(0, 1000), min_size=len(rows), max_size=len(rows))
        weights.append(np.array(draw(counts.filter(any))))
    return Sampler.in_phases(rows, starts, weights, draw(seeds))


@pytest.fixture(scope="module")
def sizes_610() -> np.ndarray:
    """Rows of 610 languages, from one to tens of millions."""
    return np.exp(np.random.default_rng(0).normal(6, 3, 610)).astype(np.int64) + 1


def pairs(span: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return sorted(zip(*(part.tolist() for part in span), strict=True))


@given(allocations, st.lists(st.integers(0, FAR), min_size=1, max_size=8))
def test_counts_sum_exactly_never_shrink_and_stay_within_the_bound(allocation, rows):
    drawn = allocation.drawn(np.array(sorted(rows)))
    assert drawn.sum(axis=-1).tolist() == sorted(rows)
    assert np.all(np.diff(drawn, axis=0) >= 0) and np.all(drawn >= 0)
    turn = int(allocation.weights.sum())
    for row, counts in zip(sorted(rows), drawn.tolist(), strict=True):
        for count, weight, bound in zip(
            counts, allocation.weights.tolist(), allocation.deviation_bound.tolist(), strict=True
        ):  # in whole numbers: count - row * weight / turn would be rounded
            assert abs(count * turn - row * weight) <= bound * turn * (1 + 1e-9)


@given(samplers(), st.lists(st.integers(0, FAR), min_size=1, max_size=8))
def test_counts_go_on_through_a_mixture_that_changes(sampler, rows):
    """They add up what each allocation gives in its own time, and stray by no more than these."""
    rows = sorted([*rows, *sampler.starts, *(start + 1 for start in sampler.starts)])
    drawn = sampler.drawn(np.array(rows))
    assert drawn.sum(axis=-1).tolist() == rows
    assert np.all(np.diff(drawn, axis=0) >= 0)
    ends = [*sampler.starts[1:], FAR + 2]
    for row, counts in zip(rows, drawn.tolist(), strict=True):
        expected, bound = [Fraction(0)] * len(counts), np.zeros(len(counts))
        for start, end, phase in zip(sampler.starts, ends, sampler.allocations, strict=True):
            if inside := max(0, min(row, end) - start):
                weights = phase.weights.tolist()
                shares = [Fraction(inside * weight, sum(weights)) for weight in weights]
                expected = [sum(pair) for pair in zip(expected, shares, strict=True)]
                bound += phase.deviation_bound
        for count, wanted, away in zip(counts, expected, bound.tolist(), strict=True):
            assert abs(count - wanted) <= away * (1 + 1e-9)


@given(samplers(), st.integers(0, 2000))
def test_every_row_belongs_to_one_language(sampler, start):
    drawn = sampler.drawn(np.arange(start, start + 100))
    assert set(np.diff(drawn, axis=0).sum(axis=-1)) == {1}
    assert np.all(np.diff(drawn, axis=0) >= 0)
    assert drawn[7].tolist() == sampler.drawn(start + 7).tolist()
    assert (
        drawn.reshape(4, 25, -1).tolist()
        == sampler.drawn(np.arange(start, start + 100).reshape(4, 25)).tolist()
    )


@given(allocations)
def test_no_mixture_deviates_by_two_rows(allocation):
    """In a Huffman tree a node is at least as heavy as the heavier child of its sibling, so that
    an inner node has at most 1 / (1 + s) of its parent, where s <= 1 is the share of its own
    heavier child: at most 1.5 rows on inner nodes and 1.75 on leaves."""
    bound, weights = allocation.deviation_bound, allocation.weights
    assert np.all(bound <= 1.75)
    assert np.all(bound[weights == weights.sum()] == 0)


@given(allocations, st.integers(0, 2**20), st.integers(0, 2**23))
def test_whole_turns_are_exact(allocation, turns, rest):
    weights = allocation.weights
    start = turns * int(weights.sum())
    assert allocation.drawn(start).tolist() == (turns * weights).tolist()
    together = turns * weights + allocation.drawn(rest)
    assert allocation.drawn(start + rest).tolist() == together.tolist()


def test_the_stream_of_a_seed_stays_what_it_is():
    """What a run has drawn, it must draw again: these were written down once."""
    rates = np.array([0.1, 0.25, 0.15, 0, 0.5])
    sampler = Sampler.create(np.array([3, 50, 7, 0, 1000]), rates, seed=4)
    language, row = sampler.batch(10**6, 12)
    assert language.tolist() == [1, 1, 4, 1, 4, 4, 2, 0, 4, 4, 4, 2]
    assert row.tolist() == [17, 40, 459, 37, 584, 386, 4, 0, 467, 795, 637, 2]
    assert sampler.drawn(10**9 + 7).tolist() == [100000001, 250000002, 150000001, 0, 500000003]


@pytest.mark.parametrize("temperature", [1, 1 / 0.3, 1e9])
def test_610_languages_stay_within_about_one_row(sizes_610, temperature):
    rates = temperature_rates(sizes_610, temperature)
    allocation = Allocation(integer_rates(rates))
    size, starts = 1024, np.arange(0, 2000 * 1024, 1024)
    drawn = allocation.drawn(starts)
    assert allocation.deviation_bound.max() < 1.1
    assert np.abs(drawn - starts[:, None] * rates).max() < 1.1
    assert np.abs(np.diff(drawn, axis=0) - size * rates).max() < 2.2  # of one step


@given(samplers(), st.integers(0, FAR), st.lists(st.integers(0, 60), min_size=2, max_size=2))
def test_spans_join(sampler, start, lengths):
    middle, stop = start + lengths[0], start + sum(lengths)
    parts = pairs(sampler.span(start, middle)) + pairs(sampler.span(middle, stop))
    assert sorted(parts) == pairs(sampler.span(start, stop))
    assert len(parts) == sum(lengths)


@given(samplers(), st.integers(0, 2**40), st.integers(1, 200))
def test_a_batch_is_a_shuffle_of_its_span(sampler, step, size):
    batch = sampler.batch(step, size)
    assert pairs(batch) == pairs(sampler.span(step * size, (step + 1) * size))
    weights = [allocation.weights for allocation in sampler.allocations]
    again = Sampler.in_phases(sampler.rows, sampler.starts, weights, sampler.seed)
    assert np.array_equal(batch, again.batch(step, size))
    language, row = batch
    assert np.all(np.sum(weights, axis=0)[language] > 0)
    assert np.all((0 <= row) & (row < sampler.rows[language]))


def test_every_part_of_a_batch_is_a_mix():
    sampler = Sampler.create(np.full(16, 100), np.ones(16), seed=3)
    batches = np.array([sampler.batch(step, 64)[0] for step in range(200)])
    for place in batches.T:  # each place sees each language 12.5 times on average
        assert np.all(np.bincount(place, minlength=16) > 0)
    for part in np.split(batches, 8, axis=1):
        assert np.abs(np.bincount(part.ravel(), minlength=16) / 100 - 1).max() < 0.35
    assert len({tuple(batch) for batch in batches}) == len(batches)


@given(samplers(), st.integers(0, 3))
def test_epochs_are_permutations(sampler, phase):
    """Across a change of the mixture too: a language's epochs do not begin with the phases."""
    start = max(0, sampler.starts[phase % len(sampler.starts)] - 200)
    number = 400
    languages, rows = sampler.span(start, start + number)
    before = sampler.drawn(start)
    for index in set(languages.tolist()):
        own, size = rows[languages == index], int(sampler.rows[index])
        to_next = -int(before[index]) % size
        epochs = [own[i : i + size] for i in range(to_next, len(own), size)]
        for epoch in [own[:to_next], *epochs]:
            assert len(set(epoch.tolist())) == len(epoch)
            if len(epoch) == size:
                assert sorted(epoch.tolist()) == list(range(size))


def test_orders_differ_between_epochs_languages_and_seeds():
    rows = np.array([100, 100])
    orders = set()
    for seed in range(3):
        languages, drawn = Sampler.create(rows, np.ones(2), seed).span(0, 800)
        for index in range(2):
            orders |= {tuple(epoch) for epoch in drawn[languages == index].reshape(4, 100)}
    assert len(orders) == 3 * 2 * 4


@given(st.integers(1, 3000), seeds, st.integers(-1, 700), st.integers(0, 2**40))
def test_permute_is_a_permutation_computed_element_by_element(size, seed, stream, epoch):
    whole = permute(np.arange(size), np.full(size, size), seed, stream, epoch)
    assert sorted(whole.tolist()) == list(range(size))
    some = np.arange(0, size, 7)
    assert np.array_equal(
        permute(some, np.full(some.shape, size), seed, stream, epoch), whole[some]
    )


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 13])
def test_permutations_put_everything_everywhere(size):
    epochs = np.arange(400 * size)
    placed = [
        permute(np.full(epochs.shape, i), np.full(epochs.shape, size), 7, 0, epochs)
        for i in range(size)
    ]
    found = np.array([np.bincount(values, minlength=size) for values in placed])
    assert np.abs(found / 400 - 1).max() < 0.25  # five standard deviations
    if size <= 4:
        assert set(zip(*np.array(placed).tolist(), strict=True)) == set(
            itertools.permutations(range(size))
        )


def test_permutations_leave_neighbours_apart():
    order = permute(np.arange(10_000), np.full(10_000, 10_000), 0, 0, 0)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(order)) <= 10) < 0.01


def test_hash_gives_the_published_numbers_of_splitmix64():
    """Its state grows by the same constant that the hash adds."""
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(5)]
    assert sampling._hash(np.array(states, np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(rate, min_size=1, max_size=50).filter(any))
def test_integer_rates_round_to_exactly_one_turn(rates):
    rates = np.array(rates)
    weights, exact = integer_rates(rates), rates / rates.sum() * PERIOD
    assert weights.sum() == PERIOD
    assert np.array_equal(weights > 0, rates > 0)
    off = np.abs(weights - exact)
    largest = np.argmax(exact)  # pays for rates that were raised to one in a turn
    assert np.all(np.delete(off, largest) < 2) and off[largest] <= len(rates)


def test_nothing_to_draw_is_refused():
    with pytest.raises(UserError, match="every rate is zero"):
        Sampler.create(np.array([3, 4]), np.zeros(2), seed=0)
    with pytest.raises(ValueError, match="without rows"):
        Sampler.create(np.array([3, 0]), np.ones(2), seed=0)

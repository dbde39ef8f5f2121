"""Which rows of which language-script come at which step, at given rates.

Everything is a function of (seed, row number); there is no iterator and nothing to save.
"""

import dataclasses
import functools
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from langsamp_jax.errors import UserError

PERIOD = 1 << 31  # rates are integers that sum to this, so that counts stay exact for ever
INFINITE = 1 << 40  # rows of a language that is a stream: they come in their own order


def integer_rates(rates: np.ndarray) -> np.ndarray:
    """Returns integers W_l with sum 2^31, by largest remainder; no rate above 0 becomes 0."""
    exact = rates / rates.sum() * PERIOD
    weights = np.where(rates > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    missing = PERIOD - int(weights.sum())
    if missing > 0:
        largest_remainder = np.argsort(np.floor(exact) - exact, kind="stable")
        weights[largest_remainder[:missing]] += 1
    else:  # rates below 2^-31 were raised: the most frequent language pays
        weights[np.argmax(weights)] += missing
    return weights


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Gives each of an endless sequence of rows to a language, at constant rates.

    Allocation is by nested two-way splits. The languages are the leaves of a Huffman tree over
    their weights; of m rows that reach a node with weights W = W_left + W_right, the left child
    gets ``round(m W_left / W)`` and the right child the rest. Both are monotone in m, so counts
    never shrink; they sum exactly; after ``sum(weights)`` rows every language has had exactly its
    weight. A split is off by at most half a row, and a leaf inherits the share ``W_leaf / W_node``
    of what its ancestors are off by, so the deviation from the expectation is bounded for ever:
    ``deviation_bound`` (see docs/decisions.md for what it is in practice).

    Attributes:
      weights: int64 [languages], summing to 2^31 at most, so that products stay exact.
    """

    weights: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """Returns the rates as drawn, float64 [languages]."""
        return self.weights / self._period

    @property
    def deviation_bound(self) -> np.ndarray:
        """Returns float64 [languages]: how far, in rows, a count can be from its expectation."""
        tree, total = self._tree, np.zeros(len(self._tree.weight))
        for node, left, right in tree.levels:
            for child in (left, right):
                share = tree.weight[child] / tree.weight[node]
                total[child] = 0.5 + share * total[node]
        return total[: len(self.weights)]

    def drawn(self, row: np.ndarray | int) -> np.ndarray:
        """Counts the rows of each language that come before a row.

        Args:
          row: int or int64 [...].

        Returns:
          int64 [..., languages], summing to ``row``.
        """
        tree = self._tree
        periods, rest = np.divmod(np.asarray(row, np.int64), self._period)
        count = np.zeros((*rest.shape, len(tree.weight)), np.int64)
        count[..., tree.root] = rest
        for node, left, right in tree.levels:
            reached, weight = count[..., node], tree.weight[node]
            count[..., left] = (reached * tree.weight[left] + weight // 2) // weight
            count[..., right] = reached - count[..., left]
        return periods[..., None] * self.weights + count[..., : len(self.weights)]

    @functools.cached_property
    def _period(self) -> int:
        return int(self.weights.sum())

    @functools.cached_property
    def _tree(self) -> "_Tree":
        return _huffman(self.weights)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Gives the stream of rows: global row g belongs to a language and is one of its rows.

    A mixture that changes is several allocations, each from a global row on. A language's running
    count goes on through all of them and is its own position, which runs through its rows in
    epochs of a seeded permutation: no row comes again before all others have come.

    Attributes:
      rows: int64 [languages], how many rows each language has.
      starts: the global row from which each allocation holds, the first 0, ascending.
      allocations: as many.
      seed: names one stream.
    """

    rows: np.ndarray
    starts: tuple[int, ...]
    allocations: tuple[Allocation, ...]
    seed: int

    @staticmethod
    def create(rows: np.ndarray, rates: np.ndarray, seed: int) -> "Sampler":
        """Makes a sampler of constant rates; raises UserError where all are zero."""
        if not np.any(np.asarray(rates) > 0):
            raise UserError("the mixture draws from no language: every rate is zero")
        return Sampler.in_phases(rows, (0,), [integer_rates(np.asarray(rates, np.float64))], seed)

    @staticmethod
    def in_phases(
        rows: np.ndarray, starts: Sequence[int], weights: Sequence[np.ndarray], seed: int
    ) -> "Sampler":
        """Makes a sampler of the integer rates ``weights[k]`` from global row ``starts[k]`` on.

        Raises ValueError where a language without rows has a weight.
        """
        rows = np.asarray(rows, np.int64)
        if any(np.any((weight > 0) & (rows == 0)) for weight in weights):
            raise ValueError("a language without rows has a rate above zero")
        return Sampler(rows, tuple(starts), tuple(map(Allocation, weights)), seed)

    def drawn(self, row: np.ndarray | int) -> np.ndarray:
        """Counts the rows of each language that come before a global row.

        Args:
          row: int or int64 [...].

        Returns:
          int64 [..., languages], summing to ``row``.
        """
        row = np.asarray(row, np.int64)
        phase = np.searchsorted(self.starts, row, side="right") - 1
        counts = np.empty((*row.shape, len(self.rows)), np.int64)
        for index in np.unique(phase):
            inside = row[phase == index] - self.starts[index]
            counts[phase == index] = self._before[index] + self.allocations[index].drawn(inside)
        return counts

    def span(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows ``start <= g < stop``, in language order.

        Returns:
          int64 [stop - start] language indices and int64 [stop - start] row indices.
        """
        before, after = self.drawn(np.array([start, stop]))
        counts = after - before
        language = np.repeat(np.arange(len(counts)), counts)
        first = np.cumsum(counts) - counts
        position = before[language] + np.arange(stop - start) - first[language]
        rows = self.rows[language]
        epoch, index = np.divmod(position, rows)
        permuted = permute(index, rows, self.seed, language, epoch)
        return language, np.where(rows == INFINITE, position, permuted)

    def batch(self, step: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of one step, shuffled, so that every slice of the batch is a mix."""
        language, row = self.span(step * size, (step + 1) * size)
        order = permute(np.arange(size), np.full(size, size), self.seed, -1, step)
        return language[order], row[order]

    @functools.cached_property
    def _before(self) -> np.ndarray:
        """Returns the rows drawn before each allocation, int64 [allocations, languages]."""
        lengths = np.diff(self.starts).tolist()
        whole = [phase.drawn(rows) for phase, rows in zip(self.allocations, lengths, strict=False)]
        return np.cumsum([np.zeros_like(self.rows), *whole], axis=0)


class _Tree(NamedTuple):
    """Holds a Huffman tree: nodes 0 .. languages - 1 are the leaves; ``levels`` go down."""

    root: int
    weight: np.ndarray  # int64 [nodes]
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # (node, left, right) of each depth


def _huffman(weights: np.ndarray) -> _Tree:
    leaves = np.flatnonzero(weights)
    heap = [(int(weights[leaf]), int(leaf)) for leaf in leaves]
    heapq.heapify(heap)
    weight = dict(enumerate(weights.tolist()))
    children: dict[int, tuple[int, int]] = {}
    while len(heap) > 1:
        light, heavy = heapq.heappop(heap), heapq.heappop(heap)
        node = len(weight)
        weight[node], children[node] = light[0] + heavy[0], (heavy[1], light[1])
        heapq.heappush(heap, (weight[node], node))
    levels, depth = [], [heap[0][1]]
    while depth := [node for node in depth if node in children]:
        left, right = zip(*(children[node] for node in depth), strict=True)
        levels.append((np.array(depth), np.array(left), np.array(right)))
        depth = [*left, *right]
    return _Tree(heap[0][1], np.array(list(weight.values())), levels)


def permute(
    index: np.ndarray,
    size: np.ndarray,
    seed: int,
    stream: np.ndarray | int,
    epoch: np.ndarray | int,
) -> np.ndarray:
    """Returns element ``index`` of a pseudo-random permutation of ``range(size)``.

    A Feistel network over the next power of two, walked along its cycle until it lands inside
    the range (Black and Rogaway, 2002). Elementwise; nothing is stored.

    Args:
      index, size: int64 [n], with ``0 <= index < size``.
      seed, stream, epoch: the key; ``stream`` and ``epoch`` are scalars or [n].

    Returns:
      int64 [n].
    """
    key = _hash(_hash(_hash(_uint64(seed)) ^ _uint64(stream)) ^ _uint64(epoch))
    key = np.broadcast_to(key, index.shape)
    bits = np.ceil(np.log2(np.maximum(size, 2))).astype(np.uint64)
    value = index.astype(np.uint64)
    outside = np.ones(index.shape, bool)
    while outside.any():
        value[outside] = _feistel(value[outside], bits[outside], key[outside])
        outside = value >= size.astype(np.uint64)
    return value.astype(np.int64)


def _feistel(value: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Maps ``[0, 2^bits)`` onto itself; an even number of rounds gives both halves their width."""
    right_bits = bits - bits // np.uint64(2)
    left_bits = bits - right_bits
    left, right = value >> right_bits, value & _mask(right_bits)
    for round_number in range(6):
        mixed = _hash(key ^ _hash(right + (np.uint64(round_number) << np.uint64(56))))
        left, right = right, left ^ (mixed & _mask(left_bits))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


def _mask(bits: np.ndarray) -> np.ndarray:
    return (np.uint64(1) << bits) - np.uint64(1)


def _uint64(value: np.ndarray | int) -> np.ndarray:
    return np.asarray(value, np.int64).astype(np.uint64)


def _hash(value: np.ndarray) -> np.ndarray:
    """Hashes by SplitMix64's finaliser (Steele, Lea and Flood, 2014), elementwise modulo 2^64."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))

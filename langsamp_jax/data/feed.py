"""batch = f(store, mixture, seed, step): any step's rows, read ahead, placed on the devices."""

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from langsamp_jax.data.sampling import Sampler
from langsamp_jax.data.store import Split
from langsamp_jax.languages.inventory import Inventory, TableIds


class Batch(NamedTuple):
    """Holds the rows of one step, on the host or on the devices; each in one language-script."""

    tokens: jax.Array | np.ndarray  # int32 [batch, length]
    attention_mask: jax.Array | np.ndarray  # bool [batch, length], False on padding
    ids: TableIds  # int32 [batch] each


class Rows(NamedTuple):
    """Names the rows of a split that a step reads: int64 [batch] each, in batch order."""

    language: np.ndarray
    row: np.ndarray

    def describe(self, split: Split, positions: np.ndarray, limit: int = 8) -> str:
        """Returns ``deu_Latn:17, ...``: the rows at ``positions`` of the batch, for a message."""
        named = [f"{split.names[self.language[i]]}:{self.row[i]}" for i in positions[:limit]]
        more = len(positions) - len(named)
        return ", ".join(named) + (f" and {more} more" if more > 0 else "")


class Feed:
    """Gives the training rows of any step, in O(1).

    The global batch is a function of (sampler, step) alone. Each process reads only the rows that
    its own devices hold under ``sharding``.
    """

    def __init__(
        self,
        split: Split,
        sampler: Sampler,
        inventory: Inventory,
        batch_size: int,
        sharding: jax.sharding.Sharding,
    ):
        self.split, self.sampler, self.batch_size = split, sampler, batch_size
        self._ids = table_ids(split, inventory)
        self._sharding = sharding
        self._local = local_positions(sharding, batch_size)

    def rows(self, step: int) -> Rows:
        """Returns which rows ``step`` reads, on all processes together."""
        return Rows(*self.sampler.batch(step, self.batch_size))

    def batch(self, step: int) -> Batch:
        """Returns the global batch of ``step`` on the devices; reads this process's share only."""
        language, row = self.rows(step)
        local = Rows(language[self._local], row[self._local])
        return place(read(self.split, self._ids, local), self._sharding)

    def batches(self, start: int, stop: int, ahead: int = 2) -> Iterator[Batch]:
        """Yields the batches of ``start <= step < stop``; a thread reads ``ahead`` of them."""
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as reader:
            pending = collections.deque(
                reader.submit(self.batch, step) for step in range(start, min(start + ahead, stop))
            )
            try:
                for step in range(start, stop):
                    batch = pending.popleft().result()
                    if step + ahead < stop:
                        pending.append(reader.submit(self.batch, step + ahead))
                    yield batch
            finally:
                for future in pending:
                    future.cancel()


def read(split: Split, ids: TableIds, rows: Rows) -> Batch:
    """Reads rows into a host batch. ``ids`` has the table rows of each language-script."""
    tokens, lengths = split.read(*rows)
    attention_mask = np.arange(split.sequence_length) < lengths[:, None]
    return Batch(tokens, attention_mask, TableIds(*(table[rows.language] for table in ids)))


def table_ids(split: Split, inventory: Inventory) -> TableIds:
    """Returns the table rows of each language-script of a split, int32 [languages] each."""
    rows = np.array([inventory.ids(name) for name in split.names], np.int32)
    return TableIds(*rows.T)


def local_positions(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Returns int64 [local], the positions of the global batch that this process's devices hold."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def place(host: Any, sharding: jax.sharding.Sharding) -> Any:
    """Puts each process's rows on its devices: one global array, sharded by rows, for each leaf."""
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), host)

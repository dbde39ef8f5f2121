"""The objective's loss on the validation rows, by language-script, in one pass.

What is random in an example depends on the row alone, so the loss is the same at every batch size
and on any number of devices.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.data.feed import Batch, Rows, local_positions, place, read, table_ids
from langsamp_jax.data.store import Split
from langsamp_jax.hardware.environment import random_key
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.objectives.base import Examples, Objective
from langsamp_jax.parallel.distributed import compile_with_barrier
from langsamp_jax.parallel.mesh import replicated

VALIDATION_SEED = 20_240_918  # fixed, so that losses of different runs on one store compare


class LossEvaluator:
    """Evaluates parameters on the first ``max_rows`` validation rows of each language-script."""

    def __init__(
        self,
        objective: Objective,
        split: Split,
        inventory: Inventory,
        sharding: jax.sharding.NamedSharding,
        batch_size: int,
        max_rows: int | None = None,
    ):
        self.split, self._sharding, self._batch_size = split, sharding, batch_size
        self._ids, self._local = table_ids(split, inventory), local_positions(sharding, batch_size)
        taken = split.rows if max_rows is None else np.minimum(split.rows, max_rows)
        language = np.repeat(np.arange(len(taken)), taken)
        self.rows = Rows(language, np.concatenate([np.arange(n) for n in taken]).astype(np.int64))
        self.rows_total = len(language)
        self.everywhere = everywhere = replicated(sharding.mesh)

        def examples(batch, language, row) -> Examples:
            base = random_key(VALIDATION_SEED)
            keys = jax.vmap(lambda a, b: jax.random.fold_in(jax.random.fold_in(base, a), b))(
                language, row
            )
            return objective.prepare(keys, batch)

        def add(params: Any, totals: jax.Array, batch, language, row) -> jax.Array:
            _, (loss, count) = objective.loss(params, examples(batch, language, row), None)
            member = jax.nn.one_hot(language, totals.shape[1], dtype=jnp.float32)
            return totals + jnp.matmul(jnp.stack([loss, count]), member, precision="highest")

        self._examples = jax.jit(examples)
        self._add = compile_with_barrier(jax.jit(add, donate_argnums=1, out_shardings=everywhere))
        self._zero = jax.jit(lambda: jnp.zeros((2, len(taken))), out_shardings=everywhere)

    def __call__(self, params: Any) -> dict[str, float]:
        """Returns ``eval/loss`` over all predictions, and ``eval/loss/NAME`` of each
        language-script that has any."""
        loss, count = self.totals(params)
        columns = zip(self.split.names, loss, count, strict=True)
        by_language = {f"eval/loss/{name}": total / n for name, total, n in columns if n}
        return {"eval/loss": float(loss.sum() / count.sum()), **by_language}

    def totals(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [languages] summed losses in nats, and numbers of predictions."""
        totals = self._zero()
        for arguments in self.batches(self.rows):
            totals = self._add(params, totals, *arguments)
        loss, count = np.asarray(totals, np.float64)
        return loss, count

    def examples(self) -> Iterator[tuple[np.ndarray, Examples]]:
        """Yields the language of each row of a batch, int32 [rows], and what its loss reads."""
        for batch, language, row in self.batches(self.rows):
            yield np.asarray(language), self._examples(batch, language, row)

    def batches(self, rows: Rows) -> Iterator[tuple[Batch, jax.Array, jax.Array]]:
        """Yields rows of the split on the devices, with the language and the number of each row.

        Rows that only fill the last batch have no valid token: they count for nothing.
        """
        size, local = self._batch_size, self._local
        for start in range(0, len(rows.row), size):
            language, row = (field[start : start + size] for field in rows)
            missing = size - len(language)
            language, row = np.pad(language, (0, missing)), np.pad(row, (0, missing))
            mine = Rows(language[local], row[local])
            batch = read(self.split, self._ids, mine)
            absent = local >= size - missing
            batch = batch._replace(attention_mask=batch.attention_mask & ~absent[:, None])
            keyed = tuple(field.astype(np.int32) for field in mine)
            yield place((batch, *keyed), self._sharding)

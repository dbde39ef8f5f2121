"""What is measured on the validation rows: the loss, and whether the encoder tells texts apart.

What is random in an example depends on the row alone, so the loss is the same at every batch size
and on any number of devices.

The quickest way to the frequencies of the pieces is one state for all tokens: the loss then comes
from the head's bias and the language vectors alone. Too high a rate can hold a run there. Its loss
still falls; fine-tuning and retrieval find nothing.
"""

from collections.abc import Iterator, Mapping
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
from langsamp_jax.parallel.sharding import use_mesh

VALIDATION_SEED = 20_240_918  # fixed, so that losses of different runs on one store compare
SENTENCE_COSINE = "encoder/sentence_cosine"

_COSINE_ROWS = 64  # 2,016 pairs
_COLLAPSED = 0.95  # docs/decisions.md has the values of healthy and collapsed runs


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

        def row_losses(params: Any, batch, language, row) -> tuple[jax.Array, jax.Array]:
            return objective.loss(params, examples(batch, language, row), None)[1]

        self._examples = jax.jit(examples)
        self._row_losses = jax.jit(row_losses, out_shardings=everywhere)
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

    def by_row(self, params: Any, rows: Rows) -> np.ndarray:
        """Returns float64 [2, rows]: the summed loss of each row in nats, and its predictions."""
        with use_mesh(self.everywhere.mesh):
            parts = [self._row_losses(params, *arguments) for arguments in self.batches(rows)]
        joined = [np.concatenate([*map(np.asarray, column)]) for column in zip(*parts, strict=True)]
        return np.array(joined, np.float64)[:, : len(rows.row)]

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


class SentenceCosine:
    """Evaluates how alike the vectors of different validation rows are: 1 where all are the same.

    A row's vector is the mean of the last layer's states over its tokens, none of which is masked.
    The mean cosine of all pairs is taken after each dimension has been scaled to the same root mean
    square: XLM-R has a few so large that all raw cosines are near 1 though it tells texts apart.

    Args:
      loss: of whose rows 64 are taken, at equal distances.
    """

    def __init__(self, model: Any, loss: LossEvaluator):
        last, count = loss.rows_total - 1, min(_COSINE_ROWS, loss.rows_total)
        chosen = np.linspace(0, last, count).astype(np.int64)
        self._loss, self.rows = loss, Rows(*(field[chosen] for field in loss.rows))

        def sums(params: Any, batch: Batch) -> jax.Array:
            states = model.apply({"params": params}, *batch, method=model.encode)
            valid = batch.attention_mask[..., None].astype(jnp.float32)
            vectors = (states.astype(jnp.float32) * valid).sum(axis=1)
            vectors /= jnp.maximum(valid.sum(axis=1), 1)
            return jnp.stack([vectors.sum(axis=0), jnp.square(vectors).sum(axis=0)])

        self._sums = compile_with_barrier(jax.jit(sums, out_shardings=loss.everywhere))

    def __call__(self, params: Any) -> dict[str, float]:
        """Returns the mean cosine by its name; nothing where there is one row alone."""
        n = len(self.rows.row)
        if n < 2:
            return {}
        batches = self._loss.batches(self.rows)
        parts = [self._sums(params, batch) for batch, *_ in batches]
        total, squares = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
        by_dimension = (total**2 / np.maximum(squares, 1e-30) - 1) / (n - 1)
        return {SENTENCE_COSINE: float(by_dimension.mean())}


def collapse_warning(step: int, measured: Mapping[str, float]) -> str | None:
    """Returns what is said where the encoder gives nearly the same vector for every text."""
    if (cosine := measured.get(SENTENCE_COSINE, 0.0)) <= _COLLAPSED:
        return None
    return (
        f"step {step:,}: the encoder hardly tells texts apart ({SENTENCE_COSINE} {cosine:.3f}, "
        f"above {_COLLAPSED}); if that stays so, start again with a lower optimizer.learning_rate "
        "or more optimizer.warmup_steps"
    )

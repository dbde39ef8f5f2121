"""Masked-LM loss on the validation rows, per language-script, in one pass.

The masks depend on the row alone, so the loss is the same at every batch size and device count.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.data.feed import Rows, local_positions, place, read, table_ids
from langsamp_jax.data.store import Split, Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import Inventory
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.masked_lm import ObjectiveConfig, mask_rows, masked_lm_loss
from langsamp_jax.parallel.distributed import compile_with_barrier
from langsamp_jax.parallel.sharding import (
    MeshConfig,
    batch_sharding,
    data_parallelism,
    make_mesh,
    use_mesh,
)
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.run import Run

_ROWS_AT_ONCE = 4096
_MASK_SEED = 20_240_918  # fixed, so that losses of different runs on one store compare


class MaskedLmEvaluator:
    """Evaluates parameters on the first ``max_rows`` validation rows of each language-script."""

    def __init__(
        self,
        model: LangSamp,
        split: Split,
        inventory: Inventory,
        vocabulary: Vocabulary,
        objective: ObjectiveConfig,
        sharding: jax.sharding.NamedSharding,
        batch_size: int,
        max_rows: int | None = None,
    ):
        self.split, self._sharding, self._batch_size = split, sharding, batch_size
        self._ids = table_ids(split, inventory)
        taken = split.rows if max_rows is None else np.minimum(split.rows, max_rows)
        language = np.repeat(np.arange(len(taken)), taken)
        self.rows = Rows(language, np.concatenate([np.arange(n) for n in taken]).astype(np.int64))
        self.rows_total = len(language)
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())

        def add(params: Any, totals: jax.Array, batch, language, row) -> jax.Array:
            base = jax.random.key(_MASK_SEED)
            keys = jax.vmap(lambda a, b: jax.random.fold_in(jax.random.fold_in(base, a), b))(
                language, row
            )
            masked = mask_rows(keys, batch.tokens, batch.attention_mask, vocabulary, objective)
            _, (loss, count) = masked_lm_loss(model, params, batch, masked, objective)
            member = jax.nn.one_hot(language, totals.shape[1], dtype=jnp.float32)
            return totals + jnp.matmul(jnp.stack([loss, count]), member, precision="highest")

        self._add = compile_with_barrier(jax.jit(add, donate_argnums=1, out_shardings=everywhere))
        self._zero = jax.jit(lambda: jnp.zeros((2, len(taken))), out_shardings=everywhere)

    def __call__(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """float64 [languages] summed losses in nats and float64 [languages] numbers of targets."""
        totals = self._zero()
        for arguments in self._batches():
            totals = self._add(params, totals, *arguments)
        loss, count = np.asarray(totals, np.float64)
        return loss, count

    def _batches(self) -> Iterator[tuple[Any, ...]]:
        size = self._batch_size
        local = local_positions(self._sharding, size)
        for start in range(0, self.rows_total, size):
            language, row = (field[start : start + size] for field in self.rows)
            missing = size - len(language)
            language, row = np.pad(language, (0, missing)), np.pad(row, (0, missing))
            mine = Rows(language[local], row[local])
            batch = read(self.split, self._ids, mine)
            absent = local >= size - missing  # rows that only fill the last batch count for nothing
            batch = batch._replace(attention_mask=batch.attention_mask & ~absent[:, None])
            keyed = tuple(field.astype(np.int32) for field in mine)
            yield place((batch, *keyed), self._sharding)


def evaluate_masked_lm(
    run: Run, params: Any, store: Store, rows_per_device: int = 32
) -> dict[str, Any]:
    """The loss on every validation row of a store, beside what unigram frequencies give.

    Returns:
      ``loss`` and ``unigram_entropy`` over all rows together, and ``languages``: a record each
      with ``language``, ``rows``, ``targets``, ``loss``, ``unigram_entropy`` (None: no rows).
    """
    run.check_store(store)
    mesh, split = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)), store.split("validation")
    if not split.rows.any():
        raise UserError(f"{store.path} has no validation rows")
    evaluator = MaskedLmEvaluator(
        run.model(),
        split,
        run.inventory,
        store.manifest.vocabulary,
        run.config(ObjectiveConfig),
        batch_sharding(mesh),
        rows_per_device * data_parallelism(mesh),
    )
    with use_mesh(mesh):
        loss, count = evaluator(params)
    together, each = unigram_entropy(split, evaluator.rows, store.manifest.vocabulary)
    columns = zip(split.names, split.rows, loss, count, each, strict=True)
    return {
        "loss": float(loss.sum() / count.sum()),
        "unigram_entropy": together,
        "languages": [
            {
                "language": name,
                "rows": int(rows),
                "targets": int(targets),
                "loss": float(total / targets) if targets else None,
                "unigram_entropy": float(entropy) if targets else None,
            }
            for name, rows, total, targets, entropy in columns
        ],
    }


def summary(names: tuple[str, ...], loss: np.ndarray, count: np.ndarray) -> dict[str, float]:
    """``eval/loss`` over all targets, and ``eval/loss/NAME`` of each that has targets."""
    measured = {f"eval/loss/{n}": s / c for n, s, c in zip(names, loss, count, strict=True) if c}
    return {"eval/loss": float(loss.sum() / count.sum()), **measured}


def unigram_entropy(split: Split, rows: Rows, vocabulary: Vocabulary) -> tuple[float, np.ndarray]:
    """The entropy, in nats, of the non-special tokens of ``rows`` under their own frequencies.

    A model that knows nothing but how often each piece occurs in this very text has this loss.

    Returns:
      over all rows together (the language unknown), and float64 [languages] for each on its own.
    """
    own, pooled = np.full(len(split.names), np.nan), np.zeros(vocabulary.size, np.int64)
    for index in np.unique(rows.language):
        counts = np.zeros(vocabulary.size, np.int64)
        chosen = np.flatnonzero(rows.language == index)
        for start in range(0, len(chosen), _ROWS_AT_ONCE):
            part = chosen[start : start + _ROWS_AT_ONCE]
            tokens, lengths = split.read(rows.language[part], rows.row[part])
            valid = np.arange(split.sequence_length) < lengths[:, None]
            counts += np.bincount(tokens[valid], minlength=vocabulary.size)
        counts[list(vocabulary.special_ids)] = 0
        own[index] = _entropy(counts)
        pooled += counts
    return _entropy(pooled), own


def _entropy(counts: np.ndarray) -> float:
    counts = counts[counts > 0]
    if not counts.size:
        return float("nan")
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())

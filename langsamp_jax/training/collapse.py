"""What wrecks an encoder: a rate too high for its weights, and the sign that it has happened.

The quickest way to the frequencies of the pieces is one state for all tokens: the loss then comes
from the head's bias and the language vectors alone. Too high a rate can hold a run there. Its loss
still falls; fine-tuning and retrieval find nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langsamp_jax.data.feed import Batch, Rows
from langsamp_jax.parallel.distributed import compile_with_barrier
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.validation import LossEvaluator

NAME = "encoder/sentence_cosine"

_ROWS = 64  # 2,016 pairs
_COLLAPSED = 0.99
_CONTINUED = 2e-4  # the highest rate for trained weights; the published run took 5e-5


def rate_warnings(optimizer: OptimizerConfig, init_from: Path | None) -> list[str]:
    """Returns what is said of a rate from scratch for weights that are trained already."""
    if init_from is None or optimizer.learning_rate <= _CONTINUED:
        return []
    return [
        f"optimizer.learning_rate = {optimizer.learning_rate:g} is a rate for random weights; "
        f"above {_CONTINUED:g} it can undo what those of {init_from} have learned: --gin_file "
        "continued.gin has the published 5e-5"
    ]


class SentenceCosine:
    """Evaluates how alike the vectors of different validation rows are: 1 where all are the same.

    A row's vector is the mean of the last layer's states over its tokens, none of which is masked.
    The mean cosine of all pairs is taken after each dimension has been scaled to the same root mean
    square: XLM-R has a few so large that all raw cosines are near 1 though it tells texts apart.

    Args:
      loss: of whose rows 64 are taken, at equal distances.
    """

    def __init__(self, model: Any, loss: LossEvaluator):
        chosen = np.linspace(0, loss.rows_total - 1, min(_ROWS, loss.rows_total)).astype(np.int64)
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
        return {NAME: float(np.mean((total**2 / np.maximum(squares, 1e-30) - 1) / (n - 1)))}


def collapse_warning(step: int, measured: Mapping[str, float]) -> str | None:
    """Returns what is said where the encoder gives nearly the same vector for every text."""
    if (cosine := measured.get(NAME, 0.0)) <= _COLLAPSED:
        return None
    return (
        f"step {step:,}: the encoder hardly tells texts apart ({NAME} {cosine:.4f}, above "
        f"{_COLLAPSED}); if that stays so, start again with a lower optimizer.learning_rate or "
        "more optimizer.warmup_steps"
    )

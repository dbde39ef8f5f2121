"""The contract between what a run minimises and the loop that minimises it."""

from typing import Any, Protocol

import jax

from langsamp_jax.data.feed import Batch
from langsamp_jax.hardware.environment import random_key

Examples = Any  # a tree of arrays whose first axis is the row


class Objective(Protocol):
    """What a run minimises. The loop, the validation and the plan know nothing else of it.

    A step calls ``prepare`` once for the whole batch, cuts the examples along their first axis
    into ``train.accumulation_steps`` parts, and differentiates the total of ``loss`` for each. It
    adds up the gradients and the counts of all parts and divides once: the update minimises the
    mean over everything counted in the global batch, on any number of devices and parts. For that
    to hold, an objective keeps three promises:

    - **sums and counts, never means.** A part or a device that counts less must weigh less.
    - **a pure function of its arguments.** All that is random comes from the keys. They are folded
      from (seed, step) and the row's position in the global batch, so what is done to a row is the
      same on every mesh, and a resumed run repeats it.
    - **static shapes.** What depends on the data is a weight, never a shape: one program serves
      all steps.

    An objective is a frozen dataclass: what it holds besides the model (the vocabulary, its
    settings) is constant in the compiled step. A new one is a file in this room, made by
    ``set_up`` in ``training/setup.py``.

    Attributes:
      model: the Flax module whose parameters the run trains.
    """

    model: Any

    def prepare(self, keys: jax.Array, batch: Batch) -> Examples:
        """Returns what the loss reads: tokens hidden, shifted or left as they are.

        Runs on the device, under the mesh, before the batch is cut into parts.

        Args:
          keys: [rows], one for each row of the batch.
          batch: the rows, as the feed places them.

        Returns:
          a tree of arrays, each [rows, ...].
        """
        ...

    def loss(
        self, params: Any, examples: Examples, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns what is minimised, as a sum.

        Args:
          params: the parameters of ``model``.
          examples: what ``prepare`` gave, or some of its rows.
          dropout_key: for the model's dropout; None: without dropout, as in validation.

        Returns:
          float32 [] the sum to differentiate; and float32 [rows] the same by row, in nats, with
          float32 [rows] how many predictions each row counts.
        """
        ...

    def step_flops(self, rows: int, length: int) -> float:
        """Returns the useful FLOPs of an update on ``rows`` of ``length`` tokens, for MFU.

        Forward and backward, without what is recomputed.
        """
        ...


def step_keys(seed: int, step: jax.Array | int, rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns all that is random in the update after ``step`` updates: a key for each row of the
    batch, [rows], and the key of dropout."""
    row_key, dropout_key = jax.random.split(jax.random.fold_in(random_key(seed), step))
    return jax.random.split(row_key, rows), dropout_key

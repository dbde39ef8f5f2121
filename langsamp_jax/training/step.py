"""One update as a pure function: examples, the loss and gradients of each part, the optimizer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from langsamp_jax.data.feed import Batch
from langsamp_jax.hardware.environment import random_key
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.objectives.base import Objective, step_keys
from langsamp_jax.parallel.mesh import replicated
from langsamp_jax.parallel.sharding import batch_sharding


class TrainState(flax.struct.PyTreeNode):
    """Holds what a checkpoint keeps. ``step`` counts finished updates."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def make_initialise(
    model: LangSamp, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[], TrainState]:
    """Returns what makes the first state, its leaves boxed with their logical axis names."""

    def initialise() -> TrainState:
        params = init_params(model, random_key(seed))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return initialise


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulation_steps: int,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the pure step: the loss and gradients of each part of a batch, then one update.

    The gradient is that of the mean over everything counted in the global batch, whatever the
    number of parts or devices: sums are added up and divided once.
    """

    def gradient_sums(params: Any, *part: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        (_, rows), gradients = jax.value_and_grad(objective.loss, has_aux=True)(params, *part)
        return gradients, rows

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        row_keys, dropout_key = step_keys(seed, state.step, len(batch.tokens))
        examples = objective.prepare(row_keys, batch)

        def add_part(sums: Any, part: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            gradients, rows = gradient_sums(state.params, *part)
            return jax.tree.map(jnp.add, sums, gradients), rows

        if accumulation_steps == 1:
            sums, (row_loss, row_count) = gradient_sums(state.params, examples, dropout_key)
        else:
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            parts = jax.tree.map(lambda leaf: _split(leaf, accumulation_steps), examples)
            keys = jax.random.split(dropout_key, accumulation_steps)
            sums, rows = jax.lax.scan(add_part, zeros, (parts, keys))
            row_loss, row_count = (leaf.swapaxes(0, 1).reshape(-1) for leaf in rows)
        share = 1 / row_count.sum()
        gradients = jax.tree.map(lambda leaf: leaf * share, sums)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": row_loss.sum() * share,
            "grad_norm": optax.tree.norm(gradients),
            "row_loss": row_loss,
            "tokens": batch.attention_mask.sum(),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def jit_train_step(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
    state_shardings: TrainState,
    mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
    """Returns the jitted step; it donates the state that goes in. ``plan`` lowers the same."""
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
    )


def _split(leaf: jax.Array, parts: int) -> jax.Array:
    """Cuts [batch, ...] into [parts, batch / parts, ...], each part spread over all devices."""
    strided = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
    return nn.with_logical_constraint(strided, (None, "batch", *[None] * (leaf.ndim - 1)))

"""One update as a pure function: mask, loss and gradients of each part, the optimizer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from langsamp_jax.data.feed import Batch
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.objectives.masked_lm import (
    MaskedExamples,
    ObjectiveConfig,
    mask_rows,
    masked_lm_loss,
)
from langsamp_jax.parallel.sharding import batch_sharding, replicated
from langsamp_jax.text.tokenizer import Vocabulary


class TrainState(flax.struct.PyTreeNode):
    """What a checkpoint holds. ``step`` counts finished updates."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def make_initialise(
    model: LangSamp, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[], TrainState]:
    """A function that makes the first state, its leaves boxed with their logical axis names."""

    def initialise() -> TrainState:
        params = init_params(model, jax.random.key(seed))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return initialise


def make_train_step(
    model: LangSamp,
    optimizer: optax.GradientTransformation,
    vocabulary: Vocabulary,
    objective: ObjectiveConfig,
    accumulation_steps: int,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure step: mask, loss and gradients of each part, one update.

    The gradient is that of the mean over all targets of the global batch, whatever the number of
    parts or devices: sums are added up and divided once.
    """
    use_dropout = model.config.hidden_dropout > 0 or model.config.attention_dropout > 0

    def part_loss(params: Any, batch: Batch, masked: MaskedExamples, key: jax.Array) -> Any:
        key = key if use_dropout else None
        return masked_lm_loss(model, params, batch, masked, objective, key)

    def gradient_sums(params: Any, *part: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        (_, rows), gradients = jax.value_and_grad(part_loss, has_aux=True)(params, *part)
        return gradients, rows

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        row_keys, dropout_key = step_keys(seed, state.step, len(batch.tokens))
        if model.config.tables == "shuffled":
            batch = _shuffle_ids(jax.random.fold_in(dropout_key, 0), batch)
        masked = mask_rows(row_keys, batch.tokens, batch.attention_mask, vocabulary, objective)

        def add_part(sums: Any, part: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            gradients, rows = gradient_sums(state.params, *part)
            return jax.tree.map(jnp.add, sums, gradients), rows

        if accumulation_steps == 1:
            sums, (row_loss, row_count) = gradient_sums(state.params, batch, masked, dropout_key)
        else:
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            cut = jax.tree.map(lambda leaf: _cut(leaf, accumulation_steps), (batch, masked))
            keys = jax.random.split(dropout_key, accumulation_steps)
            sums, rows = jax.lax.scan(add_part, zeros, (*cut, keys))
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
    """The compiled step; the state that goes in is used up. ``plan`` lowers the very same."""
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
    )


def step_keys(seed: int, step: jax.Array | int, rows: int) -> tuple[jax.Array, jax.Array]:
    """All that is random in the update after ``step`` updates: keys of masks [rows], of dropout."""
    mask_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return jax.random.split(mask_key, rows), dropout_key


def _shuffle_ids(key: jax.Array, batch: Batch) -> Batch:
    """Every row takes the language and script of another, whatever its text is."""
    order = jax.random.permutation(key, len(batch.tokens))
    ids = batch.language_ids[order], batch.script_ids[order]
    return batch._replace(language_ids=ids[0], script_ids=ids[1])


def _cut(leaf: jax.Array, parts: int) -> jax.Array:
    """[batch, ...] -> [parts, batch / parts, ...], every part spread over all devices."""
    strided = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
    return nn.with_logical_constraint(strided, (None, "batch", *[None] * (leaf.ndim - 1)))

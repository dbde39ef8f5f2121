"""AdamW and its learning-rate schedule, as in the reference."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from langsamp_jax.config import configurable, require
from langsamp_jax.models.noise import counter_based_bits


@configurable("optimizer")
class OptimizerConfig:
    """Defaults are the published run's: lr 5e-5, no decay, clip 1.0, linear to zero, no warmup.

    Weight decay, where it is used, spares biases and LayerNorm. ``moment_dtype`` is how AdamW's two
    moments are kept between steps: in bfloat16 they take 4 bytes a parameter less.
    """

    learning_rate: float = 5e-5
    schedule: Literal["linear", "constant"] = "linear"
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def check(self) -> None:
        for field in ("learning_rate", "epsilon", "clip_norm"):
            require(getattr(self, field) > 0, self, field, "a number above 0")
        for field in ("warmup_steps", "weight_decay"):
            require(getattr(self, field) >= 0, self, field, "0 or more")
        for field in ("beta1", "beta2"):
            require(0 <= getattr(self, field) < 1, self, field, "0 or more, below 1")


def learning_rate(config: OptimizerConfig, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The rate of update ``step`` (from 0): linear warmup, then constant or linear to 0.

    Counted in updates, whatever the accumulation; the same values as Hugging Face's
    ``get_linear_schedule_with_warmup``.
    """
    warmup, decay = config.warmup_steps, max(1, num_steps - config.warmup_steps)

    def rate(step: jax.Array) -> jax.Array:
        rising = step / max(1, warmup)
        falling = 1.0 if config.schedule == "constant" else (num_steps - step) / decay
        return config.learning_rate * jnp.where(step < warmup, rising, jnp.maximum(falling, 0.0))

    return rate


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        adam if config.moment_dtype == "float32" else _in_bfloat16(adam),
        optax.add_decayed_weights(config.weight_decay, _decays),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    )


def _in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """``adam`` with moments kept in bfloat16.

    A second moment moves by a thousandth at a step, less than bfloat16 can tell apart: rounded to
    the nearest it would stay where it is for ever. Both are rounded up or down at random, so that
    they are right on average.
    """

    def rounded(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        leaves, tree = jax.tree.flatten((state.mu, state.nu))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(leaves))
        leaves = [_round_at_random(key, leaf) for key, leaf in zip(keys, leaves, strict=True)]
        mu, nu = tree.unflatten(leaves)
        return state._replace(mu=mu, nu=nu)

    def update(gradients: Any, state: optax.ScaleByAdamState, params: Any) -> Any:
        whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (state.mu, state.nu))
        state = state._replace(mu=whole[0], nu=whole[1])
        updates, state = adam.update(gradients, state, params)
        return updates, rounded(state)

    return optax.GradientTransformation(lambda params: rounded(adam.init(params)), update)


def _round_at_random(key: jax.Array, x: jax.Array) -> jax.Array:
    """float32 to bfloat16: to one of the two neighbours, the nearer the likelier."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + (counter_based_bits(key, x.shape) >> 16)  # carries into the half that is kept
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _decays(params: Any) -> Any:
    spared = {"bias", "scale", "decoder_bias"}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: spared.isdisjoint(getattr(entry, "key", None) for entry in path), params
    )

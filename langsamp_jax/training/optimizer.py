"""AdamW and its learning-rate schedule, as in the reference."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from langsamp_jax.config import configurable, require


@configurable("optimizer")
class OptimizerConfig:
    """AdamW. Defaults are the published run's: no decay, clip 1.0, linear to zero, no warmup.

    Attributes:
      learning_rate: the highest rate.
      schedule: of the rate after the warmup: linear to 0 at the last step, or constant.
      warmup_steps: steps in which the rate rises linearly from 0.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      epsilon: added to the root of the second moment.
      weight_decay: rate of decay of the parameters, in which biases and LayerNorm are spared.
      clip_norm: norm of all gradients together that a step is cut to.
      moment_dtype: how the first moment is kept between steps: in bfloat16 it takes 2 bytes a
        parameter less. The second stays float32: it moves by a thousandth at a step, which
        bfloat16 cannot tell apart.
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
    """Returns the rate as a function of the update, from 0: warmup, then constant or linear to 0.

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
    """Returns clipping by the global norm, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(
            config.beta1, config.beta2, config.epsilon, mu_dtype=config.moment_dtype
        ),
        optax.add_decayed_weights(config.weight_decay, _decays),
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
    )


def _decays(params: Any) -> Any:
    """Returns which parameters decay: a tree of bools."""
    spared = {"bias", "scale", "decoder_bias"}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: spared.isdisjoint(getattr(entry, "key", None) for entry in path), params
    )

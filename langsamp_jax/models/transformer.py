"""The encoder: learned positions and a stack of blocks of self-attention and feed-forward.

Layers are stacked along a leading axis and scanned, so compilation does not grow with depth.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from langsamp_jax.models.attention import AttentionSpec, attend
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.layers import Dense, Dropout, gather_tokens
from langsamp_jax.models.taps import Taps, tapped


class Encoder(nn.Module):
    """Learned positions, then the stack of blocks, with a LayerNorm in front of it or behind it.

    Between the blocks the states are a matrix with a row for each token, which lies over all
    devices (``tokens``); inside, each device has all tokens of its rows (``batch``).
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        embedded: jax.Array,
        attention_mask: jax.Array,
        deterministic: bool,
        taps: Taps = (),
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Computes the states of all positions.

        Args:
          embedded: [batch, length, hidden_size].
          attention_mask: see ``segments`` of ``attend``.
          taps, positions: what is read on the way, see ``models/taps.py``.

        Returns:
          the states of the last layer, [batch, length, hidden_size]; and of each site that is
          tapped what its tap gives, [layers, ...], of ``states`` [layers + 1, ...].
        """
        config = self.config
        shape = (config.max_length, config.hidden_size)
        table = self.param("position_embeddings", normal_init(config, None, "embed"), shape)
        x = embedded + table[: embedded.shape[1]].astype(config.dtype)
        x = x.reshape(-1, config.hidden_size)
        norm = layer_norm(config, "layer_norm")
        x = x if config.norm_first else norm(x)
        x = Dropout(config.hidden_dropout)(x, deterministic)
        x = nn.with_logical_constraint(x, ("tokens", None))

        stack = nn.scan(
            _rematerialised(config),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * 4,
            length=config.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        blocks = stack(config, name="layers")
        last, readings = blocks(x, attention_mask, deterministic, taps, positions)
        last = norm(last) if config.norm_first else last
        if "states" in readings:
            first, final = (tapped(taps, "states", x, positions)["states"] for x in (x, last))
            inner = jax.tree.map(lambda leaf: leaf[:-1], readings["states"])
            readings["states"] = jax.tree.map(_with_ends, first, inner, final)
        return last.reshape(embedded.shape), readings


class Block(nn.Module):
    """Self-attention and feed-forward, each a residual with LayerNorm behind it or in front."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        attention_mask: jax.Array,
        deterministic: bool,
        taps: Taps,
        positions: jax.Array | None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        config, readings = self.config, {}
        dropout = Dropout(config.hidden_dropout)
        attention_norm = layer_norm(config, "attention_layer_norm")
        output_norm = layer_norm(config, "output_layer_norm")

        def read(site: str, values: jax.Array) -> jax.Array:
            if taps:
                readings.update(tapped(taps, site, values, positions))
            return values

        def self_attention(x: jax.Array) -> jax.Array:
            y = Attention(config, name="attention")(x, attention_mask, deterministic, read)
            return dropout(read("attention", y), deterministic)

        def feed_forward(x: jax.Array) -> jax.Array:
            y = dense(config, config.intermediate_size, ("embed", "mlp"), "intermediate")(x)
            y = read("neurons", nn.gelu(y, approximate=False))
            y = dense(config, config.hidden_size, ("mlp", "embed"), "output")(y)
            return dropout(read("feed_forward", y), deterministic)

        for norm, part in ((attention_norm, self_attention), (output_norm, feed_forward)):
            if config.norm_first:
                x = x + part(gather_tokens(norm(x)))
            else:
                x = norm(x + part(gather_tokens(x)))
            x = nn.with_logical_constraint(x, ("tokens", None))
        read("states", x)
        return x, readings


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of each row.

    Takes and returns states [batch * length, hidden_size]; ``read`` sees the site ``heads``.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        attention_mask: jax.Array,
        deterministic: bool,
        read: Callable[[str, jax.Array], jax.Array],
    ) -> jax.Array:
        config = self.config
        heads = (*attention_mask.shape, config.num_attention_heads, config.head_size)
        query, key, value = (
            _by_heads(dense(config, config.hidden_size, ("embed", "heads"), name)(x).reshape(heads))
            for name in ("query", "key", "value")
        )
        drops = config.attention_dropout > 0 and not deterministic
        dropout = functools.partial(Dropout(config.attention_dropout), deterministic=False)
        mixed = attend(
            query, key, value, attention_mask, config.attention, dropout if drops else None
        )
        mixed = read("heads", _by_heads(mixed).reshape(x.shape))
        return dense(config, config.hidden_size, ("heads", "embed"), "output")(mixed)


def attention_spec(config: ModelConfig, platform: str, length: int) -> AttentionSpec:
    """Returns what decides how a model attends, trained on rows of ``length`` tokens."""
    dropout = config.attention_dropout > 0
    return AttentionSpec(platform, config.dtype, config.head_size, length, dropout)


def _with_ends(first: jax.Array, inner: jax.Array, last: jax.Array) -> jax.Array:
    """Puts what belongs to the two ends of the stack around the layers between."""
    return jnp.concatenate([first[None], inner, last[None]])


def _by_heads(x: jax.Array) -> jax.Array:
    """Splits [batch, length, heads, head_size] by heads, not the rows once more."""
    return nn.with_logical_constraint(x, ("batch", None, "heads", None))


def _rematerialised(config: ModelConfig) -> type[Block]:
    """Returns ``Block``, or one that recomputes in the backward pass what ``config.remat`` says."""
    if config.remat == "none":
        return Block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return nn.remat(
        Block,
        prevent_cse=False,
        static_argnums=(3, 4),  # deterministic, taps
        policy=policy if config.remat == "products" else None,
    )


def normal_init(config: ModelConfig, *axes: str | None) -> nn.initializers.Initializer:
    """Returns the initializer of weights whose axes have these logical names."""
    return nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), axes)


def dense(config: ModelConfig, features: int, axes: tuple[str, str], name: str) -> Dense:
    """Returns a dense layer with ``features`` outputs and the settings of the model."""
    return Dense(features, axes, config.dtype, config.initializer_range, name=name)


def layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    """Returns a LayerNorm, whose statistics are float32 whatever the dtype (Flax's default)."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=config.dtype, name=name)

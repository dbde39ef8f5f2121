"""Taps: what is read inside the encoder, pooled where it arises.

A tap is the name of a site and a pure function of what passes there. It runs inside the scan over
the layers, so that of a layer only what it returns is kept: a vector a sentence, say, and not the
states of all tokens. Each gets

    values     [rows, length, width], in the compute dtype
    positions  bool [rows, length], which of them are asked about; never padding

and returns arrays of any shape, which come back with the layers as their first axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# In the order of computation, with the width of each.
SITES = {
    "heads": "hidden_size",  # the mixed values of all heads, side by side, before their projection
    "attention": "hidden_size",  # what self-attention adds
    "neurons": "intermediate_size",  # behind the activation of the feed-forward
    "feed_forward": "hidden_size",  # what the feed-forward adds
    "states": "hidden_size",  # what a block gives; one layer more: the embeddings are the first
}

Tap = Callable[[jax.Array, jax.Array], Any]
Taps = tuple[tuple[str, Tap], ...]  # a site occurs once; hashable, so a static argument of jax.jit


def tapped(taps: Taps, site: str, values: jax.Array, positions: jax.Array) -> dict[str, Any]:
    """Returns {site: what its tap gives of ``values`` [rows * length, width]}; {} without one."""
    shape = (*positions.shape, values.shape[-1])
    return {name: tap(values.reshape(shape), positions) for name, tap in taps if name == site}


def unchanged(values: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns all values: memory for [layers, rows, length, width] is needed."""
    return values


def sum_over_positions(values: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns float32 [rows, width], and the number of positions, [rows, 1]."""
    weight = positions[..., None].astype(jnp.float32)
    return (values * weight).sum(axis=1), weight.sum(axis=1)


def mean_over_positions(values: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns float32 [rows, width]; 0 for a row without positions."""
    total, count = sum_over_positions(values, positions)
    return total / jnp.maximum(count, 1)


def share_above_zero(values: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns at what share of the positions a value is above 0, float32 [rows, width]: how often
    a neuron fires, as GELU gives more than 0 where its input is above 0."""
    return mean_over_positions((values > 0).astype(jnp.float32), positions)

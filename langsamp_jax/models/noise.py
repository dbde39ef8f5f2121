"""Random bits from a hash of the position in an array: for dropout and for rounding, where
``jax.random`` does far more work than is needed. The same on every mesh."""

import math

import jax
import jax.numpy as jnp


def counter_based_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 ``shape`` of random bits."""
    row_seed, seed = jax.random.bits(key, (2,), jnp.uint32)
    rows = jax.lax.iota(jnp.uint32, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    index = jax.lax.iota(jnp.uint32, math.prod(shape[1:])).reshape(1, *shape[1:])
    return _hash(_hash(rows + row_seed) ^ (index + seed))


def _hash(x: jax.Array) -> jax.Array:
    """A well-mixing bijection of uint32 (two rounds of xorshift and multiplication)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)

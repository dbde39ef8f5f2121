"""Dense layers and dropout that know how they lie on a mesh."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from langsamp_jax.hardware.cpu import product


class Dense(nn.Module):
    """Computes x @ kernel + bias for a matrix ``x`` [tokens, in], in ``dtype``.

    ``axes`` are the logical names of the kernel's two axes. ``embed`` is the states between the
    layers, which lie over all devices by ``tokens``; any other is split as the rules say, while
    each device has all tokens of its rows (``batch``); see ``gather_tokens``.

    Matrices, not three dimensions: on a CPU the gradient of a kernel, a product over batch and
    length, takes half the time when it is a product over one dimension.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    initializer_range: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, output_axis = self.axes
        normal = nn.initializers.normal(self.initializer_range)
        kernel_init = nn.with_logical_partitioning(normal, self.axes)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features))
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (output_axis,))
        bias = self.param("bias", bias_init, (self.features,))
        gathered = tuple(None if axis == "embed" else axis for axis in self.axes)
        kernel = constrain_with_gradient(kernel.astype(self.dtype), gathered, self.axes)
        y = product(x, kernel) + bias.astype(self.dtype)
        if output_axis == "embed":
            return constrain_with_gradient(y, ("tokens", None), ("batch", None))
        return nn.with_logical_constraint(y, ("batch", output_axis))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def constrain_with_gradient(x: jax.Array, forward: tuple, backward: tuple) -> jax.Array:
    """Splits ``x`` over the devices as ``forward`` says, and its gradient as ``backward`` says.

    Both are tuples of logical names. What is gathered here has its gradient scattered, and the
    other way round. A kernel, say, whose rows lie over two devices:

        forward    device 0: rows 0, 1    -- all-gather -->        each device: all rows
                   device 1: rows 2, 3

        backward   device 0: rows 0, 1    <-- reduce-scatter --    each device: the gradient of
                   device 1: rows 2, 3                             all rows, from its own tokens

    Left to itself, the partitioner may move activations instead of kernels, or keep all gradients
    whole.
    """
    return nn.with_logical_constraint(x, forward)


constrain_with_gradient.defvjp(
    lambda x, forward, backward: (constrain_with_gradient(x, forward, backward), None),
    lambda forward, backward, _, gradient: (nn.with_logical_constraint(gradient, backward),),
)


def gather_tokens(x: jax.Array) -> jax.Array:
    """Gathers states [tokens, hidden] over ``tensor``: as they lie inside layers, not between.

    With ``tensor`` = 2, the devices 0 and 1 share the rows a and b of a batch, 2 and 3 others:

        between (``tokens``)               inside (``batch``)

        device 0   tokens of a             devices 0, 1   tokens of a and b
        device 1   tokens of b             devices 2, 3   tokens of c and d
        device 2   tokens of c
        device 3   tokens of d

    Between layers no state is stored twice; inside, each device has its heads, or its part of the
    feed-forward, for all tokens of its rows.
    """
    return constrain_with_gradient(x, ("batch", None), ("tokens", None))


class Dropout(nn.Module):
    """Zeroes values at ``rate`` and scales up the rest; the rng ``dropout`` says which."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0:
            return x
        bits = counter_based_bits(self.make_rng("dropout"), x.shape)
        return jnp.where(bits >= jnp.uint32(self.rate * 2**32), x / (1 - self.rate), 0)


def counter_based_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random bits, uint32 ``shape``: a hash of the position, the same on every mesh.

    ``jax.random`` does far more work than dropout needs.
    """
    row_seed, seed = jax.random.bits(key, (2,), jnp.uint32)
    rows = jax.lax.iota(jnp.uint32, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    index = jax.lax.iota(jnp.uint32, math.prod(shape[1:])).reshape(1, *shape[1:])
    return _hash(_hash(rows + row_seed) ^ (index + seed))


def _hash(x: jax.Array) -> jax.Array:
    """Mixes bits: a bijection of uint32 (two rounds of xorshift and multiplication)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)

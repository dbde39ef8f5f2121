"""Matrix products of bfloat16, which a CPU computes quickly in one form only.

XLA has a kernel for bfloat16 on CPUs that know it (AVX512-BF16), but only for a product that is
asked for in float32, with no transpose in front of it, whose first matrix and result lie row by
row. Other forms are computed in float32, at half the speed, or refused as the program runs. On
other platforms, and on a mesh, these are plain products.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from langsamp_jax.hardware.devices import platform


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y for matrices of one dtype, in that dtype; summed in float32 where that is quicker."""
    return _product(x, y) if _needs_cpu_layout(x) else x @ y


def matmul_nt(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y.T for matrices of one dtype, in float32."""
    return _dot(x, y, 1, 1)


def matmul_tn(x: jax.Array, y: jax.Array) -> jax.Array:
    """x.T @ y for matrices of one dtype, in float32."""
    return _dot(_by_rows(x.T), y, 1, 0) if _needs_cpu_layout(x) else _dot(x, y, 0, 0)


@jax.custom_vjp
def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return _dot(x, y, 1, 0).astype(x.dtype)


def _product_forward(x, y):
    return _product(x, y), (x, y)


def _product_backward(saved, gradient):
    x, y = saved
    of_x = matmul_nt(gradient, y)
    return of_x.astype(x.dtype), matmul_tn(x, gradient).astype(y.dtype)


_product.defvjp(_product_forward, _product_backward)


def _dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    axes = ((x_axis,), (y_axis,)), ((), ())
    out = jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)
    return _by_rows(out) if _needs_cpu_layout(x) else out


def _by_rows(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout((0, 1)))


def _needs_cpu_layout(x: jax.Array) -> bool:
    """Whether the form of a product matters."""
    alone = jax.sharding.get_abstract_mesh().size <= 1
    return x.dtype == jnp.bfloat16 and platform() == "cpu" and alone

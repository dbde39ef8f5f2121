"""What a CPU needs to train at its speed: its form of bfloat16 products, and memory that is kept.

**Products.** XLA has a kernel for bfloat16 on CPUs that know it (AVX512-BF16), but only for a
product that is asked for in float32, with no transpose in front of it, whose first matrix and
result lie row by row. Other forms are computed in float32, at half the speed, or refused as the
program runs. On other platforms, and on a mesh, these are plain products. Measured by
``benchmarks/products.py``.

**Memory.** XLA's CPU client asks for all temporaries of a step at once and frees them behind it.
The GNU allocator hands such blocks back to the system and asks for new ones, page by page and
zeroed, at every step. Elsewhere than on Linux with the GNU C library nothing is done here.
"""

import ctypes
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from langsamp_jax.hardware.devices import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_ROOM = 5  # times what a run holds between steps


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x @ y for matrices of one dtype, in it; summed in float32 where that is quicker."""
    return _product(x, y) if _needs_cpu_layout(x) else x @ y


def matmul_nt(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x @ y.T for matrices of one dtype, in float32."""
    return _dot(x, y, 1, 1)


def matmul_tn(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x.T @ y for matrices of one dtype, in float32."""
    return _dot(_by_rows(x.T), y, 1, 0) if _needs_cpu_layout(x) else _dot(x, y, 0, 0)


@jax.custom_vjp
def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return _dot(x, y, 1, 0).astype(x.dtype)


def _product_forward(x, y):
    return _product(x, y), (x, y)


def _product_backward(saved, gradient):
    x, y = saved
    x_gradient, y_gradient = matmul_nt(gradient, y), matmul_tn(x, gradient)
    return x_gradient.astype(x.dtype), y_gradient.astype(y.dtype)


_product.defvjp(_product_forward, _product_backward)


def _dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    axes = ((x_axis,), (y_axis,)), ((), ())
    out = jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)
    return _by_rows(out) if _needs_cpu_layout(x) else out


def _by_rows(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout((0, 1)))


def _needs_cpu_layout(x: jax.Array) -> bool:
    """Returns whether the form of a product matters: bfloat16, on one CPU device."""
    alone = jax.sharding.get_abstract_mesh().size <= 1
    return x.dtype == jnp.bfloat16 and platform() == "cpu" and alone


def use_one_arena() -> None:
    """Lets all threads share the only arena that can keep large blocks. Call it before JAX makes
    its threads."""
    _set(_ARENA_MAX, 1)


def keep_freed(held: int) -> None:
    """Hands nothing back from now on: the next step finds what the last one has freed.

    Call it behind what is done once, so that what that has needed is not kept. A step can begin
    before the block of the last one is freed, and a process comes to hold two or three of them.
    Nothing is done, therefore, where less than five times ``held``, the bytes of the training
    state, are available.
    """
    if _available() >= _ROOM * held:
        _set(_MMAP_MAX, 0)
        _set(_TRIM_THRESHOLD, -1)  # never


def _set(parameter: int, value: int) -> None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows
        return
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)


def _available() -> int:
    """Returns the bytes that can be had without swapping; 0 where the system does not say it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if "MemAvailable" in line) * 1024
    except (OSError, StopIteration):
        return 0

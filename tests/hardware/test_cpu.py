"""Products and their gradients against NumPy, in the forms that a compiler may make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from langsamp_jax.hardware.cpu import matmul_nt, matmul_tn, product

ROUNDING = {"float32": 1e-5, "bfloat16": 2e-2}  # of results of size 1


def operands(dtype, *shapes):
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.normal(size=shape) / 8, dtype) for shape in shapes]
    return arrays, [np.asarray(array, np.float64) for array in arrays]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("size", [(64, 64, 64), (3, 7, 5), (200, 33, 129), (1, 64, 2)])
def test_products_and_their_gradients(size, dtype):
    m, k, n = size
    (x, y, g), (x64, y64, g64) = operands(dtype, (m, k), (k, n), (m, n))
    out, pull = jax.vjp(jax.jit(product), x, y)
    assert {leaf.dtype.name for leaf in (out, *pull(g))} == {dtype}
    for found, expected in zip((out, *pull(g)), (x64 @ y64, g64 @ y64.T, x64.T @ g64), strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=ROUNDING[dtype])
    for found, expected in (
        (jax.jit(matmul_nt)(g, y), g64 @ y64.T),
        (jax.jit(matmul_tn)(x, g), x64.T @ g64),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_operands_and_results_that_are_transposed_themselves(dtype):
    (x, y, g), (x64, y64, g64) = operands(dtype, (70, 90), (90, 50), (70, 50))
    forms = {  # name -> (function of x, y, g; what it gives)
        "first": (lambda x, y, g: product(x.T, g), x64.T @ g64),
        "second": (lambda x, y, g: product(g, y.T), g64 @ y64.T),
        "result": (lambda x, y, g: product(x, y).T, (x64 @ y64).T),
        "result with transposed": (lambda x, y, g: matmul_nt(g, y).T, y64 @ g64.T),
        "result of transposed": (lambda x, y, g: matmul_tn(x, g).T, g64.T @ x64),
        "one transposed twice": (lambda x, y, g: matmul_tn(x.T, y), x64 @ y64),
        "both": (lambda x, y, g: matmul_tn(x.T, y.T.T), x64 @ y64),
        "parts": (lambda x, y, g: product(x[1:], y[:, ::2]), x64[1:] @ y64[:, ::2]),
    }
    for name, (function, expected) in forms.items():
        found = np.asarray(jax.jit(function)(x, y, g), np.float64)
        np.testing.assert_allclose(found, expected, atol=ROUNDING[dtype], err_msg=name)

"""Lookup and decoder loss against the dense formulas, on one device and on meshes of eight."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from langsamp_jax.models.embedding import decoder_loss, lookup
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import use_mesh

SIZE, PADDED, N, WIDTH = 300, 384, 40, 16


@pytest.fixture(scope="module")
def inputs():
    """Features, table and bias; targets and weights."""
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=shape) for shape in ((N, WIDTH), (PADDED, WIDTH), PADDED))
    targets = rng.integers(0, SIZE, N)
    targets[:2] = 0, SIZE - 1
    return tuple(x.astype("f") for x in arrays), targets.astype("i"), rng.random(N) < 0.8


@functools.partial(jax.jit, static_argnums=(1,))
def value_and_gradients(arguments, at_once, targets, weights):
    """Losses, and the gradients of three times their sum; ``at_once`` None: the dense formula."""

    def total(features, table, bias):
        if at_once is None:
            logits = features @ table[:SIZE].T + bias[:SIZE]
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            each = jnp.where(weights, loss, 0)
            return 3 * each.sum(), each
        loss, each = decoder_loss(features, table[None], bias, targets, weights, SIZE, at_once)
        return 3 * loss, each

    return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arguments)


@pytest.mark.parametrize("at_once", [10**6, 40 * PADDED, 7 * PADDED, 1])
def test_chunks_change_neither_value_nor_gradient(at_once, inputs):
    arguments, *rest = inputs
    gradients, loss = value_and_gradients(arguments, at_once, *rest)
    dense_gradients, dense = value_and_gradients(arguments, None, *rest)
    np.testing.assert_allclose(loss, dense, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, dense_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_value_alone_is_the_same(inputs):
    (features, table, bias), targets, weights = inputs
    loss, each = decoder_loss(features, table[None], bias, targets, weights, SIZE, 1000)
    _, dense = value_and_gradients(*inputs[:1], None, *inputs[1:])
    np.testing.assert_allclose(each, dense, rtol=1e-5, atol=1e-5)
    assert float(loss) == pytest.approx(float(dense.sum()), rel=1e-6)


@pytest.mark.parametrize("at_once", [10**6, 1000])
def test_padded_rows_take_no_part(at_once, inputs):
    (features, table, bias), *rest = inputs
    loud_table, loud_bias = table.copy(), bias.copy()
    loud_table[SIZE:], loud_bias[SIZE:] = 1e4, 1e6
    gradients, loss = value_and_gradients((features, loud_table, loud_bias), at_once, *rest)
    quiet, expected = value_and_gradients((features, table, bias), at_once, *rest)
    np.testing.assert_array_equal(loss, expected)
    np.testing.assert_array_equal(gradients[0], quiet[0])
    assert not np.any(gradients[1][SIZE:])
    assert not np.any(gradients[2][SIZE:])


@pytest.mark.parametrize("at_once", [10**6, 1000])
def test_extreme_logits_stay_finite(at_once, inputs):
    (features, table, bias), targets, weights = inputs
    logits = features.astype("d") @ table[:SIZE].T.astype("d")
    scale = np.float32(1e4 / np.abs(logits).max())
    arguments = features * scale, table, bias
    gradients, loss = value_and_gradients(arguments, at_once, targets, weights)
    exact = arguments[0].astype("d") @ table[:SIZE].T.astype("d") + bias[:SIZE]
    assert np.abs(exact).max() > 9000
    top = exact.max(axis=1, keepdims=True)
    total = np.log(np.exp(exact - top).sum(axis=1)) + top[:, 0]
    expected = np.where(weights, total - exact[np.arange(N), targets], 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=0.01)
    assert all(np.isfinite(part).all() for part in gradients)


def test_memory_is_bounded_by_the_logits_at_once():
    n, vocab, width = 4096, 8192, 16
    floats = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, width), (vocab, width), (vocab,))]
    rest = jax.ShapeDtypeStruct((n,), jnp.int32), jax.ShapeDtypeStruct((n,), jnp.bool)

    def temporary(at_once):
        def total(features, table, bias, targets, weights):
            arguments = features, table[None], bias, targets, weights
            return decoder_loss(*arguments, vocab, at_once)[0]

        step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        compiled = step.lower(*floats, *rest).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = n * vocab * 4
    assert temporary(n * vocab) >= logits  # in one piece: what the chunks are to avoid
    assert temporary(n * vocab // 32) < logits / 8


def test_lookup_reads_and_adds_up_rows():
    rng = np.random.default_rng(1)
    table, tokens = rng.normal(size=(12, 4)).astype("f"), rng.integers(0, 12, (3, 5))
    slopes, other = rng.normal(size=(3, 5, 4)).astype("f"), rng.normal(size=(12, 4)).astype("f")

    def total(table):
        embedded, copies = lookup(table, tokens, "float32")
        np.testing.assert_array_equal(copies.shape, (1, 12, 4))
        return (embedded * slopes).sum() + (copies[0] * other).sum()

    np.testing.assert_array_equal(lookup(table, tokens, "float32")[0], table[tokens])
    assert lookup(table, tokens, "bfloat16")[0].dtype == jnp.bfloat16
    expected = other.copy()
    np.add.at(expected, tokens, slopes)
    np.testing.assert_allclose(jax.grad(total)(table), expected, rtol=1e-6, atol=1e-6)


def tied_loss(table, bias, mix, tokens, targets, weights):
    """A loss that reads the table at both ends, as the model does."""
    embedded, copies = lookup(table, tokens, "float32")
    features = jnp.tanh(embedded @ mix).reshape(-1, WIDTH)
    return decoder_loss(features, copies, bias, targets, weights, SIZE, 2000)


def check_meshes() -> None:
    """Run with eight devices: every mesh gives what one device gives."""
    rng = np.random.default_rng(2)
    shapes = (PADDED, WIDTH), (PADDED,), (WIDTH, WIDTH)
    floats = tuple(rng.normal(size=shape).astype("f") for shape in shapes)
    tokens, targets = (rng.integers(0, SIZE, shape).astype("i") for shape in ((8, 5), 40))
    rest = tokens, targets, rng.random(40) < 0.7
    function = jax.jit(jax.value_and_grad(tied_loss, argnums=(0, 1, 2), has_aux=True))
    expected = function(*floats, *rest)
    assert jax.device_count() == 8
    for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2), (4, 1, 2)):
        with use_mesh(make_mesh(MeshConfig(*sizes))):
            found = jax.jit(jax.value_and_grad(tied_loss, argnums=(0, 1, 2), has_aux=True))(
                *floats, *rest
            )
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5, err_msg=str(sizes))


@pytest.mark.slow
def test_every_mesh_gives_what_one_device_gives():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    check_meshes()

"""Linear probes: multinomial logistic regression, of each layer in turn."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of the squared weights; each starts where the last ended
_PATH_STEPS, _LAST_STEPS = 8, 20  # of L-BFGS: for each decay, and on all rows with the best
_HELD_BACK = 0.2  # of the rows, on which the decay is chosen


def fit_probes(x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> Any:
    """Fits a probe to each layer.

    Minimises the mean cross-entropy plus a decay times the squared weights, by L-BFGS. The decay of
    each layer is that with the least cross-entropy on a fifth of the rows, which are held back.

    Args:
      x: float32 [layers, n, d], each dimension with mean 0 and variance 1.
      y: int [n], 0 to ``classes`` - 1.
      seed: of which rows are held back.

    Returns:
      ``kernel`` [layers, d, classes], ``bias`` [layers, classes].
    """
    held_back = np.random.default_rng(seed).random(len(y)) < _HELD_BACK
    kept, back = (jnp.asarray(rows, jnp.float32) for rows in (~held_back, held_back))
    x, y = jnp.asarray(x), jnp.asarray(y)
    layers, _, width = x.shape
    probe = {"kernel": jnp.zeros((layers, width, classes)), "bias": jnp.zeros((layers, classes))}
    best, least, chosen = probe, jnp.full(layers, jnp.inf), jnp.zeros(layers)
    for decay in DECAYS:
        probe = _fit(x, y, kept, probe, jnp.full(layers, decay), _PATH_STEPS)
        loss = jax.vmap(_cross_entropy, (0, 0, None, None))(probe, x, y, back)
        better = loss < least
        least, chosen = jnp.where(better, loss, least), jnp.where(better, decay, chosen)
        best = jax.tree.map(functools.partial(_where, better), probe, best)
    return _fit(x, y, jnp.ones(len(y)), best, chosen, _LAST_STEPS)


@jax.jit
def log_probabilities(probe: Any, x: jax.Array) -> jax.Array:
    """Returns those of the classes, float32 [layers, n, classes], for ``x`` [layers, n, d]."""
    logits = jnp.einsum("lnd,ldc->lnc", x, probe["kernel"]) + probe["bias"][:, None]
    return jax.nn.log_softmax(logits)


@functools.partial(jax.jit, static_argnums=5)
def _fit(
    x: jax.Array, y: jax.Array, weight: jax.Array, start: Any, decay: jax.Array, steps: int
) -> Any:
    """Goes on from ``start`` by ``steps`` of L-BFGS; ``weight`` [n] is 0 for rows left out."""

    def layer(of_layer: tuple[jax.Array, Any, jax.Array]) -> Any:
        x, probe, decay = of_layer

        def loss(probe: Any) -> jax.Array:
            penalty = decay * jnp.square(probe["kernel"]).sum()
            return _cross_entropy(probe, x, y, weight) + penalty

        solver, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(loss)

        def step(carry: tuple, _: None) -> tuple:
            probe, state = carry
            value, grad = value_and_grad(probe, state=state)
            updates, state = solver.update(
                grad, state, probe, value=value, grad=grad, value_fn=loss
            )
            return (optax.apply_updates(probe, updates), state), None

        return jax.lax.scan(step, (probe, solver.init(probe)), None, length=steps)[0][0]

    # One after the other: with vmap each line search lasts as long as the longest, and batched thin
    # products are slow on CPUs.
    return jax.lax.map(layer, (x, start, decay))


def _cross_entropy(probe: Any, x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    logits = x @ probe["kernel"] + probe["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return (losses * weight).sum() / weight.sum()


def _where(better: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

"""Probes are scikit-learn's logistic regressions, of all layers at once."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from langsamp_jax.analysis import probes
from langsamp_jax.analysis.probes import DECAYS, fit_probes, log_probabilities

LAYERS, CLASSES, WIDTH = 2, 6, 24


def rows(each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two layers, the second of which tells less, [layers, n, width], and the classes."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    y = np.repeat(np.arange(CLASSES), each)
    noise = np.random.default_rng(seed).normal(size=(LAYERS, len(y), WIDTH))
    strength = np.array([0.6, 0.2])[:, None, None]
    return (strength * centres[y] + noise).astype(np.float32), y


@pytest.fixture(scope="module")
def data():
    return *rows(120, 1), *rows(200, 2)


@pytest.mark.parametrize("decay", DECAYS)
def test_it_is_logistic_regression(data, decay):
    x, y, tested, truth = data
    start = {"kernel": np.zeros((LAYERS, WIDTH, CLASSES)), "bias": np.zeros((LAYERS, CLASSES))}
    start = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in start.items()}
    probe = probes._fit(x, y, np.ones(len(y), "f"), start, np.full(LAYERS, decay, "f"), 60)
    found = np.asarray(log_probabilities(probe, tested))
    for layer in range(LAYERS):
        model = LogisticRegression(C=1 / (2 * decay * len(y)), max_iter=1000, tol=1e-8)
        expected = model.fit(x[layer], y).predict_log_proba(tested[layer])
        np.testing.assert_allclose(np.exp(found[layer]), np.exp(expected), atol=5e-3)
        accuracy = (found[layer].argmax(axis=1) == truth).mean()
        assert abs(accuracy - model.score(tested[layer], truth)) < 0.005


@pytest.mark.slow
def test_the_decay_is_chosen_as_cross_validation_would(data):
    """Better than the worst decay, and nearly as good as the best of scikit-learn's."""
    x, y, tested, truth = data
    found = np.asarray(log_probabilities(fit_probes(x, y, CLASSES, 0), tested))
    for layer in range(LAYERS):
        losses = []
        for decay in DECAYS:
            model = LogisticRegression(C=1 / (2 * decay * len(y)), max_iter=1000)
            log_p = model.fit(x[layer], y).predict_log_proba(tested[layer])
            losses.append(-log_p[np.arange(len(truth)), truth].mean())
        ours = -found[layer, np.arange(len(truth)), truth].mean()
        assert ours < min(losses) + 0.2 * (max(losses) - min(losses))
    told = (found.argmax(axis=-1) == truth).mean(axis=1)
    assert told[0] > told[1] + 0.2 > 1 / CLASSES

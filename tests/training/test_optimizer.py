"""Schedule and updates against ``transformers`` and ``torch``."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from langsamp_jax.errors import UserError
from langsamp_jax.models.langsamp import init_params
from langsamp_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.mark.parametrize(
    ("num_steps", "warmup"),
    [(50, 0), (50, 1), (50, 10), (50, 50), (50, 80), (1, 0), (1, 1), (150_000, 0), (150_000, 9000)],
)
def test_the_schedule_is_that_of_transformers(num_steps, warmup):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = OptimizerConfig(learning_rate=5e-5, warmup_steps=warmup)
    parameter = torch.nn.Parameter(torch.zeros(()))
    scheduler = transformers.get_linear_schedule_with_warmup(
        torch.optim.SGD([parameter], lr=config.learning_rate), warmup, num_steps
    )
    scale = scheduler.lr_lambdas[0]
    steps = np.arange(num_steps + 3) if num_steps < 1000 else np.arange(0, num_steps + 1, 997)
    ours = jax.jit(jax.vmap(learning_rate(config, num_steps)))(steps)
    theirs = [config.learning_rate * scale(int(step)) for step in steps]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_a_constant_schedule_rises_and_stays():
    config = OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_steps=4)
    rates = [float(learning_rate(config, 10)(step)) for step in (0, 1, 2, 3, 4, 9, 10, 1000)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


@pytest.mark.parametrize("scale", [0.1, 10.0], ids=["below the clip", "above the clip"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_updates_are_those_of_torch(scale, warmup):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    num_steps, rng = 6, np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.normal(size=(5, 7)), "bias": rng.normal(size=7)},
        "layer_norm": {"scale": rng.normal(size=7), "bias": rng.normal(size=7)},
        "decoder_bias": rng.normal(size=11),
    }
    params = jax.tree.map(lambda leaf: leaf.astype("f"), params)
    grads = [
        jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype("f"), params)
        for _ in range(num_steps)
    ]
    config = OptimizerConfig(
        learning_rate=1e-2,
        warmup_steps=warmup,
        beta1=0.85,
        beta2=0.98,
        epsilon=1e-6,
        weight_decay=0.3,
        clip_norm=3.0,
    )

    theirs = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(leaf)), params)
    kernel, *spared = theirs["dense"]["kernel"], theirs["dense"]["bias"], theirs["decoder_bias"]
    spared += theirs["layer_norm"].values()
    groups = [{"params": [kernel]}, {"params": spared, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        groups, config.learning_rate, (config.beta1, config.beta2), config.epsilon, 0.3
    )
    scheduler = transformers.get_linear_schedule_with_warmup(adamw, warmup, num_steps)

    optimizer = make_optimizer(config, num_steps)
    state, ours = optimizer.init(params), params
    update = jax.jit(optimizer.update)
    for gradient in grads:
        updates, state = update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        for parameter, value in zip(
            jax.tree.leaves(theirs), jax.tree.leaves(gradient), strict=True
        ):
            parameter.grad = torch.tensor(value)
        torch.nn.utils.clip_grad_norm_([kernel, *spared], config.clip_norm)
        adamw.step()
        scheduler.step()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b.detach().numpy(), atol=1e-6), ours, theirs
        )
    assert np.abs(ours["dense"]["kernel"] - params["dense"]["kernel"]).max() > 1e-2


@pytest.fixture(scope="module")
def model_params():
    model = tiny_model()
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, "f"), shapes)


def shrunk(config: OptimizerConfig, params) -> dict[str, bool]:
    """Which leaves move without a gradient."""
    optimizer = make_optimizer(config, 10)
    zeros = jax.tree.map(np.zeros_like, params)
    updates = jax.jit(lambda: optimizer.update(zeros, optimizer.init(params), params)[0])()
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool(np.all(leaf < 0))
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }


def test_weight_decay_spares_biases_and_layer_norms(model_params):
    decayed = shrunk(OptimizerConfig(weight_decay=0.1), model_params)
    spared = {name for name, moved in decayed.items() if not moved}
    assert spared == {name for name in decayed if "bias" in name or "layer_norm" in name}
    embeddings = {"word_embeddings", "encoder/position_embeddings", "conditioning/language"}
    assert embeddings < set(decayed) - spared
    assert len(spared) > len(decayed) / 2


def test_no_decay_unless_asked_for(model_params):
    assert not any(shrunk(OptimizerConfig(), model_params).values())


def test_the_global_norm_is_clipped_not_each_part():
    """With Adam's moments turned off an update's direction is the sign of the clipped gradient;
    with a large epsilon its size is in proportion to it."""
    config = OptimizerConfig(
        learning_rate=1.0, schedule="constant", beta1=0.0, beta2=0.0, epsilon=1e6, clip_norm=1.0
    )
    optimizer = make_optimizer(config, 10)
    params = {"a": np.zeros(1, "f"), "b": np.zeros(1, "f")}
    gradient = {"a": np.array([30.0], "f"), "b": np.array([-40.0], "f")}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"] * 1e6, [-0.6], rtol=1e-4)
    np.testing.assert_allclose(updates["b"] * 1e6, [0.8], rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", "fast"),
        ("learning_rate", float("nan")),
        ("schedule", "cosine"),
        ("warmup_steps", -1),
        ("warmup_steps", 1.5),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", 0.0),
        ("weight_decay", -1e-3),
        ("clip_norm", 0.0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(UserError, match=rf"^optimizer\.{field} = .*: expected "):
        OptimizerConfig(**{field: value})


def test_the_first_moment_alone_is_kept_in_bfloat16():
    """It stops where (1 - beta1) of the way is less than two roundings, of 2^-8 each; a second
    moment would stop at a fifth of its value."""
    config = OptimizerConfig(moment_dtype="bfloat16", clip_norm=1e9)
    exact, kept = (
        make_optimizer(c, 3000)
        for c in (dataclasses.replace(config, moment_dtype="float32"), config)
    )
    gradients = {"kernel": np.linspace(-1, 2, 4096, dtype="f").reshape(64, 64)}
    params = jax.tree.map(np.zeros_like, gradients)

    def moments(optimizer):
        def step(state, _):
            return optimizer.update(gradients, state, params)[1], None

        state = jax.jit(lambda: jax.lax.scan(step, optimizer.init(params), length=1500)[0])()
        (adam,) = (part for part in state if isinstance(part, optax.ScaleByAdamState))
        return adam.mu["kernel"], adam.nu["kernel"]

    (first, second), (exact_first, exact_second) = moments(kept), moments(exact)
    assert (first.dtype, second.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(second, exact_second)
    first, exact_first = np.asarray(first, "d"), np.asarray(exact_first, "d")
    np.testing.assert_allclose(first, exact_first, rtol=2 * 2**-8 / (1 - config.beta1))


def test_training_with_the_first_moment_in_bfloat16_gets_as_far():
    rng = np.random.default_rng(0)
    inputs, truth = rng.normal(size=(256, 32)).astype("f"), rng.normal(size=(32, 8)).astype("f")

    def losses(dtype):
        optimizer = make_optimizer(OptimizerConfig(learning_rate=0.02, moment_dtype=dtype), 400)

        def loss(params):
            return ((inputs @ params["kernel"] - inputs @ truth) ** 2).mean()

        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        params = {"kernel": jnp.zeros((32, 8))}
        return jax.jit(
            lambda: jax.lax.scan(step, (params, optimizer.init(params)), length=400)[1]
        )()

    low, full = losses("bfloat16"), losses("float32")
    assert full[200] < full[0] / 20 and low[200] < low[0] / 20
    np.testing.assert_allclose(low[:100], full[:100], rtol=0.1)

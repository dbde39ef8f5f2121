import itertools
import math

import jax
import jax.numpy as jnp
import pytest

from langsamp_jax.hardware.devices import DEVICES, peak_flops
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.costs import forward_flops, parameter_count, step_flops
from langsamp_jax.models.langsamp import LangSamp, param_shapes


def test_a_hand_worked_case():
    config = ModelConfig(
        hidden_size=4, num_hidden_layers=3, num_attention_heads=2, intermediate_size=10
    )
    parts = forward_flops(config, vocab_size=100, rows=2, length=8, num_targets=1)
    assert parts["layers"] == 2 * 16 * 3 * (4 * 4 * 4 + 2 * 4 * 10)
    assert parts["attention"] == 2 * (2 * 8 * 8) * 4 * 2 * 3  # scores and sums over 2 x 8 x 8 pairs
    assert parts["head"] == 2 * 2 * (4 * 4 + 4 * 100)
    assert step_flops(config, 100, 2, 8, 1) == 3 * sum(parts.values())


def test_xlmr_base_at_512_tokens_with_the_published_vocabulary():
    # 86 M weights in the layers, 24 x 512 x 768 for attention, 77 of 512 positions in the head
    flops = step_flops(ModelConfig(), 401_145, 1, 512, 77) / 512
    by_hand = 6 * (84.93e6 + 12 * 2 * 512 * 768 + 77 / 512 * (401_145 * 768 + 768**2))
    assert flops == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("placement", ["output", "none"])
def test_forward_agrees_with_what_xla_counts(placement):
    config = ModelConfig(
        hidden_size=128,
        num_hidden_layers=1,  # XLA counts the body of a loop once
        num_attention_heads=1,
        intermediate_size=128,
        placement=placement,
    )
    model = LangSamp(config, 1280, 3, 2)
    tokens, ids = jnp.zeros((2, 256), jnp.int32), jnp.zeros(2, jnp.int32)

    def forward(params):
        return model.apply({"params": params}, tokens, tokens == 0, TableIds(ids, ids))

    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), tokens, tokens == 0, TableIds(ids, ids))
    )["params"]
    counted = jax.jit(forward).lower(params).cost_analysis()["flops"]
    ours = sum(forward_flops(config, 1280, 2, 256, num_targets=256).values())
    assert ours <= counted < 1.08 * ours  # it counts elementwise work too


def test_unknown_devices_have_no_peak():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_flops("cpu") is None


def test_no_device_computes_less_than_its_memory_can_feed():
    for kind, device in DEVICES.items():
        assert 50 < device.peak_flops / device.memory_bandwidth < 1000, kind
        assert device.link_bandwidth < device.memory_bandwidth, kind


@pytest.mark.parametrize("architecture", ["xlm-roberta", "xlm-roberta-xl", "bert"])
@pytest.mark.parametrize("placement", ["output", "input", "none"])
def test_every_parameter_is_counted(architecture, placement):
    for use_language, use_script in itertools.product((True, False), repeat=2):
        if placement != "none" and not (use_language or use_script):
            continue
        config = ModelConfig(
            architecture=architecture,
            placement=placement,
            use_language=use_language,
            use_script=use_script,
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=20,
            max_length=17,
        )
        for vocab_size in (128, 129, 300):
            shapes = param_shapes(LangSamp(config, vocab_size, 5, 3))
            expected = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
            assert parameter_count(config, vocab_size, 5, 3) == expected

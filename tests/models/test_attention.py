"""The implementations of attention against PyTorch's, and the choice between them.

The fused kernels need their devices; splash is also interpreted on the CPU, and compiled for a TPU
that is not there. On 8 simulated devices this file is run as a program.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding

from langsamp_jax.errors import UserError
from langsamp_jax.models import attention
from langsamp_jax.models.attention import (
    AttentionSpec,
    attend,
    describe_kernel,
    require_available,
    select_kernel,
    unsupported_reason,
)
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import RULES, use_mesh
from langsamp_jax.plan.topology import compile_only_devices

pytestmark = pytest.mark.usefixtures("optimized")

BATCH, LENGTH, HEADS, HEAD_SIZE = 2, 384, 2, 16  # 3 of splash's blocks
PADDED = np.arange(LENGTH) < np.array([[LENGTH - 100], [17]])
PACKED = np.repeat([[1, 2, 3, 0], [1, 2, 0, 0]], [100, 30, 200, 54], axis=1).astype(np.int32)
AXES = ("data", "fsdp", "tensor")
TPU = AttentionSpec("tpu", jnp.bfloat16, 64, 512, False)
GPU = AttentionSpec("gpu", jnp.bfloat16, 64, 512, False)
CPU = AttentionSpec("cpu", jnp.float32, 64, 512, False)


def interpret_splash(patch: pytest.MonkeyPatch) -> None:
    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    patch.setattr(splash_attention_kernel, "make_splash_mha", make)
    patch.setattr(attention, "platform", lambda: "tpu")


@pytest.fixture(params=["xla", "splash", "cudnn"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each implementation that can be tried here."""
    if request.param == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip("cuDNN needs a GPU")
    if request.param == "splash" and jax.default_backend() != "tpu":
        interpret_splash(monkeypatch)
    return request.param


def inputs(seed: int = 0, shape=(BATCH, LENGTH, HEADS, HEAD_SIZE)) -> list[np.ndarray]:
    """Query, key, value and the gradient of the output: float32."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("f") for _ in range(4)]


@functools.partial(jax.jit, static_argnums=5)
def output_and_gradients(query, key, value, gradient, segments, implementation):
    """The gradient comes from text alone, as in a loss."""
    output, pull = jax.vjp(lambda *qkv: attend(*qkv, segments, implementation), query, key, value)
    return output, *pull(jnp.where(segments[..., None, None] != 0, gradient, 0))


def in_pytorch(arrays: list[np.ndarray], segments: np.ndarray) -> list[np.ndarray]:
    """The same from ``scaled_dot_product_attention`` in float64."""
    torch = pytest.importorskip("torch")
    query, key, value, gradient = (torch.tensor(x.astype(float)).transpose(1, 2) for x in arrays)
    text = torch.tensor(segments != 0)
    ids = torch.tensor(segments.astype(int))
    mask = (ids[:, :, None] == ids[:, None, :])[:, None]
    tensors = [x.requires_grad_() for x in (query, key, value)]
    output = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    output.backward(gradient * text[:, None, :, None])
    found = (output.detach(), *(x.grad for x in tensors))
    return [x.transpose(1, 2).numpy() for x in found]


@pytest.mark.parametrize("segments", [PADDED, PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_outputs_and_gradients_are_pytorchs(implementation, segments, dtype, error) -> None:
    if implementation == "cudnn" and dtype == "float32":
        pytest.skip("cuDNN has no float32")
    arrays = [np.asarray(x, jnp.dtype(dtype)) for x in inputs()]
    found = output_and_gradients(*arrays, segments, implementation)
    text = segments != 0
    for ours, theirs in zip(found, in_pytorch(arrays, segments), strict=True):
        assert ours.dtype == dtype
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(
            np.asarray(ours, "f")[text], theirs[text], atol=error, rtol=error
        )
    for gradient in found[1:]:
        assert not np.asarray(gradient)[~text].any()


@pytest.mark.parametrize("segments", [PADDED, PACKED], ids=["padded", "packed"])
def test_nothing_outside_a_segment_changes_it(implementation, segments) -> None:
    dtype = jnp.bfloat16 if implementation == "cudnn" else jnp.float32
    arrays = [np.asarray(x, dtype) for x in inputs()]
    elsewhere = segments != 1
    others = [np.where(elsewhere[..., None, None], x[::-1, ::-1] * 30, x) for x in arrays]
    before, after = (
        output_and_gradients(*x[:3], arrays[3], segments, implementation) for x in (arrays, others)
    )
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(one)[~elsewhere], np.asarray(other)[~elsewhere])
    assert (np.asarray(before[0]) != np.asarray(after[0])).any()


def test_a_row_of_padding_alone_is_finite(implementation) -> None:
    arrays = [x.astype(jnp.bfloat16) for x in inputs()]
    found = output_and_gradients(*arrays, np.zeros((BATCH, LENGTH), bool), implementation)
    assert all(np.isfinite(x).all() for x in found)


def test_dropout_is_of_the_weights() -> None:
    text = PADDED[..., None, None]

    def keep_even(weights):
        assert weights.shape == (BATCH, HEADS, LENGTH, LENGTH)
        return weights.at[..., 1::2].set(0)

    query, key, value, _ = inputs()
    even = value * (np.arange(LENGTH) % 2 == 0)[:, None, None]
    found = attend(query, key, value, PADDED, "auto", keep_even)
    expected = attend(query, key, even, PADDED)
    np.testing.assert_allclose(found * text, expected * text, atol=1e-5)


@pytest.mark.parametrize(
    ("wish", "case", "chosen"),
    [
        ("auto", CPU, "xla"),
        ("auto", GPU, "cudnn"),
        ("auto", GPU._replace(dtype="bfloat16"), "cudnn"),
        ("auto", GPU._replace(dtype=jnp.float32), "xla"),
        ("auto", GPU._replace(dropout=True), "xla"),
        ("auto", GPU._replace(head_size=20), "xla"),
        ("auto", GPU._replace(length=101), "xla"),
        ("auto", TPU, "splash"),
        ("auto", TPU._replace(length=256), "xla"),
        ("auto", TPU._replace(length=640), "splash"),
        ("auto", TPU._replace(length=600), "xla"),
        ("auto", TPU._replace(dropout=True), "xla"),
        ("splash", TPU._replace(length=256), "splash"),
        ("splash", GPU, "xla"),
        ("cudnn", CPU, "xla"),
        ("xla", TPU, "xla"),
    ],
)
def test_the_choice(wish, case, chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_compute_capability", lambda: (9, 0))
    assert select_kernel(wish, case) == chosen


@pytest.mark.parametrize(("capability", "runs"), [("8.0", True), ("7.5", False), ("gfx942", False)])
def test_cudnn_needs_a_gpu_that_has_it(capability, runs, monkeypatch) -> None:
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "local_devices", lambda backend: [Device()])
    assert (unsupported_reason("cudnn", GPU) is None) == runs


@pytest.mark.parametrize(
    ("wish", "case", "reason"),
    [
        ("splash", CPU, "it runs on TPUs, and the devices here are cpu; use auto or xla"),
        ("cudnn", TPU, "it runs on GPUs, and the devices here are tpu; use auto or xla or splash"),
        ("splash", TPU._replace(length=500), "it needs rows of 128, 256, ... tokens, not 500"),
        ("cudnn", GPU._replace(dtype="float32"), "model.dtype = 'bfloat16', not 'float32'"),
        ("cudnn", GPU._replace(head_size=20), "a head size of 8, 16, ... or 128, not 20"),
        ("cudnn", GPU._replace(dropout=True), "it needs model.attention_dropout = 0"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(wish, case, reason, monkeypatch) -> None:
    monkeypatch.setattr(attention, "_compute_capability", lambda: (9, 0))
    with pytest.raises(UserError) as error:
        require_available(wish, case)
    assert reason in str(error.value)
    assert str(error.value).startswith(f"model.attention = '{wish}': ")
    assert "\n" not in str(error.value)


def test_the_log_says_what_keeps_the_kernel_away() -> None:
    assert describe_kernel("auto", TPU) == "attention: splash"
    assert describe_kernel("auto", CPU) == "attention: xla"
    line = describe_kernel("auto", TPU._replace(dropout=True))
    assert line.startswith("attention: xla (splash: ")
    assert "it needs model.attention_dropout = 0" in line


def test_the_devices_of_the_mesh_decide() -> None:
    """Not those that are attached: the same program is compiled for machines elsewhere."""
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    kinds = (jax.sharding.AxisType.Auto,) * 3
    mesh = AbstractMesh((1, 1, 1), AXES, kinds, abstract_device=device)
    shape = jax.ShapeDtypeStruct((2, 512, 2, 64), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, 512), bool)
    traced = {}
    for name in ("auto", "xla"):
        with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(RULES):
            function = functools.partial(attend, implementation=name)
            traced[name] = jax.jit(function).trace(shape, shape, shape, mask)
    lowered = {
        name: trace.lower(lowering_platforms=("tpu",)).as_text() for name, trace in traced.items()
    }
    assert "tpu_custom_call" in lowered["auto"]
    assert "tpu_custom_call" not in lowered["xla"]


@pytest.fixture
def as_program() -> Callable[..., dict]:
    """``as_program(what, **environment)``: what this file prints in a process of its own."""

    def as_program(what: str, **environment: str) -> dict:
        command = [sys.executable, __file__, what]
        environment = {**os.environ, **environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return as_program


@pytest.mark.slow
def test_each_device_takes_its_rows_and_heads(as_program) -> None:
    flags = "--xla_force_host_platform_device_count=8"
    for name, found in as_program("simulate", XLA_FLAGS=flags).items():
        assert found["devices"] == 8, name
        assert found["shard"] == [2, LENGTH, 2, HEAD_SIZE], name
        assert found["error"] < 1e-5, name


def simulate() -> dict[str, dict]:
    """Both implementations on a mesh of 2 x 2 x 2 against ``xla`` on one device."""
    mesh, found = make_mesh(MeshConfig(2, 2, 2)), {}
    arrays = inputs(shape=(8, LENGTH, 4, HEAD_SIZE))
    segments = np.tile(PACKED, (4, 1))
    expected = output_and_gradients(*arrays, segments, "xla")
    with pytest.MonkeyPatch.context() as patch, use_mesh(mesh):
        interpret_splash(patch)
        heads = NamedSharding(mesh, nn.logical_to_mesh_axes(("batch", "length", "heads", None)))
        placed = jax.device_put(arrays, heads)
        for name in ("xla", "splash"):
            ours = output_and_gradients(*placed, segments, name)
            errors = [np.abs(x - y).max() for x, y in zip(ours, expected, strict=True)]
            found[name] = {
                "devices": len(ours[1].sharding.device_set),
                "shard": ours[1].addressable_shards[0].data.shape,
                "error": float(max(errors)),
            }
    return found


@pytest.mark.slow
def test_splash_compiles_for_a_tpu(as_program) -> None:
    pytest.importorskip("libtpu")
    assert as_program("compile") == ["custom-call"]  # nothing is sent between devices


def compile_for_a_tpu() -> list[str]:
    """Which of these operations the program for a mesh of 2 x 1 x 2 chips has."""
    devices = compile_only_devices("v5e:2x2")
    kinds = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.sharding.Mesh(np.array(devices).reshape(2, 1, 2), AXES, axis_types=kinds)
    with use_mesh(mesh):
        heads = NamedSharding(mesh, nn.logical_to_mesh_axes(("batch", "length", "heads", None)))
        array = jax.ShapeDtypeStruct((4, 512, 4, 64), jnp.bfloat16, sharding=heads)
        mask = jax.ShapeDtypeStruct((4, 512), bool)
        text = output_and_gradients.lower(*[array] * 4, mask, "auto").compile().as_text()
    operations = "all-gather", "all-reduce", "all-to-all", "collective-permute", "custom-call"
    return [operation for operation in operations if f" {operation}(" in text]


if __name__ == "__main__":
    print(json.dumps({"simulate": simulate, "compile": compile_for_a_tpu}[sys.argv[1]]()))

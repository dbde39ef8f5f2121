import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from langsamp_jax.cli.main import main
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.plan import record
from langsamp_jax.plan.compile import TooLarge, compile_step, read_too_large
from langsamp_jax.plan.record import advice
from langsamp_jax.plan.report import show
from langsamp_jax.plan.roofline import minimum_traffic
from langsamp_jax.plan.search import search
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.optimizer import OptimizerConfig
from langsamp_jax.training.setup import Sizes
from langsamp_jax.training.step import TrainState

TINY = [
    "--gin_file=models/tiny.gin",
    "--vocab_size=1000",
    "--languages=6",
    "--scripts=2",
    "--sequence_length=64",
    "--gin.train.global_batch_size=32",
    "--gin.train.num_steps=1000",
    "--gin.model.remat=layer",
]


def planned(*arguments: str) -> dict:
    """The record of ``langsamp plan`` in a process of its own."""
    command = [sys.executable, "-m", "langsamp_jax", "plan", *TINY, *arguments, "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def simulated() -> dict:
    return planned("--topology=cpu:8", "--gin.mesh.fsdp=8", "--gin.mesh.data=1")


@pytest.mark.slow
def test_the_state_of_simulated_devices_is_split(simulated):
    parameters, memory = simulated["parameters"], simulated["memory"]
    assert simulated["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    # Some biases and scales are whole on every device.
    assert 4 * parameters / 8 <= memory["parameters"] < 4 * parameters / 8 * 1.2
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-3)
    assert memory["activations"] >= 3 * 4 * 64 * 128 * 4  # the input of each of 3 layers, 4 rows
    parts = sum(memory[name] for name in memory if name != "total")
    assert memory["total"] == pytest.approx(parts)


@pytest.mark.slow
def test_what_simulated_devices_send_is_told_beside_the_least(simulated):
    network = simulated["network"]
    assert network["sent"] == pytest.approx(sum(row["sent"] for row in network["collectives"]))
    assert network["minimum"] == pytest.approx(sum(network["minimum_by_purpose"].values()))
    assert network["sent"] > 0.9 * network["minimum"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 4, 2), (1, 2, 4), (2, 2, 2), (1, 1, 8)])
def test_with_tensor_parallelism_only_sums_of_states_travel(mesh):
    sizes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    shape = ["--gin.train.global_batch_size=64", "--gin.model.num_attention_heads=8"]
    network = planned(
        "--topology=cpu:8", *shape, *(f"--gin.mesh.{name}={size}" for name, size in sizes)
    )["network"]
    large = 64 / (mesh[0] * mesh[1]) * 64 * 128 * 4  # the states of a data replica
    sent = {(row["kind"], row["axes"]): row["sent"] for row in network["collectives"]}
    assert sent.get(("all-to-all", "tensor"), 0) < large / 4  # heads and rows are never exchanged
    kernels = network["minimum_by_purpose"].get("gather kernels", 0)
    assert sent.get(("all-gather", "fsdp"), 0) < kernels + large  # kernels, and the features
    # A CPU's compiler makes an all-reduce, of twice the bytes, of every reduce-scatter.
    sums = network["minimum_by_purpose"]["sum activations"]
    assert network["sent"] < 1.1 * (network["minimum"] + 1.5 * sums)


@pytest.mark.slow
def test_an_unknown_device_has_no_estimate(simulated):
    assert simulated["fits"] and simulated["flops"]["useful"] > 0
    assert "capacity" not in simulated["memory"] and "estimate" not in simulated


@pytest.mark.slow
def test_a_tpu_that_is_not_there():
    pytest.importorskip("libtpu")
    record = planned("--topology=v5e:2x2", "--gin.mesh.fsdp=2", "--gin.model.dtype=bfloat16")
    assert (record["devices"], record["device_kind"]) == (4, "TPU v5 lite")
    assert record["fits"] and record["memory"]["capacity"] == 15.75 * 2**30
    estimate, flops = record["estimate"], record["flops"]
    # Each layer's forward pass runs twice; the head's products may be padded.
    assert flops["useful"] < flops["executed"] < 2 * flops["useful"]
    assert estimate["serial"]["step_seconds"] == pytest.approx(
        estimate["device_seconds"] + estimate["network_seconds"]
    )
    fast = estimate["overlapped"]
    assert fast["mfu"] == pytest.approx(flops["useful"] / fast["step_seconds"] / 197e12)
    assert fast["days"] == pytest.approx(fast["step_seconds"] * 1000 / 86_400)
    assert fast["device_hours"] == pytest.approx(fast["days"] * 24 * 4)


@pytest.mark.slow
def test_two_axes_of_a_mesh_may_share_one_of_the_torus():
    pytest.importorskip("libtpu")
    program = """
from langsamp_jax.plan.topology import topology_devices
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
devices = topology_devices("v6e:4x4")
for sizes in ((1, 16, 1), (1, 4, 4), (1, 8, 2), (2, 4, 2)):
    mesh = make_mesh(MeshConfig(*sizes), devices)
    assert mesh.devices.shape == sizes and set(mesh.devices.flat) == set(devices)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


HOLD = """
import sys
{}
print(len(devices), flush=True)
sys.stdin.read()
"""
TRAINING = """
import os
os.environ.pop("ALLOW_MULTIPLE_LIBTPU_LOAD", None)
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
from jax.experimental import topologies
devices = topologies.get_topology_desc("v5e:2x2", "tpu").devices
"""
PLAN = """
from langsamp_jax.plan.topology import topology_devices
devices = topology_devices("v5e:2x2")
"""


@contextlib.contextmanager
def holding(program: str, **environment: str) -> Iterator[str]:
    """What ``program`` prints of its devices, "" if it has failed; it then keeps libtpu loaded."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", HOLD.format(program)]
    environment = {**os.environ, **environment}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@pytest.mark.slow
def test_a_plan_neither_needs_nor_takes_the_lock_of_a_tpu():
    """What loads libtpu as a training does takes the same lock, with or without a TPU."""
    pytest.importorskip("libtpu")
    with holding(PLAN) as found:
        assert found == "4"
        # Another program of the machine may have the lock for a while, this test for one.
        for _ in range(60):
            with holding(TRAINING) as found:
                if not found:
                    time.sleep(1)
                    continue
                assert found == "4"
                with holding(TRAINING) as found:
                    assert found == "", "the lock of libtpu is gone, and with it this test's sense"
                with holding(PLAN, ALLOW_MULTIPLE_LIBTPU_LOAD="0") as found:
                    assert found == "4"
                return
    pytest.fail("a training cannot load libtpu beside a plan")


@pytest.mark.slow
def test_what_cannot_be_compiled_comes_with_advice(monkeypatch):
    def refused(*arguments):
        return dataclasses.replace(compile_step(*arguments), program=TooLarge(66e9, 16e9))

    monkeypatch.setattr(record, "compile_step", refused)
    model = ModelConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    configs = Configs(model=model, train=TrainConfig(global_batch_size=4))
    found = record.plan(configs, Sizes(300, 6, 2, 32), jax.devices()[:1])
    assert not found["fits"] and "network" not in found
    memory = found["memory"]
    assert memory["total"] == 66e9 + memory["parameters"] + memory["optimizer"]
    assert {"change": "train.accumulation_steps = 2", "saves": 33e9} in found["advice"]
    shown = show(found)
    assert "it does not fit" in shown and "train.accumulation_steps = 2" in shown


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("v5e:3x5", marks=pytest.mark.slow),
        "v9:2x2",
        "h100:8",
        "v5e",
        "cpu:0",
        "cpu",
        "tpu:2x2",
    ],
)
def test_an_unknown_topology_lists_those_that_are_known(name, capfd):
    if name == "v5e:3x5":
        pytest.importorskip("libtpu")
    assert main(["plan", "--topology", name]) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"--topology {name}" in message
    assert "v5e:1x1, 2x2" in message and "v5p:" in message


def test_without_libtpu_it_says_what_to_install():
    program = (
        "import sys; from jax._src import xla_bridge\n"
        "xla_bridge.get_tpu_library_path = lambda: None\n"
        "from langsamp_jax.cli.main import main; sys.exit(main(['plan', '--topology=v5e:2x2']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs libtpu, also without a TPU: pip install" in done.stderr.splitlines()[-1]


def test_rows_longer_than_the_positions_of_the_model(capsys):
    arguments = ["--topology=here", "--gin.model.max_length=64", "--sequence_length=65"]
    assert main(["plan", *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("langsamp: the plan has rows of 65 tokens, model.max_length is 64; ")


def test_a_store_says_its_sizes_itself(capsys):
    arguments = ["--data=store", "--vocab_size=1000", "--topology=cpu:8"]
    assert main(["plan", *arguments]) == 2
    assert "--vocab_size cannot be given with --data" in capsys.readouterr().err


def test_what_the_compiler_says_in_place_of_a_program():
    temporaries = "the total memory required for HLO temporaries (66.93G) exceeds available HBM "
    assert read_too_large(temporaries + "(15.75G).") == TooLarge(66.93 * 2**30, 15.75 * 2**30)
    used = "Ran out of memory in memory space hbm. Used 512.50M of 15.75G hbm. Exceeded"
    assert read_too_large(used) == TooLarge(512.5 * 2**20, 15.75 * 2**30)
    assert read_too_large("INTERNAL: something else") is None


@pytest.mark.parametrize("largest", [0, 1, 2, 7, 8, 16, 24, 40, 200, 1024])
@pytest.mark.parametrize("error", [0.5, 1.0, 1.3])
def test_the_search_finds_the_largest_whatever_the_guesses(largest, error):
    tried = []

    def fits(rows: int) -> bool:
        assert rows not in tried
        tried.append(rows)
        return rows <= largest

    assert search(fits, lambda rows: int(error * largest)) == largest
    assert error != 1.0 or len(tried) <= 3


def state_of(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh, name: str) -> TrainState:
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    return TrainState(step=None, params={name: leaf}, opt_state=None)


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((1, 8, 1), PartitionSpec("fsdp"), {"gather kernels": 2 * 7, "scatter gradients": 7}),
        ((8, 1, 1), PartitionSpec(), {"sum gradients": 2 * 7}),
        (
            (2, 4, 1),
            PartitionSpec("fsdp"),
            {"gather kernels": 2 * 6, "scatter gradients": 6, "sum gradients": 2},
        ),
    ],
)
def test_the_least_traffic_of_one_matrix(shape, spec, expected):
    """In eighths of the matrix, in bfloat16."""
    mesh = jax.sharding.AbstractMesh(shape, ("data", "fsdp", "tensor"))
    model = ModelConfig(hidden_size=64, num_attention_heads=1, dtype="bfloat16")
    found = minimum_traffic(
        model, state_of((64, 64), spec, mesh, "kernel"), mesh, 0, 32, 4, parts=1
    )
    eighth = 64 * 64 * 2 / 8
    assert found == {name: count * eighth for name, count in expected.items()}


def test_the_least_traffic_of_the_activations_of_a_tensor_mesh():
    mesh = jax.sharding.AbstractMesh((1, 1, 4), ("data", "fsdp", "tensor"))
    model = ModelConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    state = state_of((64, 64), PartitionSpec(None, "tensor"), mesh, "kernel")
    found = minimum_traffic(model, state, mesh, rows=2, length=32, num_targets=4, parts=5)
    states, features = 2 * 32 * 64 * 4, 2 * 4 * 64 * 4
    assert found == {
        "lookup": 5 * 2 * states * 3 / 4,
        "sum activations": 5 * 2 * (4 * 3 * states + 2 * features) * 3 / 4,
    }
    layerwise = dataclasses.replace(model, remat="layer")
    again = minimum_traffic(layerwise, state, mesh, rows=2, length=32, num_targets=4, parts=5)
    assert again == {**found, "activations again": 5 * 3 * 3 * states * 3 / 4}


def test_the_least_traffic_of_the_table():
    mesh = jax.sharding.AbstractMesh((2, 4, 1), ("data", "fsdp", "tensor"))
    model = ModelConfig(hidden_size=64, num_attention_heads=1, dtype="bfloat16")
    state = state_of((1000, 64), PartitionSpec("tensor", "fsdp"), mesh, "word_embeddings")
    found = minimum_traffic(model, state, mesh, rows=2, length=32, num_targets=4, parts=1)
    shard, features, states = 1000 * 16, 2 * 4 * 64 * 2, 2 * 32 * 64 * 2
    assert found == {
        "table": shard * (2 + 4) * 3 / 4 + 2 * features * 3,
        "sum gradients": shard * 4,
        "lookup": 2 * states * 3 / 4,
    }


def test_advice_fits_the_configuration():
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    lean = Configs(
        model=ModelConfig(dtype="bfloat16", remat="layer"),
        optimizer=OptimizerConfig(moment_dtype="bfloat16"),
        train=TrainConfig(global_batch_size=8),
    )
    held = {"parameters": 4e9, "optimizer": 8e9}
    found = dict(advice(lean, mesh, 512, held, total=30e9))
    assert list(found) == [
        "mesh.tensor = 2 and mesh.fsdp = 4, with half the rows",
        "a topology of twice as many devices, along mesh.fsdp",
    ]
    heavy = dataclasses.replace(lean, optimizer=OptimizerConfig(), train=TrainConfig())
    found = dict(advice(heavy, mesh, 512, held, total=30e9))
    assert found["train.accumulation_steps = 2"] == 9e9
    assert found["optimizer.moment_dtype = 'bfloat16'"] == 4e9

"""The same run on 1, 2 and 8 simulated devices, and with sharded parameters.

The number of devices is fixed when jax starts, so this file is also the program that is run in
processes of their own: ``test_devices.py OUTPUT STORE``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from langsamp_jax.data.feed import place
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.objectives.masking import ObjectiveConfig, mask_rows
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding, shardings, use_mesh
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.loop import train
from langsamp_jax.training.optimizer import OptimizerConfig
from tests import tiny

STEPS = 50
# As many heads as devices.
SIZES = tiny.SIZES | {"num_attention_heads": 8}
MODEL = ModelConfig(**SIZES, hidden_dropout=0.0, attention_dropout=0.0)
SHARDED = MeshConfig(data=-1, fsdp=2, tensor=2)
MESHES = {"1x8x1": MeshConfig(1, 8, 1), "2x2x2": SHARDED, "1x1x8": MeshConfig(1, 1, 8)}


def configs(mesh: MeshConfig) -> Configs:
    return Configs(
        train=TrainConfig(
            num_steps=STEPS,
            global_batch_size=16,
            accumulation_steps=2,
            checkpoint_every=STEPS,
            eval_every=STEPS,
            log_every=1,
        ),
        model=MODEL,
        mixture=MixtureConfig(),
        objective=ObjectiveConfig(logits_at_once=10_000),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5),
        mesh=mesh,
    )


def masks(sharding=None) -> list[np.ndarray]:
    """Masks of fixed rows with fixed keys, computed where the rows lie."""
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(300, 0, 1, 2, 3, 299)
    tokens = rng.integers(0, 300, (16, 64)).astype("i")
    valid = np.arange(64) < rng.integers(1, 65, (16, 1))
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 16))

    @jax.jit
    def masked(keys, tokens, valid):
        keys = jax.random.wrap_key_data(keys)
        return mask_rows(keys, tokens, valid, vocabulary, ObjectiveConfig())

    rows = np.asarray(keys), tokens, valid
    result = masked(*(place(rows, sharding) if sharding else rows))
    assert sharding is None or len(result.inputs.sharding.device_set) == jax.device_count()
    return [np.asarray(field) for field in result]


def main(output: Path, store: Path) -> None:
    """Trains, records the masks and, where there are 8 devices, everything that needs so many."""
    train(Store(store), output / "run", configs(MeshConfig()))
    np.savez(output / "masks.npz", *masks(batch_sharding(make_mesh(MeshConfig()))))
    facts = {"devices": jax.device_count()}
    if jax.device_count() == 8:
        for name, config in MESHES.items():
            train(Store(store), output / name, configs(config))
        mesh = make_mesh(SHARDED)
        facts["mesh"] = dict(mesh.shape)
        model = LangSamp(MODEL, 600, 5, 3)

        def initialise():
            return init_params(model, jax.random.key(0))

        places = shardings(jax.eval_shape(initialise), mesh)
        params = jax.jit(lambda: nn.unbox(initialise()), out_shardings=places)()
        words = params["word_embeddings"]
        facts["words"] = words.shape
        shards = words.addressable_shards
        facts["shards"] = sorted({(shard.data.shape, str(shard.index)) for shard in shards})
        with use_mesh(mesh):
            split = jax.jit(lambda x: nn.with_logical_constraint(x, ("batch", "length")))
            facts["activations"] = split(np.zeros((16, 6))).addressable_shards[0].data.shape
        for name, config in (("uneven", MeshConfig(tensor=3)), ("few", MeshConfig(data=4))):
            try:
                make_mesh(config)
            except UserError as error:
                facts[name] = str(error)
        try:
            train(Store(store), output / "refused", configs(MeshConfig(data=4)))
        except UserError:
            facts["refused_left_nothing"] = not (output / "refused").exists()
    (output / "facts.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def runs(store_path, tmp_path_factory) -> dict[int, Path]:
    """Number of devices -> the folder of what that process made. They run side by side."""
    root = Path(__file__).parents[2]
    outputs = {n: tmp_path_factory.mktemp(f"devices{n}") for n in (8, 2, 1)}
    started = []
    for number, output in outputs.items():
        flags = f"--xla_force_host_platform_device_count={number}"
        environment = {
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        }
        command = [sys.executable, __file__, str(output), str(store_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, cwd=root, **pipes))
    for process in started:
        text, _ = process.communicate(timeout=900)
        assert process.returncode == 0, text
    return outputs


def metrics(run: Path, name: str) -> np.ndarray:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return np.array([record[name] for record in records if name in record])


def facts(output: Path) -> dict:
    return json.loads((output / "facts.json").read_text())


@pytest.mark.slow
def test_there_were_as_many_devices_as_said(runs):
    assert {number: facts(output)["devices"] for number, output in runs.items()} == {
        1: 1,
        2: 2,
        8: 8,
    }
    assert facts(runs[8])["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.slow
def test_training_learns_something(runs):
    """Otherwise the losses would agree for no reason."""
    losses = metrics(runs[1] / "run", "train/loss")
    assert len(losses) == STEPS
    assert losses[-5:].mean() < losses[:5].mean() - 0.3
    assert len(set(losses)) > STEPS / 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 8])
def test_losses_do_not_depend_on_the_number_of_devices(number, runs):
    for name in ("train/loss", "eval/loss", "encoder/sentence_cosine"):
        one, many = (metrics(runs[n] / "run", name) for n in (1, number))
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_do_not_depend_on_where_parameters_lie(mesh, runs):
    tolerances = {"train/loss": 1e-5, "eval/loss": 1e-5, "encoder/sentence_cosine": 1e-5}
    for name, atol in {**tolerances, "train/grad_norm": 1e-4}.items():
        one, sharded = metrics(runs[1] / "run", name), metrics(runs[8] / mesh, name)
        np.testing.assert_allclose(sharded, one, rtol=0, atol=atol)


@pytest.mark.slow
def test_masks_do_not_depend_on_where_rows_lie(runs):
    here = masks()
    for output in runs.values():
        with np.load(output / "masks.npz") as there:
            for ours, name in zip(here, there.files, strict=True):
                np.testing.assert_array_equal(there[name], ours)


@pytest.mark.slow
def test_word_embeddings_are_cut_along_both_axes(runs):
    found = facts(runs[8])
    assert found["words"] == [640, 32]
    assert [shape for shape, _ in found["shards"]] == [[320, 16]] * 4


@pytest.mark.slow
def test_the_names_of_activations_mean_axes_of_the_mesh(runs):
    assert facts(runs[8])["activations"] == [4, 6]


@pytest.mark.slow
def test_a_mesh_that_does_not_fit_is_refused_and_leaves_nothing(runs):
    found = facts(runs[8])
    assert "-1, 1, 3 do not multiply to the 8 devices" in found["uneven"]
    assert "4, 1, 1 do not multiply to the 8 devices" in found["few"]
    assert found["refused_left_nothing"]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))


def test_a_step_on_eight_devices_is_that_on_one(store_path, tmp_path):
    """The small form of what the others measure over a whole run."""
    started = {}
    for number, mesh in ((1, (1, 1, 1)), (8, (2, 2, 2))):
        flags = f"--xla_force_host_platform_device_count={number}"
        sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
        settings = {f"mesh.{axis}": size for axis, size in sizes.items()}
        settings |= {"model.hidden_size": 32, "model.num_hidden_layers": 1}
        settings |= {"model.num_attention_heads": 4, "model.intermediate_size": 64}
        settings |= {"model.max_length": 32, "model.hidden_dropout": 0.0}
        settings |= {"model.attention_dropout": 0.0, "train.global_batch_size": 8}
        settings |= {"train.num_steps": 2, "train.log_every": 1, "train.eval_every": 100}
        command = [sys.executable, "-m", "langsamp_jax", "train", "--data", str(store_path)]
        command += ["--output", str(tmp_path / str(number))]
        command += [f"--gin.{name}={value}" for name, value in settings.items()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, "XLA_FLAGS": flags}
        started[number] = subprocess.Popen(command, env=environment, **pipes)
    for process in started.values():
        text, _ = process.communicate(timeout=900)
        assert process.returncode == 0, text
    for name in ("train/loss", "train/grad_norm"):
        one, eight = (metrics(tmp_path / str(number), name) for number in (1, 8))
        assert len(one) == 2
        np.testing.assert_allclose(eight, one, rtol=1e-5)

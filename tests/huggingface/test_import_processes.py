"""Two processes that share a model each fill their own part of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from langsamp_jax.huggingface import loading
from langsamp_jax.huggingface.pretrained import open_pretrained
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import shardings

pytestmark = pytest.mark.slow

VOCAB_SIZE, ROOT = 301, Path(__file__).parents[2]


def main(rank: int, port: int, folder: Path, output: Path) -> None:
    """One of two processes with 2 devices each: writes the parts that lie on its devices."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    loading._CHUNK_BYTES = 3000
    pretrained = open_pretrained(folder)
    model = LangSamp(ModelConfig(**pretrained.fields), VOCAB_SIZE, 5, 2)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    places = shardings(boxed, mesh)
    params = loading.load_params(pretrained, model, None, places, loading.InitConfig(), seed=0)
    parts = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert len(leaf.addressable_shards) == 2 and len(leaf.global_shards) == 4
        for shard in leaf.addressable_shards:
            name = f"{jax.tree_util.keystr(key)} {shard.device.id}"
            bounds = [
                part.indices(size)[:2] for part, size in zip(shard.index, leaf.shape, strict=True)
            ]
            parts[name], parts[f"{name} bounds"] = np.asarray(shard.data), bounds
    np.savez(output / f"{rank}.npz", **parts)


def test_each_process_reads_its_part(tmp_path, make_checkpoint):
    make_checkpoint(tmp_path / "model", "xlm-roberta", VOCAB_SIZE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    arguments = [str(port), str(tmp_path / "model"), str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), *arguments],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors

    pretrained = open_pretrained(tmp_path / "model")
    model = LangSamp(ModelConfig(**pretrained.fields), VOCAB_SIZE, 5, 2)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: here, shapes)
    whole = loading.load_params(pretrained, model, None, places, loading.InitConfig(), seed=0)
    for key, leaf in jax.tree_util.tree_leaves_with_path(whole):
        seen = np.zeros(leaf.shape, int)
        for rank in (0, 1):
            with np.load(tmp_path / f"{rank}.npz") as parts:
                names = [n for n in parts.files if n.startswith(f"{jax.tree_util.keystr(key)} ")]
                for name in (name for name in names if not name.endswith("bounds")):
                    index = tuple(slice(*bounds) for bounds in parts[f"{name} bounds"])
                    np.testing.assert_array_equal(parts[name], leaf[index], err_msg=name)
                    seen[index] += 1
        assert (seen > 0).all()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))

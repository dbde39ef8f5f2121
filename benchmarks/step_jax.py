"""Ours as a contender: the very step that ``langsamp train`` makes."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from interleave import host_peak, serve
from workload import CLIP_NORM, LEARNING_RATE, Workload, load_batches

from langsamp_jax.data.feed import Batch, place
from langsamp_jax.hardware.cpu import keep_freed, use_one_arena
from langsamp_jax.hardware.devices import peak_flops
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp
from langsamp_jax.objectives.base import step_keys
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding, shardings, use_mesh
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.optimizer import OptimizerConfig, make_optimizer
from langsamp_jax.training.step import jit_train_step, make_initialise, make_train_step

SEED = 0


class TrainSteps:
    """The step of ``langsamp train`` on the batches in ``folder``.

    Args:
      settings: of ``ModelConfig``: dtype, placement and so on.
    """

    def __init__(self, workload: Workload, folder: Path, settings: dict[str, Any]):
        use_one_arena()
        model, optimizer, vocabulary = parts(workload, settings)
        objective = MaskedLm(model, vocabulary, ObjectiveConfig())
        mesh = make_mesh(MeshConfig())
        self._on_mesh, self._rows = lambda: use_mesh(mesh), batch_sharding(mesh)
        self._batches = iter(load_batches(folder))
        initialise = make_initialise(model, optimizer, SEED)
        places = shardings(jax.eval_shape(initialise), mesh)
        self._state = jax.jit(lambda: nn.unbox(initialise()), out_shardings=places)()

        first = self._place(load_batches(folder)[0])
        with self._on_mesh():
            first_loss = first_step_loss(objective, self._state.params, first)
            step = make_train_step(objective, optimizer, 1, SEED)
            self._step = jit_train_step(step, places, mesh).lower(self._state, first).compile()
        if jax.default_backend() == "cpu":
            keep_freed(held=0)  # as where there is plenty: both of a pair alike
        for _ in range(workload.warmup):
            self.step()
        memory = self._step.memory_analysis()
        self.facts = {
            "device": device_name(),
            "useful_flops": objective.step_flops(workload.rows, workload.length),
            "peak_flops": peak_flops(jax.local_devices()[0].device_kind),
            "first_loss": first_loss,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self._state.params)),
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }

    def step(self) -> float:
        with self._on_mesh():
            self._state, metrics = self._step(self._state, self._place(next(self._batches)))
        loss = float(metrics["loss"])
        jax.block_until_ready(self._state)
        return loss

    def peak_memory(self) -> int:
        statistics = jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics else host_peak()

    def _place(self, arrays: dict[str, np.ndarray]) -> Batch:
        full = np.ones(arrays["tokens"].shape, bool)
        ids = TableIds(arrays["language_ids"], arrays["script_ids"])
        return place(Batch(arrays["tokens"], full, ids), self._rows)


def parts(workload: Workload, settings: dict[str, Any]) -> tuple[LangSamp, Any, Vocabulary]:
    """Model, optimizer and vocabulary as ``langsamp train`` makes them."""
    vocabulary = Vocabulary(workload.vocab_size, 0, 1, 2, 3, workload.vocab_size - 1)
    config = ModelConfig(**workload.architecture, **settings)
    model = LangSamp(config, vocabulary.size, workload.languages, workload.scripts)
    rate = OptimizerConfig(
        learning_rate=LEARNING_RATE, schedule="constant", clip_norm=CLIP_NORM, weight_decay=0.0
    )
    return model, make_optimizer(rate, num_steps=1_000_000), vocabulary


def first_step_loss(objective: MaskedLm, params: Any, batch: Batch) -> float:
    """The mean loss of the first batch without dropout, for comparison between contenders."""

    @jax.jit
    def loss(params: Any, batch: Batch) -> jax.Array:
        keys, _ = step_keys(SEED, 0, len(batch.tokens))
        total, (_, counts) = objective.loss(params, objective.prepare(keys, batch), None)
        return total / counts.sum()

    return float(loss(params, batch))


def device_name() -> str:
    """``NVIDIA H200``, ``cpu AMD EPYC``, ...: what results are filed under."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return "cpu " + next((x.partition(":")[2].strip() for x in lines if "model name" in x), "")


def build(spec: dict[str, Any]) -> TrainSteps:
    return TrainSteps(Workload(**spec["workload"]), Path(spec["folder"]), spec["settings"])


if __name__ == "__main__":
    serve(build)

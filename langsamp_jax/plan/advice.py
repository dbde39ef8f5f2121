"""What to change where a training does not fit, the least costly in speed first."""

import dataclasses

from langsamp_jax.models.costs import activation_bytes
from langsamp_jax.training.config import Configs


def advice(
    configs: Configs, mesh: dict[str, int], length: int, held: dict[str, float], total: float
) -> list[tuple[str, float]]:
    """Settings to change, and what each by itself would save on a device, in bytes, roughly.

    Args:
      mesh: sizes of the mesh axes.
      length: of a row.
      held: bytes on a device of ``parameters`` and ``optimizer``.
      total: bytes that a device would need.
    """
    model, steps = configs.model, configs.train.accumulation_steps
    rows = configs.train.global_batch_size // steps // mesh["data"] // mesh["fsdp"]
    state = sum(held.values())
    working = total - state  # activations and what is computed from them
    found = []
    if model.dtype == "float32":
        found.append(("model.dtype = 'bfloat16'", working / 2))
    if mesh["data"] > 1:
        change = f"mesh.data = 1 and mesh.fsdp = {mesh['data'] * mesh['fsdp']}"
        found.append((change, state * (1 - 1 / mesh["data"])))
    if model.remat != "layer":
        recomputed = dataclasses.replace(model, remat="layer")
        saved = activation_bytes(model, length) - activation_bytes(recomputed, length)
        found.append(("model.remat = 'layer'", min(working, rows * saved)))
    if rows > 1:
        found.append((f"train.accumulation_steps = {2 * steps}", working / 2))
    elif mesh["fsdp"] > 1:
        change = f"mesh.tensor = {2 * mesh['tensor']} and mesh.fsdp = {mesh['fsdp'] // 2}"
        found.append((f"{change}, with half the rows", working / 2))
    if configs.optimizer.moment_dtype == "float32":
        found.append(("optimizer.moment_dtype = 'bfloat16'", held["optimizer"] / 2))
    found.append(("a topology of twice as many devices, along mesh.fsdp", total / 2))
    return found

"""What a training would need of a machine, and how long it would take: one record."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from langsamp_jax.hardware.devices import DEVICES, Device
from langsamp_jax.models.costs import activation_bytes
from langsamp_jax.parallel.mesh import data_parallelism
from langsamp_jax.plan.collectives import Collective, collectives
from langsamp_jax.plan.compile import CompiledStep, compile_step
from langsamp_jax.plan.hlo import Module, kept_for_backward, parse
from langsamp_jax.plan.roofline import minimum_traffic, step_cost
from langsamp_jax.training.config import Configs
from langsamp_jax.training.setup import Sizes


def plan(configs: Configs, sizes: Sizes, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Compiles the step for ``devices`` and says what it needs; sizes in bytes, times in seconds.

    Where it does not fit, ``advice`` says what to change; where the compiler gave up, ``memory`` is
    all there is. Where the device is unknown (see hardware/devices.py), there is no ``estimate``.
    """
    step = compile_step(configs, sizes, devices)
    device = DEVICES.get(devices[0].device_kind)
    record = {
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "mesh": dict(step.mesh.shape),
        "global_batch_size": configs.train.global_batch_size,
        "accumulation_steps": configs.train.accumulation_steps,
        "rows_per_device": _rows_per_device(configs, step.mesh),
        "sequence_length": sizes.sequence_length,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step.state.params)),
    }
    module = None if step.too_large else parse(step.program.as_text())
    memory = _memory(step, module, device)
    record |= {"memory": memory, "fits": memory["total"] <= memory.get("capacity", math.inf)}
    if not record["fits"]:
        held = {name: memory[name] for name in ("parameters", "optimizer")}
        changes = advice(configs, record["mesh"], sizes.sequence_length, held, memory["total"])
        record["advice"] = [{"change": change, "saves": saves} for change, saves in changes]
    if module is None:
        return record
    sent = collectives(module, record["mesh"])
    useful = step.objective.step_flops(configs.train.global_batch_size, sizes.sequence_length)
    record["flops"] = {"useful": useful / len(devices)}
    record["network"] = _network(configs, sizes, step, sent)
    if device is not None:
        record |= _estimate(configs, sizes, module, device, sent, record)
    return record


def advice(
    configs: Configs, mesh: dict[str, int], length: int, held: dict[str, float], total: float
) -> list[tuple[str, float]]:
    """Returns settings to change, the least costly in speed first, and about how many bytes of a
    device each would save by itself.

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
    changes = []
    if model.dtype == "float32":
        changes.append(("model.dtype = 'bfloat16'", working / 2))
    if mesh["data"] > 1:
        change = f"mesh.data = 1 and mesh.fsdp = {mesh['data'] * mesh['fsdp']}"
        changes.append((change, state * (1 - 1 / mesh["data"])))
    if model.remat != "layer":
        recomputed = dataclasses.replace(model, remat="layer")
        saved = activation_bytes(model, length) - activation_bytes(recomputed, length)
        changes.append(("model.remat = 'layer'", min(working, rows * saved)))
    if rows > 1:
        changes.append((f"train.accumulation_steps = {2 * steps}", working / 2))
    elif mesh["fsdp"] > 1:
        change = f"mesh.tensor = {2 * mesh['tensor']} and mesh.fsdp = {mesh['fsdp'] // 2}"
        changes.append((f"{change}, with half the rows", working / 2))
    if configs.optimizer.moment_dtype == "float32":
        changes.append(("optimizer.moment_dtype = 'bfloat16'", held["optimizer"] / 2))
    changes.append(("a topology of twice as many devices, along mesh.fsdp", total / 2))
    return changes


def _rows_per_device(configs: Configs, mesh: jax.sharding.Mesh) -> int:
    """Returns the rows of one accumulation step on one device."""
    train = configs.train
    return train.global_batch_size // train.accumulation_steps // data_parallelism(mesh)


def _memory(step: CompiledStep, module: Module | None, device: Device | None) -> dict[str, Any]:
    """Returns what lies in the memory of one device, in bytes."""
    memory = {
        "parameters": _held(step.state.params),
        "optimizer": _held(step.state.opt_state),
    }
    if module is None:
        memory["temporaries"] = step.program.needs
        return {**memory, "total": sum(memory.values()), "capacity": step.program.capacity}
    analysis = step.program.memory_analysis()
    kept = kept_for_backward(module)
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory["batch"] = analysis.argument_size_in_bytes - sum(memory.values())
    memory["activations"] = kept
    memory["temporaries"] = analysis.temp_size_in_bytes - kept + outputs
    memory["program"] = analysis.generated_code_size_in_bytes
    memory["total"] = sum(memory.values())
    if device is not None:
        memory["capacity"] = device.memory_bytes
    return memory


def _held(tree: Any) -> float:
    """Returns the bytes of a sharded tree on one device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _network(
    configs: Configs, sizes: Sizes, step: CompiledStep, sent: Sequence[Collective]
) -> dict[str, Any]:
    """Returns what one device sends in a step, in bytes, and the least that it must."""
    by_kind: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for collective in sent:
        entry = by_kind[collective.kind, "+".join(collective.axes)]
        entry[0] += collective.times
        entry[1] += collective.wire
    least = minimum_traffic(
        configs.model,
        step.state,
        step.mesh,
        _rows_per_device(configs, step.mesh),
        sizes.sequence_length,
        configs.objective.num_targets(sizes.sequence_length),
        configs.train.accumulation_steps,
    )
    return {
        "sent": sum(collective.wire for collective in sent),
        "minimum": sum(least.values()),
        "collectives": [
            {"kind": kind, "axes": axes, "times": times, "sent": wire}
            for (kind, axes), (times, wire) in sorted(by_kind.items(), key=lambda item: -item[1][1])
        ],
        "minimum_by_purpose": least,
    }


def _estimate(
    configs: Configs,
    sizes: Sizes,
    module: Module,
    device: Device,
    sent: Sequence[Collective],
    record: dict[str, Any],
) -> dict[str, Any]:
    """Returns FLOPs, times and speeds; the network's time hidden (``overlapped``) or added."""
    cost = step_cost(module, device, sent)
    tokens = configs.train.global_batch_size * sizes.sequence_length
    useful, devices = record["flops"]["useful"], record["devices"]
    speeds = {}
    for name, seconds in {
        "overlapped": max(cost.device_seconds, cost.network_seconds),
        "serial": cost.device_seconds + cost.network_seconds,
    }.items():
        days = seconds * configs.train.num_steps / 86_400
        speeds[name] = {
            "step_seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "mfu": useful / seconds / device.peak_flops,
            "days": days,
            "device_hours": 24 * days * devices,
        }
    return {
        "flops": {**record["flops"], "executed": cost.flops},
        "estimate": {**dataclasses.asdict(cost), "num_steps": configs.train.num_steps, **speeds},
    }

"""What a training would need of a machine, and how long it would take: one record."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from langsamp_jax.hardware.devices import DEVICES, Device
from langsamp_jax.models.costs import step_flops
from langsamp_jax.parallel.mesh import data_parallelism
from langsamp_jax.plan.advice import advice
from langsamp_jax.plan.collectives import Collective, collectives
from langsamp_jax.plan.compile import CompiledStep, compile_step
from langsamp_jax.plan.hlo import Module, kept_for_backward, parse
from langsamp_jax.plan.roofline import step_cost
from langsamp_jax.plan.theory import minimum_traffic
from langsamp_jax.training.config import Configs
from langsamp_jax.training.setup import Sizes


def plan(configs: Configs, sizes: Sizes, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Compiles the step for ``devices`` and says what it needs; sizes in bytes, times in seconds.

    Where it does not fit, ``advice`` says what to change; where the compiler gave up, ``memory`` is
    all there is. Where the device is unknown (see hardware.py), there is no ``estimate``.
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
        found = advice(configs, record["mesh"], sizes.sequence_length, held, memory["total"])
        record["advice"] = [{"change": change, "saves": saves} for change, saves in found]
    if module is None:
        return record
    sent = collectives(module, record["mesh"])
    record["flops"] = {"useful": _useful_flops(configs, sizes) / len(devices)}
    record["network"] = _network(configs, sizes, step, sent)
    if device is not None:
        record |= _estimate(configs, sizes, module, device, sent, record)
    return record


def _rows_per_device(configs: Configs, mesh: jax.sharding.Mesh) -> int:
    train = configs.train
    return train.global_batch_size // train.accumulation_steps // data_parallelism(mesh)


def _useful_flops(configs: Configs, sizes: Sizes) -> float:
    """Of one step on all devices."""
    return step_flops(
        configs.model,
        sizes.vocab_size,
        configs.train.global_batch_size,
        sizes.sequence_length,
        configs.objective.num_targets(sizes.sequence_length),
    )


def _memory(step: CompiledStep, module: Module | None, device: Device | None) -> dict[str, Any]:
    """What lies in the memory of one device."""
    memory = {
        "parameters": _held(step.state.params),
        "optimizer": _held(step.state.opt_state),
    }
    if module is None:
        memory["temporaries"] = step.program.needs
        return {**memory, "total": sum(memory.values()), "capacity": step.program.capacity}
    found = step.program.memory_analysis()
    kept = kept_for_backward(module)
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    memory["batch"] = found.argument_size_in_bytes - sum(memory.values())
    memory["activations"] = kept
    memory["temporaries"] = found.temp_size_in_bytes - kept + outputs
    memory["program"] = found.generated_code_size_in_bytes
    memory["total"] = sum(memory.values())
    if device is not None:
        memory["capacity"] = device.memory_bytes
    return memory


def _held(tree: Any) -> float:
    """Bytes on one device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _network(
    configs: Configs, sizes: Sizes, step: CompiledStep, sent: Sequence[Collective]
) -> dict[str, Any]:
    """What one device sends in a step, in bytes."""
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
    done = step_cost(module, device, sent)
    tokens = configs.train.global_batch_size * sizes.sequence_length
    useful, devices = record["flops"]["useful"], record["devices"]
    speeds = {}
    for name, seconds in {
        "overlapped": max(done.device_seconds, done.network_seconds),
        "serial": done.device_seconds + done.network_seconds,
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
        "flops": {**record["flops"], "executed": done.flops},
        "estimate": {**dataclasses.asdict(done), "num_steps": configs.train.num_steps, **speeds},
    }

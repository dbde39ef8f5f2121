"""What a run would need of a machine and how long it would take: one record, and its text."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from langsamp_jax.flops import step_flops
from langsamp_jax.hardware import DEVICES, Device
from langsamp_jax.plan.collectives import Collective, collectives
from langsamp_jax.plan.compile import CompiledStep, Sizes, compile_step
from langsamp_jax.plan.hlo import Module, kept_for_backward, parse
from langsamp_jax.plan.roofline import ACHIEVABLE, work
from langsamp_jax.plan.theory import minimum_traffic
from langsamp_jax.progress import table
from langsamp_jax.sharding import data_parallelism
from langsamp_jax.train import Configs


def plan(configs: Configs, sizes: Sizes, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Compiles the step for ``devices`` and says what it needs; sizes in bytes, times in seconds.

    Where the program does not fit, there is ``memory`` and no more of what a compiled program
    says. Where the device is unknown (see hardware.py), there is no ``estimate``.
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
    if not step.fits:
        return {**record, "memory": _memory(step, None, device), "fits": False}
    module = parse(step.program.as_text())
    memory = _memory(step, module, device)
    sent = collectives(module, dict(step.mesh.shape))
    record |= {"memory": memory, "fits": memory["total"] <= memory.get("capacity", math.inf)}
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
        refused = step.program
        memory["total"], memory["capacity"] = refused.used, refused.capacity
        return {**memory, "largest": list(refused.largest)}
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
    done = work(module, device, sent)
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


def show(record: dict[str, Any]) -> str:
    """The record for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in record["mesh"].items())
    lines = [
        f"{record['devices']} x {record['device_kind']}: {mesh}",
        f"{record['parameters'] / 1e6:,.1f} M parameters; {record['global_batch_size']:,} rows of "
        f"{record['sequence_length']} tokens a step: {record['rows_per_device']} a device at a "
        f"time, {record['accumulation_steps']} times",
        "",
        _show_memory(record),
    ]
    if "network" in record:
        lines += ["", _show_network(record["network"])]
    if "estimate" in record:
        lines += ["", _show_estimate(record)]
    return "\n".join(lines)


def _show_memory(record: dict[str, Any]) -> str:
    memory = record["memory"]
    rows = [
        {"what": name, "gib": size / 2**30} for name, size in memory.items() if name != "largest"
    ]
    lines = [table(rows, {"what": "memory of a device", "gib": "GiB:.2f"})]
    if "largest" in memory:
        lines += ["the largest buffers: " + "; ".join(memory["largest"])]
    lines.append("it fits" if record["fits"] else "it does not fit")
    return "\n".join(lines)


def _show_network(network: dict[str, Any]) -> str:
    headers = {"kind": "a device sends", "axes": "along", "times": "times:,.0f", "sent": "MB:,.1f"}
    rows = [{**row, "sent": row["sent"] / 1e6} for row in network["collectives"]]
    least = "; ".join(f"{name} {b / 1e6:,.1f}" for name, b in network["minimum_by_purpose"].items())
    return "\n".join(
        [
            table(rows, headers),
            f"together {network['sent'] / 1e6:,.1f} MB a step; the least for this layout: "
            f"{network['minimum'] / 1e6:,.1f} MB ({least})",
        ]
    )


def _show_estimate(record: dict[str, Any]) -> str:
    estimate, flops = record["estimate"], record["flops"]
    rows = [{"how": name, **estimate[name]} for name in ("overlapped", "serial")]
    headers = {
        "how": "network and arithmetic",
        "step_seconds": "s a step:.3f",
        "tokens_per_second": "tokens/s:,.0f",
        "mfu": "MFU:.1%",
        "days": "days:.2f",
        "device_hours": "device-hours:,.0f",
    }
    return "\n".join(
        [
            f"FLOPs of a device and step: useful {flops['useful'] / 1e12:.2f} T, executed "
            f"{flops['executed'] / 1e12:.2f} T",
            f"at {ACHIEVABLE:.0%} of the data sheet's figures: arithmetic "
            f"{estimate['matmul_seconds']:.3f} s, memory {estimate['memory_seconds']:.3f} s "
            f"({estimate['memory_bytes'] / 1e9:.1f} GB), together "
            f"{estimate['device_seconds']:.3f} s; network {estimate['network_seconds']:.3f} s",
            table(rows, headers),
            f"days and device-hours are of {estimate['num_steps']:,} steps",
        ]
    )

"""How long a compiled step takes at best on a device: arithmetic, memory, network."""

import dataclasses
from collections.abc import Iterator, Sequence

from langsamp_jax.hardware.devices import Device
from langsamp_jax.plan.collectives import Collective
from langsamp_jax.plan.hlo import Computation, Instruction, Module, matmul_flops

ACHIEVABLE = 0.7  # of every data sheet figure: what large, well-shaped operations reach

# They name memory and move none.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "partition-id", "replica-id", "iota", "async-start"}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one device in one step."""

    flops: float  # executed, of matrix products and kernels
    memory_bytes: float  # to and from the large memory
    matmul_seconds: float
    memory_seconds: float
    device_seconds: float  # each instruction as long as the slower of its two
    network_seconds: float


def step_cost(module: Module, device: Device, sent: Sequence[Collective]) -> StepCost:
    """Adds up what a program does, every instruction as often as it runs."""
    peak, bandwidth = (ACHIEVABLE * rate for rate in (device.peak_flops, device.memory_bandwidth))
    flops = memory = seconds = 0.0
    for computation, instruction, times in module.executed():
        own = sum(matmul_flops(*inner) for inner in module.within(computation, instruction))
        moved = memory_traffic(module, computation, instruction)
        flops, memory = flops + own * times, memory + moved * times
        seconds += max(own / peak, moved / bandwidth) * times
    network = sum(
        collective.wire / (ACHIEVABLE * _bandwidth(device, collective)) for collective in sent
    )
    return StepCost(flops, memory, flops / peak, memory / bandwidth, seconds, network)


def _bandwidth(device: Device, collective: Collective) -> float:
    """Bytes a second out of a device: a permutation goes two ways around, others all ways."""
    links = 2 if collective.kind == "collective-permute" else 4
    return device.link_bandwidth * min(links, device.links)


def memory_traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that one run of an instruction reads from and writes to the large memory.

    A slice that is cut out of an array, or written into one, counts by itself.
    """
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or "AllocateBuffer" in instruction.attributes:
        return 0.0
    operands = [computation.instructions[name] for name in instruction.operands]
    if opcode == "copy-start":
        return instruction.memory_bytes  # (to, from): mostly one of the two is on the chip
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].memory_bytes
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * instruction.memory_bytes
    if opcode != "fusion":
        return instruction.memory_bytes + sum(operand.memory_bytes for operand in operands)
    (inside,) = module.called(instruction)
    read = sum(_read(inside, i, operand) for i, operand in enumerate(operands))
    return read + _written(inside, instruction)


def _read(inside: Computation, index: int, operand: Instruction) -> float:
    """Of the operand ``index`` of a fusion: the parts that are cut out, where nothing else is."""
    parameter = next(
        inner
        for inner in inside.instructions.values()
        if inner.opcode == "parameter" and inner.text == str(index)
    )
    users = list(_users(inside, parameter.name))
    if all(user.opcode in ("dynamic-slice", "slice", "gather") for user, _ in users):
        return min(operand.memory_bytes, sum(user.bytes for user, _ in users))
    if all(user.opcode == "dynamic-update-slice" and place == 0 for user, place in users):
        return 0.0  # written into, not read
    return operand.memory_bytes


def _users(inside: Computation, name: str) -> Iterator[tuple[Instruction, int]]:
    """What uses a value, and as which operand; seen through bitcasts."""
    for user in inside.instructions.values():
        if name in user.operands and user.opcode == "bitcast":
            yield from _users(inside, user.name)
        elif name in user.operands:
            yield user, user.operands.index(name)


def _written(inside: Computation, instruction: Instruction) -> float:
    names = inside.root.operands if inside.root.opcode == "tuple" else (inside.root.name,)
    results = [inside.instructions[name] for name in names]
    results = [inside.operand(r, 0) if r.opcode == "bitcast" else r for r in results]
    updates = [result for result in results if result.opcode == "dynamic-update-slice"]
    replaced = sum(update.bytes for update in updates)
    written = sum(inside.operand(update, 1).bytes for update in updates)
    return max(0.0, instruction.memory_bytes - replaced) + written

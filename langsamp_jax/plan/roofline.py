"""What a step takes at best: the time of a compiled one, and the least that a layout must send."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax

from langsamp_jax.hardware.devices import Device
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.plan.collectives import Collective
from langsamp_jax.plan.hlo import Computation, Instruction, Module, matmul_flops
from langsamp_jax.training.step import TrainState

ACHIEVABLE = 0.7  # of every data sheet figure: what large, well-shaped operations reach

# They name memory and move none.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "partition-id", "replica-id", "iota", "async-start"}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one device does in one step.

    Attributes:
      flops: executed, of matrix products and kernels.
      memory_bytes: to and from the large memory.
      matmul_seconds, memory_seconds: of these two, each by itself.
      device_seconds: of both, each instruction as long as the slower of its two.
      network_seconds: of all that is sent.
    """

    flops: float
    memory_bytes: float
    matmul_seconds: float
    memory_seconds: float
    device_seconds: float
    network_seconds: float


def step_cost(module: Module, device: Device, sent: Sequence[Collective]) -> StepCost:
    """Adds up what a program does, every instruction as often as it runs."""
    peak, bandwidth = (ACHIEVABLE * rate for rate in (device.peak_flops, device.memory_bandwidth))
    flops = memory = seconds = 0.0
    for computation, instruction, times in module.executed():
        work = sum(matmul_flops(*inner) for inner in module.within(computation, instruction))
        moved = memory_traffic(module, computation, instruction)
        flops, memory = flops + work * times, memory + moved * times
        seconds += max(work / peak, moved / bandwidth) * times
    network = sum(
        collective.wire / (ACHIEVABLE * _bandwidth(device, collective)) for collective in sent
    )
    return StepCost(flops, memory, flops / peak, memory / bandwidth, seconds, network)


def _bandwidth(device: Device, collective: Collective) -> float:
    """Returns the bytes a second out of a device: a permutation takes two links, others all."""
    links = 2 if collective.kind == "collective-permute" else 4
    return device.link_bandwidth * min(links, device.links)


def memory_traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Returns the bytes that one run of an instruction moves from and to the large memory.

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
    """Returns the bytes that a fusion reads of its operand ``index``: where only slices of it are
    used, those."""
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
    """Yields what uses a value, and as which operand; seen through bitcasts."""
    for user in inside.instructions.values():
        if name in user.operands and user.opcode == "bitcast":
            yield from _users(inside, user.name)
        elif name in user.operands:
            yield user, user.operands.index(name)


def _written(inside: Computation, instruction: Instruction) -> float:
    """Returns the bytes that a fusion writes: of an array that is updated in place, the update."""
    names = inside.root.operands if inside.root.opcode == "tuple" else (inside.root.name,)
    results = [inside.instructions[name] for name in names]
    results = [inside.operand(r, 0) if r.opcode == "bitcast" else r for r in results]
    updates = [result for result in results if result.opcode == "dynamic-update-slice"]
    replaced = sum(update.bytes for update in updates)
    written = sum(inside.operand(update, 1).bytes for update in updates)
    return max(0.0, instruction.memory_bytes - replaced) + written


def minimum_traffic(
    model: ModelConfig,
    state: TrainState,
    mesh: jax.sharding.Mesh,
    rows: int,
    length: int,
    num_targets: int,
    parts: int,
) -> dict[str, float]:
    """Returns the least that a device of a layout must send in one step: bytes, by purpose.

    What is counted are the algorithms of rings. In each of the ``parts`` of a batch a kernel that
    is split over ``fsdp`` is gathered for the forward and again for the backward pass, and its
    gradient is reduced and scattered. The table of word embeddings is not: see
    models/embedding.py. Where copies of a parameter meet different rows, their gradients are summed
    once a step. Over ``tensor`` a layer sums its states twice in the forward and twice in the
    backward pass, and the head its features once in each. A layer that is computed again
    (``remat`` = ``layer``) gathers its states twice more and scatters them once; nothing else is
    counted as sent again. All of it travels in the compute dtype, but the gradient of the table in
    float32.

    Args:
      state: shapes with shardings.
      rows, length, num_targets: rows of a part on one device, and the tokens and predicted
        positions of each.
    """
    item = 2 if model.dtype == "bfloat16" else 4
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    states = rows * length * model.hidden_size * item
    features = rows * num_targets * model.hidden_size * item
    sent: dict[str, float] = collections.defaultdict(float)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        is_table = getattr(path[-1], "key", None) == "word_embeddings"
        split = {axis for axes in leaf.sharding.spec for axis in _axis_names(axes)}
        shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if is_table:
            sent["table"] += parts * shard * (item + 4) * _share(fsdp)  # columns for pieces
            sent["table"] += parts * 2 * features * (fsdp - 1)  # to all pieces, and back
        elif "fsdp" in split:
            sent["gather kernels"] += parts * 2 * shard * item * (fsdp - 1)
            sent["scatter gradients"] += parts * shard * item * (fsdp - 1)
        copies = math.prod(mesh.shape[axis] for axis in ("data", "fsdp") if axis not in split)
        sent["sum gradients"] += 2 * shard * (4 if is_table else item) * _share(copies)
    sent["lookup"] = parts * (2 * states * _share(fsdp) + 2 * states * _share(tensor))
    sums = 4 * model.num_hidden_layers * states + 2 * features
    sent["sum activations"] = parts * 2 * sums * _share(tensor)
    if model.remat == "layer":
        again = 3 * model.num_hidden_layers * states
        sent["activations again"] = parts * again * _share(tensor)
    return {name: float(amount) for name, amount in sent.items() if amount}


def _share(devices: int) -> float:
    """Returns the part of an array that a device of a ring sends to gather it, or to reduce and
    scatter it."""
    return (devices - 1) / devices


def _axis_names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else axes

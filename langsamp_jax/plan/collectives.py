"""The collectives of a compiled program: their kinds, groups, and bytes on the wire."""

import dataclasses
import math
import re

import numpy as np

from langsamp_jax.plan.hlo import Computation, Instruction, Module

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # [2,4]T(1,0)
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction, with what it costs each device in a whole run of the program.

    Attributes:
      kind: one of ``KINDS``.
      axes: the mesh axes along which it moves data.
      group: how many devices take part together.
      times: how often it runs.
      payload: bytes of the whole array that a group gathers, reduces or exchanges, each time.
      wire: bytes that a device sends in all, by the algorithms of rings.
      op_name: where in the model it comes from.
      shape: of its result, as HLO writes it.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    times: float
    payload: float
    wire: float
    op_name: str
    shape: str


def collectives(module: Module, mesh_shape: dict[str, int]) -> list[Collective]:
    """Returns every collective of a program that sends anything.

    Args:
      mesh_shape: sizes of the mesh axes in order; a partition's number counts along them.
    """
    started = {
        instruction.attribute(r"channel_id=(\d+)")
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if _kind(instruction) and _starts(computation)
    }
    sent = []
    for outer, fusion, times in module.executed():
        for computation, instruction in module.within(outer, fusion):
            kind = _kind(instruction)
            if kind is None:
                continue
            # One that runs beside fused arithmetic is written in the fusion that starts it and
            # again in those that carry it on and wait for it.
            channel = instruction.attribute(r"channel_id=(\d+)")
            if channel in started and not _starts(computation):
                continue
            if kind == "all-reduce" and computation.root.opcode == "dynamic-slice":
                kind = "reduce-scatter"  # how a TPU writes one: the sum, and each takes its part
            sent.append(_collective(kind, computation, instruction, times, mesh_shape))
    return [collective for collective in sent if collective.wire > 0]


def _kind(instruction: Instruction) -> str | None:
    """Returns one of ``KINDS``; None for every other instruction."""
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in KINDS else None


def _starts(computation: Computation) -> bool:
    """Returns whether a collective that runs beside other work is started here."""
    return any("AsyncCollectiveStart" in i.attributes for i in computation.instructions.values())


def _collective(
    kind: str,
    computation: Computation,
    instruction: Instruction,
    times: float,
    mesh_shape: dict[str, int],
) -> Collective:
    devices = math.prod(mesh_shape.values())
    groups = np.asarray(device_groups(kind, instruction, devices))
    size = computation.operand_bytes(instruction)
    group = groups.shape[1]
    if kind == "collective-permute":
        payload = wire = size * np.mean(groups[:, 0] != groups[:, 1]) * len(groups) / devices
    elif kind == "all-gather":
        payload, wire = size * group, size * (group - 1)
    else:
        payload = size
        wire = size * (group - 1) / group * (2 if kind == "all-reduce" else 1)
    return Collective(
        kind,
        _axes(groups, mesh_shape),
        group,
        times,
        payload,
        wire * times,
        instruction.op_name,
        instruction.shape,
    )


def _axes(groups: np.ndarray, mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh_shape.values())))
    differ = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, moved in zip(mesh_shape, differ, strict=True) if moved)


def device_groups(kind: str, instruction: Instruction, devices: int) -> list[list[int]]:
    """Returns the numbers of the partitions that take part together; of a permutation, its pairs.

    HLO writes groups in three ways: ``{{0,1},{2,3}}``, ``[2,2]<=[4]`` (numbers in order, reshaped
    and transposed) and ``mesh['a'=2,'b'=2] {'a'}`` (along named axes; where the numbers are not in
    order, ``, device_ids=([2,2]T(1,0))`` stands between).

    Raises:
      ValueError: they are written in yet another way.
    """
    name = "source_target_pairs" if kind == "collective-permute" else "replica_groups"
    if listed := instruction.attribute(name + r"=\{((?:\{[\d,]*\},?)+)\}"):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed)]
    if iota := re.search(name + r"=\[([\d,]+)\]<=" + _IOTA, instruction.attributes):
        return _numbers(iota[2], iota[3]).reshape(_integers(iota[1])).tolist()
    if named := re.search(
        name + r"=mesh\[([^\]]*)\](?:, device_ids=\(" + _IOTA + r"\))?\s*\{([^}]*)\}",
        instruction.attributes,
    ):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = re.findall(r"'(\w+)'", named[4])
        numbers = np.arange(devices) if named[2] is None else _numbers(named[2], named[3])
        numbers = numbers.reshape(list(sizes.values()))
        names = list(sizes)
        last = [names.index(axis) for axis in along]
        first = [i for i in range(len(names)) if i not in last]
        width = math.prod(sizes[axis] for axis in along)
        return numbers.transpose(*first, *last).reshape(-1, width).tolist()
    if instruction.attribute(name + r"=(?!\{\})(.)"):
        raise ValueError(f"groups that cannot be read: {instruction.attributes[:200]}")
    return [list(range(devices))]


def _numbers(order: str, axes: str | None) -> np.ndarray:
    """Returns what ``[2,4]T(1,0)`` stands for: numbers from 0 on, reshaped and transposed."""
    numbers = np.arange(math.prod(_integers(order))).reshape(_integers(order))
    return numbers if axes is None else numbers.transpose(_integers(axes))


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]

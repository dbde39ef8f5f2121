"""Reads the text of a compiled program (HLO): what it runs, how often, and at what cost.

XLA's own cost analysis counts the body of a loop once. Here every instruction is counted as often
as it runs: a loop's trips are read from its bounds.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_CALLS = ("call", "conditional", "async-start")
_ITEM_BITS = {"pred": 8, "token": 0, "opaque": 0}  # others name their width: bf16, f8e4m3fn, s32
_CALLED = re.compile(
    r"(?:calls|to_apply|branch_computations|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``%name = shape opcode(operands), attributes``.

    Attributes:
      operands: names of instructions of the same computation.
      text: what stands between the parentheses; of a constant, its value.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    attributes: str

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Returns the sizes of an array, or of the first array of a tuple."""
        return next(_arrays(self.shape))[1]

    @property
    def bytes(self) -> float:
        """Returns the bytes of an array or a tuple, without padding to tiles."""
        return sum(_bytes(*array) for array in _arrays(self.shape))

    @property
    def memory_bytes(self) -> float:
        """Returns ``bytes`` less those in the memory on the chip, which TPUs mark as ``S(1)``."""
        return sum(_bytes(*array) for array in _arrays(self.shape) if "S(" not in array[2])

    @property
    def op_name(self) -> str:
        """Returns where in the model it comes from."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    def attribute(self, pattern: str) -> str | None:
        """Returns the first group of ``pattern`` where the attributes match it, else None."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, and the one (``root``) whose value is the result."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        return self.instructions[instruction.operands[index]]

    def operand_bytes(self, instruction: Instruction) -> float:
        return sum(self.instructions[name].bytes for name in instruction.operands)


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program, which begins in ``entry``."""

    computations: dict[str, Computation]
    entry: Computation

    def executed(
        self, computation: Computation | None = None, times: float = 1.0
    ) -> Iterator[tuple[Computation, Instruction, float]]:
        """Yields every instruction that runs and how often; a fusion is one instruction.

        A loop whose bounds cannot be read counts once; of a conditional every branch counts.
        """
        computation = computation or self.entry
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                body = self.computations[instruction.attribute(r"body=%?([\w.\-]+)")]
                trips = trip_count(self, computation, instruction) or 1
                yield from self.executed(body, times * trips)
            elif instruction.opcode in _CALLS:
                for called in self.called(instruction):
                    yield from self.executed(called, times)

    def within(
        self, computation: Computation, instruction: Instruction
    ) -> Iterator[tuple[Computation, Instruction]]:
        """Yields the instructions that are fused in one, also nested; of any other, itself."""
        if instruction.opcode != "fusion":
            yield computation, instruction
            return
        for called in self.called(instruction):
            for inner in called.instructions.values():
                yield from self.within(called, inner)

    def called(self, instruction: Instruction) -> list[Computation]:
        """Returns the computations that an instruction names: its fusion, call or branches."""
        called = _CALLED.search(instruction.attributes)
        names = re.findall(r"[\w.\-]+", called[1] or called[2]) if called else []
        return [self.computations[name] for name in names]


def parse(text: str) -> Module:
    """Reads what ``compiled.as_text()`` gives, of any back end.

    A Pallas kernel takes three lines, of which the last begins with two closing braces.
    """
    computations, entry = {}, None
    for match in re.finditer(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}(?!\})", text, re.M | re.S):
        instructions = {}
        for line in match[3].splitlines():
            if instruction := _instruction(line):
                instructions[instruction.name] = instruction
                if line.lstrip().startswith("ROOT "):
                    root = instruction
        is_entry, name = match[1], match[2]
        computations[name] = Computation(name, instructions, root)
        entry = computations[name] if is_entry else entry
    return Module(computations, entry)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often the body of a while loop runs; None where its bounds are not constants.

    XLA writes the count down on CPU and GPU. On TPU it is read off a counter: where it starts,
    what the body adds to it, and what the condition compares it with.
    """
    if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = module.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    body = module.computations[loop.attribute(r"body=%?([\w.\-]+)")]
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (_linear(condition, name) for name in compare.operands)
    if counter is None or limit is None or counter[0] is None or limit[0] is not None:
        return None
    if body.root.opcode != "tuple" or computation.operand(loop, 0).opcode != "tuple":
        return None
    start = _linear(computation, computation.operand(loop, 0).operands[counter[0]])
    step = _linear(body, body.root.operands[counter[0]])
    if start is None or start[0] is not None or step is None or step[0] != counter[0]:
        return None
    return max(0, -(-(limit[1] - counter[1] - start[1]) // step[1]))


def _linear(computation: Computation, name: str) -> tuple[int | None, int] | None:
    """Reads an integer as (element of the computation's parameter or None, what is added to it).

    Returns None where it is anything else.
    """
    instruction = computation.instructions[name]
    match instruction.opcode:
        case "constant":
            return (None, int(instruction.text)) if instruction.text.lstrip("-").isdigit() else None
        case "get-tuple-element":
            index = int(instruction.attribute(r"index=(\d+)"))
            return (index, 0) if computation.operand(instruction, 0).opcode == "parameter" else None
        case "copy" | "bitcast" | "reshape":
            return _linear(computation, instruction.operands[0])
        case "add":
            left, right = (_linear(computation, operand) for operand in instruction.operands)
            if left is None or right is None or None not in (left[0], right[0]):
                return None
            return (right[0] if left[0] is None else left[0]), left[1] + right[1]
    return None


def matmul_flops(computation: Computation, instruction: Instruction) -> float:
    """Returns the FLOPs of one run of a matrix product; 0 for every other instruction.

    On TPU products are written as convolutions, batch dimensions as dilated spatial ones.
    """
    if instruction.opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        left = computation.operand(instruction, 0).dimensions
        depth = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
        return 2.0 * math.prod(instruction.dimensions) * depth
    if instruction.opcode == "convolution":
        left, right = (computation.operand(instruction, i).dimensions for i in (0, 1))
        return _convolution_flops(instruction, left, right)
    # What a kernel says of itself.
    cost = instruction.attribute(r'"cost_estimate":\{"flops":"?(\d+)')
    return float(cost) if cost else 0.0


def _convolution_flops(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    labels = instruction.attribute(r"dim_labels=(\w+->\w+)")
    lhs, rhs, out = re.split(r"_|->", labels)
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(field.split("=") for field in window.split())
    spatial = len(fields["size"].split("x")) if fields else 0
    sizes = {axis: instruction.dimensions[out.index(axis)] for axis in out}
    total = 2.0 * sizes["b"] * sizes["f"] * right[rhs.index("i")]
    for i in range(spatial):
        default = {"stride": "1", "lhs_dilate": "1", "rhs_dilate": "1", "pad": "0_0"}
        values = {
            name: fields[name].split("x")[i] if name in fields else value
            for name, value in default.items()
        }
        total *= _products(
            left[lhs.index(str(i))],
            right[rhs.index(str(i))],
            sizes[str(i)],
            int(values["stride"]),
            int(values["pad"].split("_")[0]),
            int(values["lhs_dilate"]),
            int(values["rhs_dilate"]),
        )
    return total


@functools.cache
def _products(
    size: int, kernel: int, outputs: int, stride: int, pad: int, dilation: int, kernel_dilation: int
) -> int:
    """Counts the (output, kernel) pairs along a spatial dimension that meet an input element."""
    places = (
        out * stride + at * kernel_dilation - pad for out in range(outputs) for at in range(kernel)
    )
    return sum(0 <= place < size * dilation and place % dilation == 0 for place in places)


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opened = line.index("(", end)
    closed = _closing(line, opened)
    inside = line[opened + 1 : closed]
    return Instruction(
        head[1],
        line[start:end],
        line[end:opened].strip(),
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside,
        line[closed + 1 :],
    )


def _closing(line: str, opened: int) -> int:
    """Returns where the parenthesis closes that opens at ``opened``."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", line[opened:]):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return opened + parenthesis.start()
    raise ValueError(f"unbalanced: {line[:200]}")


def _arrays(shape: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yields (element type, sizes, layout) of an array, or of each array of a tuple."""
    for dtype, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", shape):
        yield dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size), layout


def _bytes(dtype: str, sizes: tuple[int, ...], _: str) -> float:
    bits = _ITEM_BITS[dtype] if dtype in _ITEM_BITS else int(re.match(r"[a-z]+(\d+)", dtype)[1])
    return math.prod(sizes) * bits / 8


def kept_for_backward(module: Module) -> float:
    """Returns the bytes that the loops of the forward pass keep for the backward pass."""
    total = 0.0
    for computation, loop, _ in module.executed():
        if loop.opcode != "while" or "transpose(" in loop.op_name:
            continue
        trips = trip_count(module, computation, loop)
        body = module.computations[loop.attribute(r"body=%?([\w.\-]+)")]
        for index, array in enumerate(_arrays(body.root.shape)):
            changed = _linear(body, body.root.operands[index]) != (index, 0)
            if array[1][:1] == (trips,) and changed:
                total += _bytes(*array)
    return total

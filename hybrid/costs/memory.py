"""Memory traffic and the largest buffers of a compiled program.

Traffic is what instructions read and write in the device's main memory, a fusion being one
instruction: its operands and its result, with two exceptions. Of an operand that a fusion, or one
inside it, only cuts slices from, and of a buffer that it updates in place, the slices count.
Buffers in on-chip memory (a layout with S(1)) are no traffic.

The figure is an estimate: what the compiler keeps on the chip between two instructions without
saying so counts twice.
"""

from collections import Counter
from typing import NamedTuple

from hybrid.costs import hlo
from hybrid.costs.hlo import Array, Computation, Instruction, Program

# Instructions that move nothing: names of other buffers, or counted inside.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"),
)
_SLICES = ("dynamic-slice", "slice", "gather")


class Buffer(NamedTuple):
    """An array in main memory: its size, its type as in HLO, whose it is and what made it."""

    bytes: int
    type: str
    part: str
    made_by: str


def traffic(program: Program) -> int:
    """Bytes read from and written to main memory in a run of the program."""

    def cost(instruction: Instruction, neighbours: Computation) -> Counter:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return Counter()
        if opcode == "fusion":
            return Counter(bytes=_fusion(program.computations[instruction.called()], program))
        operands = instruction.operands(neighbours)
        if opcode == "dynamic-update-slice":
            return Counter(bytes=2 * _main(operands[1]))
        if opcode in _SLICES:
            return Counter(bytes=2 * _main(instruction))
        return Counter(bytes=_main(instruction) + sum(map(_main, operands)))

    return hlo.total(program, cost, enters=("call", "async-start"))["bytes"]


def _fusion(inner: Computation, program: Program) -> int:
    """Bytes that a fusion reads and writes, from the instructions inside it."""
    written = 0
    for instruction in inner.values():
        if instruction.is_root:
            roots = instruction.operands(inner) if instruction.opcode == "tuple" else [instruction]
            written = sum(_written(root, inner) for root in roots)
    return written + sum(_reads(inner, program).values())


def _reads(inner: Computation, program: Program) -> dict[int, int]:
    """Bytes that a fusion reads of its operands, by their number."""
    users: dict[str, list[Instruction]] = {}
    for instruction in inner.values():
        for operand in instruction.operands(inner):
            users.setdefault(operand.name, []).append(instruction)

    def read(array: Instruction) -> int:
        return min(_main(array), sum(of(user, array) for user in users.get(array.name, [])))

    def of(user: Instruction, array: Instruction) -> int:
        """Of an array that `user` takes."""
        if user.opcode == "bitcast":
            return read(user)
        if user.opcode in _SLICES:
            return _main(user)
        if user.opcode == "dynamic-update-slice" and user.names[0] == array.name:
            return 0  # in place
        if user.opcode == "fusion":
            nested = _reads(program.computations[user.called()], program)
            taken = [operand.name for operand in user.operands(inner)]
            return sum(nested[i] for i, name in enumerate(taken) if name == array.name)
        return _main(array)

    parameters = (each for each in inner.values() if each.opcode == "parameter")
    return {int(each.text.partition(")")[0]): read(each) for each in parameters}


def _written(root: Instruction, inner: Computation) -> int:
    while root.opcode == "bitcast":
        (root,) = root.operands(inner)
    if root.opcode == "dynamic-update-slice" and root.arrays[0].space == 0:
        return root.operands(inner)[1].bytes
    return _main(root)


def _main(instruction: Instruction) -> int:
    """Bytes of the result in main memory."""
    return sum(array.bytes for array in instruction.arrays if array.space == 0)


def largest_buffers(program: Program, count: int = 8) -> list[Buffer]:
    """The largest arrays that instructions make or the program takes, each kind of array once.

    Some of them share memory, since not all live at once. The part of what the program takes is
    "arguments".
    """
    inside = {
        instruction.called()
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "fusion"
    }
    found: dict[tuple, Buffer] = {}
    for name, computation in program.computations.items():
        if name in inside:
            continue
        for instruction in computation.values():
            taken = instruction.opcode == "parameter" and name == program.entry
            is_copy = instruction.opcode.startswith("copy")
            if (instruction.opcode in _FREE or is_copy) and not taken:
                continue
            for array in instruction.arrays:
                if array.space == 0:
                    made_by = (instruction.op_name or instruction.name).replace("\\'", "'")
                    part = "arguments" if taken else instruction.part
                    buffer = Buffer(array.bytes, _type(array), part, made_by)
                    found.setdefault((buffer.type, buffer.part), buffer)
    return sorted(found.values(), reverse=True)[:count]


def _type(array: Array) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"

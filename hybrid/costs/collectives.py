"""Bytes that a device exchanges with others, by what an instruction does and by part of the model.

    all-gather, all-to-all, collective-permute    bytes of the result
    all-reduce, reduce-scatter                    bytes of the operands

times the trip counts of the loops around them. What is asynchronous counts once: at its start, or
in the first of the fusions that it is cut over. A program for a large torus gathers by other means:
it adds up buffers that are zero but for a device's own shard,
`all-reduce(dynamic-update-slice(zeros, shard))`. That is a gather, and counts as one. A fused
`dynamic-slice(all-reduce(x))` is a reduce-scatter by another name, of the same bytes.
"""

import re
from collections import Counter

from hybrid.costs import hlo
from hybrid.costs.hlo import Computation, Instruction, Program

GATHERS = ("all-gather", "all-to-all", "ragged-all-to-all", "collective-permute")
REDUCTIONS = ("all-reduce", "reduce-scatter")
# Instructions that hand on what they take.
_COPIES = (
    *("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "transpose"),
    "get-tuple-element",
)


def collective_bytes(program: Program) -> Counter:
    """Bytes a device in a run of the program, by (operation, part of the model)."""
    firsts = _first_pieces(program)

    def cost(instruction: Instruction, neighbours: Computation) -> Counter:
        opcode = instruction.opcode.removesuffix("-start")
        sizes: Counter = Counter()
        if opcode not in (*GATHERS, *REDUCTIONS) or not _counts(instruction, firsts):
            return sizes
        operands = instruction.operands(neighbours)
        arrays = instruction.arrays
        if opcode != instruction.opcode and opcode in GATHERS:  # operands, then results
            arrays = arrays[len(operands) :]
        for operand, result in zip(operands, arrays, strict=False):
            # The compiler joins collectives of several parts in one.
            joined = len(operands) > 1 and operand.part != hlo.OTHER
            part = operand.part if joined else instruction.part
            if opcode in GATHERS:
                sizes[opcode, part] += result.bytes
            elif opcode == "all-reduce" and _places_a_shard(operand, neighbours, program):
                sizes["all-gather", part] += operand.bytes
            else:
                sizes[opcode, part] += operand.bytes
        return sizes

    return hlo.total(program, cost)


def _first_pieces(program: Program) -> dict[str, str]:
    """The first instruction of each channel that an asynchronous collective is cut over.

    A TPU program cuts one over several fusions of products: each repeats the instruction, with the
    same channel and a chain_id.
    """
    firsts: dict[str, str] = {}
    for computation in program.computations.values():
        for instruction in computation.values():
            if "chain_id=" in instruction.text:
                firsts.setdefault(_channel(instruction), instruction.name)
    return firsts


def _counts(instruction: Instruction, firsts: dict[str, str]) -> bool:
    is_piece = "chain_id=" in instruction.text
    return not is_piece or firsts[_channel(instruction)] == instruction.name


def _channel(instruction: Instruction) -> str:
    match = re.search(r"channel_id=(\d+)", instruction.text)
    return match.group(1) if match else instruction.name


def by_part(sizes: Counter) -> dict[str, int]:
    """The same summed over operations: total and each part of the model."""
    parts = dict.fromkeys([*dict.fromkeys(hlo.PARTS.values()), hlo.OTHER], 0)
    for (_, part), size in sizes.items():
        parts[part] += size
    return {"total": sum(parts.values()), **parts}


def by_operation(sizes: Counter) -> dict[str, int]:
    """The same summed over parts: each operation that the program holds."""
    operations: dict[str, int] = {}
    for (operation, _), size in sorted(sizes.items()):
        operations[operation] = operations.get(operation, 0) + size
    return operations


def _places_a_shard(made: Instruction, neighbours: Computation, program: Program) -> bool:
    """Whether `made` is zeros with something written into them."""
    if made.opcode in _COPIES:
        return any(_places_a_shard(o, neighbours, program) for o in made.operands(neighbours))
    if made.opcode == "fusion":
        inner = program.computations[made.called()]
        root = next(instruction for instruction in inner.values() if instruction.is_root)
        return _places_a_shard(root, inner, program)
    if made.opcode == "dynamic-update-slice":
        return _is_zero(made.operands(neighbours)[0], neighbours, program)
    return False


def _is_zero(made: Instruction, neighbours: Computation, program: Program) -> bool:
    if made.opcode == "constant":
        return made.text.startswith(("0)", "{0}", "false)", "-0)"))
    if made.opcode in (*_COPIES, "broadcast"):
        return any(_is_zero(o, neighbours, program) for o in made.operands(neighbours))
    return False

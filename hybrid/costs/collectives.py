"""Bytes that a device exchanges with others, by what an instruction does and by part of the model.

    all-gather, all-to-all, collective-permute    bytes of the result
    all-reduce, reduce-scatter                    bytes of the operands

times the trip counts of the loops around them. Asynchronous pairs count at their start. A program
for a large torus gathers by other means: it adds up buffers that are zero but for a device's own
shard, `all-reduce(dynamic-update-slice(zeros, shard))`. That is a gather, and counts as one.
"""

from collections import Counter

from hybrid.costs import hlo
from hybrid.costs.hlo import Computation, Instruction, Program

GATHERS = ("all-gather", "all-to-all", "ragged-all-to-all", "collective-permute")
REDUCTIONS = ("all-reduce", "reduce-scatter")
# Instructions that hand on what they take.
_COPIES = ("copy", "bitcast", "convert", "reshape", "transpose", "get-tuple-element")


def collective_bytes(program: Program) -> Counter:
    """Bytes a device in a run of the program, by (operation, part of the model)."""

    def cost(instruction: Instruction, neighbours: Computation) -> Counter:
        opcode = instruction.opcode.removesuffix("-start")
        operands = instruction.operands(neighbours)
        sizes: Counter = Counter()
        if opcode in REDUCTIONS:
            for operand in operands:
                made = opcode
                if opcode == "all-reduce" and _places_a_shard(operand, neighbours, program):
                    made = "all-gather"
                part = instruction.part if instruction.part != hlo.OTHER else operand.part
                sizes[made, part] += operand.bytes
        elif opcode in GATHERS:
            arrays = instruction.arrays
            if opcode != instruction.opcode:  # a start gives its operands, then its results
                arrays = arrays[len(operands) : 2 * len(operands)]
            sizes[opcode, instruction.part] += sum(array.bytes for array in arrays)
        return sizes

    return hlo.total(program, cost)


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

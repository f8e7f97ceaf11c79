"""FLOPs of a compiled program, counted by walking its HLO text with the loops' trip counts.

The compiler's own figure (`compiled.cost_analysis()`) counts the body of a loop once, so a scan
over sixty layers looks like one. This walk multiplies:

    program      = the entry computation
    computation  = the sum over its instructions
    dot          = 2 · (elements of the result) · (contracted elements)
    convolution  = 2 · (elements of the result) · (elements of the kernel a result element meets)
    while        = trip count · (body + condition)
    conditional  = its most expensive branch
    fusion, call = what it calls

Elementwise work counts as nothing, as in `model_costs.py`. Kernels written by hand hide their
products from the text, so they are refused, not counted as zero: they report their own count.

    flops = count_flops(jax.jit(f).lower(x).compile().as_text())
"""

import functools
import math
import re
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# NAME = TYPE OPCODE(OPERANDS), ATTRIBUTES; a tuple's type is in parentheses itself.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_OPAQUE = re.compile(r"matmul|gemm|dot|conv|tpu_custom_call|triton|mosaic|attention", re.I)
_CALLS = ("fusion", "call", "async-start")


class UnknownCost(ValueError):
    """The program holds work whose amount cannot be read from its text."""


class Instruction(NamedTuple):
    """One line of HLO: the result's shape, () for a tuple, and the text of operands and attributes.

    `names` are those of other instructions in the text, the operands first and in order.
    """

    name: str
    opcode: str
    shape: tuple[int, ...]
    names: list[str]
    text: str


def count_flops(text: str) -> int:
    """FLOPs of matrix products and convolutions of a program, given `compiled.as_text()`.

    Raises: UnknownCost for a loop without a readable trip count or a hand-written kernel.
    """
    entry, computations = parse(text)

    @functools.cache
    def total(name: str) -> int:
        instructions = computations[name]
        return sum(flops(instruction, instructions) for instruction in instructions.values())

    def flops(instruction: Instruction, neighbours: dict[str, Instruction]) -> int:
        rule = _RULES.get(instruction.opcode)
        if rule is not None:
            return rule(instruction, neighbours)
        if instruction.opcode == "while":
            body, condition = _called(instruction, "body"), _called(instruction, "condition")
            return trip_count(instruction, computations) * (total(body) + total(condition))
        if instruction.opcode == "conditional":
            return max(total(branch) for branch in _branches(instruction))
        callee = _called(instruction, "calls|to_apply")
        return total(callee) if callee and instruction.opcode in _CALLS else 0

    return total(entry)


def trip_count(loop: Instruction, computations: dict[str, dict[str, Instruction]]) -> int:
    """Times that a while loop runs its body.

    The compiler writes the count where it could derive it; else the loop counts from 0 to the one
    integer constant that its condition compares with, as `jax.lax.scan` does.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if known:
        return int(known.group(1))
    condition = computations[_called(loop, "condition")]
    constants = [i.text.split(")")[0] for i in condition.values() if i.opcode == "constant"]
    if len(constants) != 1 or not constants[0].isdigit():
        raise UnknownCost(f"{loop.name}: the loop's trip count depends on data")
    return int(constants[0])


# --- Costs of single instructions ------------------------------------------------------------


def _dot(instruction: Instruction, neighbours: dict[str, Instruction]) -> int:
    left = neighbours[instruction.names[0]].shape
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)
    axes = _integers(contracted.group(1)) if contracted else ()
    return 2 * math.prod(instruction.shape) * math.prod(left[axis] for axis in axes)


def _convolution(instruction: Instruction, neighbours: dict[str, Instruction]) -> int:
    kernel = neighbours[instruction.names[1]].shape
    match = re.search(r"dim_labels=\w+_(\w+)->", instruction.text)
    labels = match.group(1) if match else ""
    met = math.prod(size for size, label in zip(kernel, labels, strict=True) if label != "o")
    return 2 * math.prod(instruction.shape) * met


def _custom_call(instruction: Instruction, neighbours: dict[str, Instruction]) -> int:
    target = re.search(r'custom_call_target="([^"]*)"', instruction.text)
    if target and _OPAQUE.search(target.group(1)):
        raise UnknownCost(f"{instruction.name}: kernel {target.group(1)} hides its products")
    return 0


_RULES = {"dot": _dot, "convolution": _convolution, "custom-call": _custom_call}


# --- Reading the text ------------------------------------------------------------------------


def parse(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """The entry computation's name, and the instructions of each computation by name."""
    entry = ""
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        header, match = _HEADER.match(line), _INSTRUCTION.match(line)
        if header:
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif match:
            name, kind, opcode, rest = match.groups()
            shape = re.match(r"\w+\[([\d,]*)\]", kind)
            dims = _integers(shape.group(1)) if shape else ()
            names = re.findall(r"%([\w.\-]+)", rest)
            current[name] = Instruction(name, opcode, dims, names, rest)
    if not entry:
        raise ValueError("the text holds no ENTRY computation: pass compiled.as_text()")
    return entry, computations


def _called(instruction: Instruction, attribute: str) -> str:
    match = re.search(rf"\b(?:{attribute})=%?([\w.\-]+)", instruction.text)
    return match.group(1) if match else ""


def _branches(instruction: Instruction) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", instruction.text)
    if several:
        return re.findall(r"%?([\w.\-]+)", several.group(1))
    return [_called(instruction, "true_computation"), _called(instruction, "false_computation")]


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(",") if item)

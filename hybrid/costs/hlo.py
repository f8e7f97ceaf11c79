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

Elementwise work counts as nothing, as in `cost.py`. Kernels written by hand hide their products
from the text, so they are refused, not counted as zero: they report their own count.

    flops = count_flops(jax.jit(f).lower(x).compile().as_text())
"""

import dataclasses
import functools
import math
import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
_OPAQUE = re.compile(r"matmul|gemm|dot|conv|tpu_custom_call|triton|mosaic|attention", re.I)


class UnknownCost(ValueError):
    """The program holds work whose amount cannot be read from its text."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
      shape: of the result, () for a tuple.
      operands: names of the operands, in order.
      rest: the attributes after the operands, as text.
    """

    name: str
    opcode: str
    shape: tuple[int, ...]
    operands: tuple[str, ...]
    rest: str


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
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known.group(1))
    condition = computations[_called(loop, "condition")]
    constants = [i.operands[0] for i in condition.values() if i.opcode == "constant"]
    if len(constants) != 1 or not constants[0].isdigit():
        raise UnknownCost(f"{loop.name}: the loop's trip count depends on data")
    return int(constants[0])


# --- Costs of single instructions ------------------------------------------------------------

_CALLS = ("fusion", "call", "async-start")


def _dot(instruction: Instruction, neighbours: dict[str, Instruction]) -> int:
    left = neighbours[instruction.operands[0]].shape
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    axes = _integers(contracted.group(1)) if contracted else ()
    return 2 * math.prod(instruction.shape) * math.prod(left[axis] for axis in axes)


def _convolution(instruction: Instruction, neighbours: dict[str, Instruction]) -> int:
    kernel = neighbours[instruction.operands[1]].shape
    match = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
    labels = match.group(1) if match else ""
    met = math.prod(size for size, label in zip(kernel, labels, strict=True) if label != "o")
    return 2 * math.prod(instruction.shape) * met


def _custom_call(instruction: Instruction, neighbours: dict[str, Instruction]) -> int:
    del neighbours
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
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
            current[match.group(1)] = _instruction(match.group(1), line[match.end() :])
    if not entry:
        raise ValueError("the text holds no ENTRY computation: pass compiled.as_text()")
    return entry, computations


def _instruction(name: str, text: str) -> Instruction:
    """Parses `TYPE OPCODE(OPERANDS), ATTRIBUTES`; a tuple's type is in parentheses itself."""
    type_end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, _ = text[type_end:].strip().partition("(")
    start = text.index("(", type_end)
    end = _closing(text, start)
    shape = _SHAPE.match(text)
    inside = text[start + 1 : end]
    operands = re.findall(r"%([\w.\-]+)", inside) or [inside]
    dims = _integers(shape.group(1)) if shape else ()
    return Instruction(name, opcode, dims, tuple(operands), text[end + 1 :])


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")


def _called(instruction: Instruction, attribute: str) -> str:
    match = re.search(rf"\b(?:{attribute})=%?([\w.\-]+)", instruction.rest)
    return match.group(1) if match else ""


def _branches(instruction: Instruction) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if several:
        return re.findall(r"%?([\w.\-]+)", several.group(1))
    return [_called(instruction, "true_computation"), _called(instruction, "false_computation")]


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(",") if item)

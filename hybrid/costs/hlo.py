"""A compiled program's text as data, and the walk over it with the loops' trip counts.

The compiler's own figures (`compiled.cost_analysis()`) count the body of a loop once, so a scan
over sixty layers looks like one. The walk here multiplies:

    program      = the entry computation
    computation  = the sum over its instructions, each with the cost that a function gives it
    while        = trip count · (body + condition)
    conditional  = its most expensive branch
    fusion, call = what it calls

    program = hlo.parse(compiled.as_text())
    costs = hlo.total(program, cost)          # cost: (instruction, its neighbours) -> Counter

Instructions carry the names of the scopes that they were traced in (`jax.named_scope` in
`model/` and `training/step.py`), so costs are told apart by part of the model. What the compiler
itself added (copies, casts, pieces of products) has none: it belongs to the part that it is made
from, else to that which uses it, else to that of the instruction that calls it.

Read next: `flops.py`, `collectives.py` and `memory.py`, which count.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

# Scopes by their name in a program -> parts of the model.
PARTS = {
    "embedding": "embedding_and_loss",
    "loss": "embedding_and_loss",
    "local": "local",
    "global": "global",
    "state": "state",
    "experts": "experts",
    "optimizer": "optimizer",
}
OTHER = "other"
CALLS = ("fusion", "call", "async-start")
# Instructions that hold values of many parts together.
_STRUCTURE = ("tuple", "while", "parameter", "conditional", "call", "opt-barrier")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# NAME = TYPE OPCODE(OPERANDS), ATTRIBUTES; a tuple's type is in parentheses itself.
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


class UnknownCost(ValueError):
    """The program holds work whose amount cannot be read from its text."""


class Array(NamedTuple):
    """An array of a result: its type, and its memory space (0: the device's main memory)."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        bits = re.search(r"\d+", self.dtype)  # f32, bf16, f8e4m3fn, s4; a pred is a byte
        width = int(bits.group()) if bits else 8 * (self.dtype == "pred")
        return -(-math.prod(self.shape) * width // 8)


class Instruction(NamedTuple):
    """One line of HLO: the arrays of its result, and the text of operands and attributes.

    `names` are those of other instructions in the text, the operands first and in order.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    names: list[str]
    text: str
    is_root: bool = False
    part: str = OTHER

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a result that is one array; () for a tuple."""
        return self.arrays[0].shape if len(self.arrays) == 1 else ()

    @property
    def bytes(self) -> int:
        """Of the whole result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """The scopes and the operation of jax that it was made for; "" where not known."""
        match = re.search(r'op_name="([^"]*)"', self.text)
        return match.group(1) if match else ""

    def operands(self, neighbours: "Computation") -> list["Instruction"]:
        """The instructions whose results it takes."""
        names = re.findall(r"%([\w.\-]+)", self.text.partition(")")[0])
        return [neighbours[name] for name in names if name in neighbours]

    def called(self, attribute: str = "calls|to_apply") -> str:
        """The name of the computation under an attribute; "" without it."""
        match = re.search(rf"\b(?:{attribute})=%?([\w.\-]+)", self.text)
        return match.group(1) if match else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """The entry computation's name, and the instructions of each computation by name."""

    entry: str
    computations: dict[str, Computation]


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    entry = ""
    computations: dict[str, Computation] = {}
    current: Computation = {}
    for line in text.splitlines():
        header, match = _HEADER.match(line), _INSTRUCTION.match(line)
        if header:
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif match:
            root, name, kind, opcode, rest = match.groups()
            names = re.findall(r"%([\w.\-]+)", rest)
            current[name] = Instruction(name, opcode, _arrays(kind), names, rest, bool(root))
    if not entry:
        raise ValueError("the text holds no ENTRY computation: pass compiled.as_text()")
    for name in computations:  # what calls stands behind what it calls
        _part_inside(name, computations)
    for name in reversed(computations):
        _part_from_callers(name, computations)
    return Program(entry, computations)


def part_of(op_name: str) -> str:
    """The innermost scope of PARTS in the name of an operation.

    >>> part_of("jit(step)/transpose(jvp())/while/body/checkpoint/local/experts/dot_general")
    'experts'
    """
    scopes = re.split(r"[/();]+", op_name)
    return next((PARTS[scope] for scope in reversed(scopes) if scope in PARTS), OTHER)


def _part_inside(name: str, computations: dict[str, Computation]) -> None:
    """Gives each instruction its part: its own, else its operands', else its users'."""
    computation = computations[name]
    parts: dict[str, str] = {}
    unknown = []
    for each in computation.values():
        part = part_of(each.op_name)
        if part == OTHER and each.opcode == "get-tuple-element":
            part = _part_of_element(each, computation, computations)
        if part == OTHER and each.opcode not in _STRUCTURE:
            made_from = (parts.get(operand.name, OTHER) for operand in each.operands(computation))
            part = next((one for one in made_from if one != OTHER), OTHER)
            unknown += [each.name] * (part == OTHER)
        parts[each.name] = part
    for each in reversed(computation.values()):  # users before what they use
        for operand in each.operands(computation) if unknown else ():
            if parts[operand.name] == OTHER and operand.opcode not in _STRUCTURE:
                parts[operand.name] = parts[each.name]
    for each in list(computation.values()):
        computation[each.name] = each._replace(part=parts[each.name])


def _part_of_element(
    element: Instruction, computation: Computation, computations: dict[str, Computation]
) -> str:
    """Of an element of a loop's or a fusion's result: that of what makes it inside."""
    index = re.search(r"index=(\d+)", element.text)
    maker = computation[element.names[0]]
    inner = computations.get(maker.called("calls|body"), {})
    root = next((each for each in inner.values() if each.is_root), None)
    if index is None or root is None or root.opcode != "tuple":
        return OTHER
    return root.operands(inner)[int(index.group(1))].part


def _part_from_callers(name: str, computations: dict[str, Computation]) -> None:
    """Hands the parts of a computation's instructions on to what they call and is still unnamed."""
    for caller in computations[name].values():
        operands = caller.operands(computations[name]) if caller.opcode == "fusion" else []
        for called in (caller.called(), caller.called("body"), caller.called("condition")):
            inner = computations.get(called, {})
            for each in list(inner.values()):
                part = caller.part
                if each.opcode == "parameter" and operands:
                    part = operands[int(each.text.partition(")")[0])].part
                if each.part == OTHER and part != OTHER:
                    inner[each.name] = each._replace(part=part)


def _arrays(kind: str) -> tuple[Array, ...]:
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(kind):
        space = re.search(r"S\((\d+)\)", layout)
        arrays.append(Array(dtype, integers(dims), int(space.group(1)) if space else 0))
    return tuple(arrays)


def integers(text: str, separator: str = ",") -> tuple[int, ...]:
    """The numbers of "2,3,4"."""
    return tuple(int(item) for item in text.split(separator) if item)


# --- The walk --------------------------------------------------------------------------------


def total(
    program: Program,
    cost: Callable[[Instruction, Computation], Counter],
    enters: Collection[str] = CALLS,
) -> Counter:
    """The summed costs of all that a run of the program executes.

    Args:
      cost: of one instruction, given its computation; empty where it has none of its own.
      enters: instructions whose computations are walked, besides loops and conditionals.
    Raises: UnknownCost for a loop without a readable trip count.
    """

    @functools.cache
    def of(name: str) -> Counter:
        costs: Counter = Counter()
        neighbours = program.computations[name]
        for instruction in neighbours.values():
            costs.update(cost(instruction, neighbours))
            if instruction.opcode == "conditional":
                costs.update(
                    max(map(of, _branches(instruction)), key=lambda costs: sum(costs.values()))
                )
                continue
            for callee, times in _callees(instruction, program, enters):
                costs.update({key: times * value for key, value in of(callee).items()})
        return costs

    return of(program.entry)


def _callees(
    instruction: Instruction, program: Program, enters: Collection[str]
) -> Iterator[tuple[str, int]]:
    """The computations that an instruction runs, and how often."""
    if instruction.opcode == "while":
        times = trip_count(instruction, program.computations)
        yield instruction.called("body"), times
        yield instruction.called("condition"), times
    elif instruction.opcode in enters and instruction.called():
        yield instruction.called(), 1


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int:
    """Times that a while loop runs its body.

    The compiler writes the count where it could derive it; else the loop counts from 0 to the one
    integer constant that its condition compares with, as `jax.lax.scan` does.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if known:
        return int(known.group(1))
    condition = computations[loop.called("condition")]
    constants = [i.text.split(")")[0] for i in condition.values() if i.opcode == "constant"]
    if len(constants) != 1 or not constants[0].isdigit():
        raise UnknownCost(f"{loop.name}: the loop's trip count depends on data")
    return int(constants[0])


def _branches(instruction: Instruction) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", instruction.text)
    if several:
        return re.findall(r"%?([\w.\-]+)", several.group(1))
    return [instruction.called("true_computation"), instruction.called("false_computation")]

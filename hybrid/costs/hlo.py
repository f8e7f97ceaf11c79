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
`model/` and `training/step.py`), so costs are told apart by part of the model.

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
    "experts": "experts",
    "optimizer": "optimizer",
}
OTHER = "other"
CALLS = ("fusion", "call", "async-start")

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

    @property
    def part(self) -> str:
        """The innermost scope of PARTS: experts inside a local layer are experts."""
        scopes = re.split(r"[/();]+", self.op_name)
        return next((PARTS[scope] for scope in reversed(scopes) if scope in PARTS), OTHER)

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
    return Program(entry, computations)


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
                costs.update(max(map(of, _branches(instruction)), key=Counter.total))
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

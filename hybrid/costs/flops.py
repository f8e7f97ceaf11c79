"""FLOPs of a compiled program: its matrix products and convolutions.

    dot          = 2 · (elements of the result) · (contracted elements)
    convolution  = 2 · (batch · features of the result) · (input features of the kernel)
                     · Π over spatial axes (pairs of result and tap that meet an input)

A TPU program writes most products as convolutions, those over heads with the heads as a spatial
axis, `window={size=32 pad=31_31 rhs_reversal=1}`: of the 63 · 32 pairs there, all but 32 · 32 meet
padding. Taps on padding, and on the holes of a dilated input, are no work.

    ragged dot   = 2 · (elements of the result) · (contracted elements)

is the TPU compiler's own kernel for `jax.lax.ragged_dot`: each row meets the matrix of its group.
Pallas kernels say themselves what they cost.

Elementwise work counts as nothing, as in `model_costs.py`. Other kernels hide their products from
the text, so they are refused, not counted as zero.

    flops = count_flops(jax.jit(f).lower(x).compile().as_text())
"""

import functools
import math
import re
from collections import Counter

from hybrid.costs import hlo
from hybrid.costs.hlo import Computation, Instruction, Program, UnknownCost

_OPAQUE = re.compile(r"matmul|gemm|dot|conv|tpu_custom_call|triton|mosaic|attention", re.I)


def count_flops(text: str) -> int:
    """FLOPs of matrix products and convolutions of a program, given `compiled.as_text()`.

    Raises: UnknownCost for a loop without a readable trip count or a hand-written kernel.
    """
    return flops_by_part(hlo.parse(text)).total()


def flops_by_part(program: Program) -> Counter:
    """The same by part of the model (`hlo.PARTS`)."""

    def cost(instruction: Instruction, neighbours: Computation) -> Counter:
        rule = _RULES.get(instruction.opcode)
        return Counter({instruction.part: rule(instruction, neighbours)} if rule else {})

    return hlo.total(program, cost)


def _dot(instruction: Instruction, neighbours: Computation) -> int:
    left = neighbours[instruction.names[0]].shape
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)
    dims = hlo.integers(contracted.group(1)) if contracted else ()
    return 2 * math.prod(instruction.shape) * math.prod(left[axis] for axis in dims)


def _convolution(instruction: Instruction, neighbours: Computation) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    if labels is None:
        raise UnknownCost(f"{instruction.name}: a convolution without dim_labels")
    inputs, kernel = (neighbours[name].shape for name in instruction.names[:2])
    sizes = [
        dict(zip(names, shape, strict=True))
        for names, shape in zip(labels.groups(), (inputs, kernel, instruction.shape), strict=True)
    ]
    source, taps, result = sizes
    pairs = 1
    for axis, window in enumerate(_windows(instruction.text, len(inputs) - 2)):
        pairs *= _met(source[str(axis)], taps[str(axis)], result[str(axis)], *window)
    return 2 * result["b"] * result["f"] * taps["i"] * pairs


def _windows(text: str, num_axes: int) -> list[tuple[int, int, int, int]]:
    """Stride, low padding, dilation of the input and of the kernel, an axis at a time."""
    written = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(field.split("=") for field in written.group(1).split()) if written else {}

    def numbers(name: str, default: int) -> list[int]:
        items = fields[name].split("x") if name in fields else [str(default)] * num_axes
        return [int(item.partition("_")[0]) for item in items]

    columns = (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
    return list(zip(*(numbers(*column) for column in columns), strict=True))


@functools.cache
def _met(
    inputs: int, taps: int, results: int, stride: int, low: int, hole: int, spread: int
) -> int:
    """Pairs (i, k) of a result and a tap that meet an input, along one axis.

    Result i and tap k look at place p = i·stride + k·spread - low of the dilated input, where an
    input is at each multiple of `hole` up to (inputs - 1)·hole.
    """
    period = hole // math.gcd(hole, spread)
    pairs = 0
    for i in range(results):
        start = i * stride - low
        first = max(0, -(start // spread))  # the first k with p >= 0
        last = min(taps - 1, ((inputs - 1) * hole - start) // spread)
        for k in range(first, min(first + period, last + 1)):
            if (start + k * spread) % hole == 0:
                pairs += (last - k) // period + 1
                break
    return pairs


def _custom_call(instruction: Instruction, neighbours: Computation) -> int:
    if instruction.name.startswith("ragged-dot-metadata"):
        return 0
    if instruction.name.startswith("ragged-dot-none"):
        rows = neighbours[instruction.names[-2]].shape
        return 2 * math.prod(instruction.shape) * rows[-1]
    target = re.search(r'custom_call_target="([^"]*)"', instruction.text)
    if target and _OPAQUE.search(target.group(1)):
        estimate = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.text)
        if estimate is None:
            raise UnknownCost(f"{instruction.name}: kernel {target.group(1)} hides its products")
        return int(estimate.group(1))
    return 0


_RULES = {"dot": _dot, "convolution": _convolution, "custom-call": _custom_call}

"""A budget as text for people.  Read `budget.py` first; this file only formats."""

from collections.abc import Iterator, Mapping

from hybrid.plan.budget import Budget
from hybrid.plan.table import in_bytes
from hybrid.plan.topology import Topology


def render(budget: Budget, topology: Topology) -> str:
    """The sections of a budget, ready to print below a plan."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in budget.mesh.items() if size > 1)
    head = f"train step on {budget.topology}  {topology.num_chips} chips, {mesh or 'no split'}"
    memory = topology.chip.device().memory
    fits = "fits" if budget.fits else "DOES NOT FIT"
    sections = [
        (head, []),
        (f"bytes a device  {fits} in {in_bytes(memory)}", _sizes(budget.bytes_per_device)),
    ]
    if budget.roofline:
        sections += list(_counts(budget))
    return "\n\n".join(
        "\n".join([head, *(f"  {line}" for line in lines)]) for head, lines in sections
    )


def _counts(budget: Budget) -> Iterator[tuple[str, list[str]]]:
    buffers = [
        f"{in_bytes(each['bytes']):>12}  {each['type']}  {each['part']}: {each['made_by']}"
        for each in budget.largest_buffers
    ]
    yield "largest buffers", buffers
    flops = f"FLOPs a device  {budget.flops_per_device:.4g}, {budget.flops_ratio:.2f} × the formula"
    whole = budget.flops_per_device or 1
    parts = sorted((budget.flops_by_part or {}).items(), key=lambda item: -item[1])
    yield flops, [f"{name:<18} {size:>16.4g}  {size / whole:6.1%}" for name, size in parts]
    yield "bytes from other devices, by part", _sizes(budget.collective_bytes_per_device)
    yield "the same by operation", _sizes(budget.collective_bytes_by_operation)
    roof = dict(budget.roofline or {})
    rate, mfu = roof.pop("tokens_per_second_per_chip"), roof.pop("mfu")
    lines = [f"{name.removesuffix('_seconds'):<18} {size:>14.3f} s" for name, size in roof.items()]
    lines.append(f"{'at best':<18} {rate:>14,.0f} tokens/s a chip, MFU {mfu:.1%}")
    yield f"roofline  limited by {budget.limit}", lines
    yield f"compiled in {budget.compile_seconds:,.0f} s", []


def _sizes(sizes: Mapping[str, float | None] | None) -> list[str]:
    known = {name: size for name, size in (sizes or {}).items() if size is not None}
    return [f"{name:<18} {in_bytes(size):>16}" for name, size in known.items()]

"""Meshes, rematerialisation and micro-batches for a topology: ranked by formula, the best compiled.

The candidates are all ways to write the number of devices as data · fsdp · tensor · expert (expert
in a model that has them) that divide model and batch, times remat, times micro-batches in powers of
two. Those that fit come first, the fastest first.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

from hybrid.config import ConfigError
from hybrid.experiment import Experiment
from hybrid.model.config import REMAT
from hybrid.plan import compiled
from hybrid.plan.budget import Budget, budget
from hybrid.plan.estimate import Estimate, estimate
from hybrid.plan.table import in_bytes
from hybrid.plan.topology import Topology
from hybrid.sharding import MESH_AXES, MeshConfig

SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run the step, its estimate, and its budget where it was compiled."""

    experiment: Experiment
    estimated: Estimate
    compiled: Budget | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: mesh, remat, num_microbatches and both figures."""
        return {
            "mesh": dataclasses.asdict(self.experiment.mesh),
            "remat": self.experiment.model.remat,
            "num_microbatches": self.experiment.training.num_microbatches,
            "estimated": dataclasses.asdict(self.estimated),
            "compiled": None if self.compiled is None else self.compiled.to_dict(),
        }


def search(
    experiment: Experiment,
    topology: Topology,
    num_compiled: int = 3,
    progress: compiled.Progress = lambda seconds: None,
) -> list[Candidate]:
    """All candidates, the best first; the first `num_compiled` have a budget.

    Raises: ConfigError where no mesh divides model and batch, or without libtpu.
    """
    found = []
    for candidate in candidates(experiment, topology.num_devices):
        try:
            found.append(Candidate(candidate, estimate(candidate, topology)))
        except ConfigError:  # this mesh does not divide the model or the batch
            continue
    if not found:
        problem = f"no mesh of {topology.num_devices} devices divides model and batch"
        raise ConfigError("training.batch_size", problem, experiment.training.batch_size)
    found.sort(key=_order)
    best = [
        dataclasses.replace(each, compiled=budget(each.experiment, topology, progress))
        for each in found[:num_compiled]
    ]
    return best + found[num_compiled:]


def _order(candidate: Candidate) -> tuple:
    """Those that fit, by speed; of equals the one with less to exchange; then the smallest."""
    one = candidate.estimated
    total = one.bytes_per_device["total"]
    return (not one.fits, -one.rate if one.fits else total, one.collective_bytes_per_device, total)


def candidates(experiment: Experiment, num_devices: int) -> Iterator[Experiment]:
    """The experiments that a search looks at, most of which may not divide model or batch."""
    split = ("data", "fsdp", "tensor", "expert")[: 4 if experiment.model.num_experts else 3]
    rows = experiment.training.batch_size
    parts = [2**power for power in range(rows.bit_length()) if rows % 2**power == 0]
    for sizes in _factorings(num_devices, len(split)):
        mesh = MeshConfig(**{"data": 1} | dict(zip(split, sizes, strict=True)))
        for remat, num_parts in itertools.product(REMAT, parts):
            yield dataclasses.replace(
                experiment,
                mesh=mesh,
                model=dataclasses.replace(experiment.model, remat=remat),
                training=dataclasses.replace(experiment.training, num_microbatches=num_parts),
            )


def _factorings(number: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (number,)
        return
    for first in (size for size in range(1, number + 1) if number % size == 0):
        for rest in _factorings(number // first, count - 1):
            yield (first, *rest)


def render(found: list[Candidate], topology: Topology) -> str:
    """The best candidates as a table; what the compiler says stands below its row's estimate."""
    memory = in_bytes(topology.chip.device().memory)
    lines = [
        f"{len(found)} ways to run the step on {topology.name}, best first ({memory} a device)",
        "",
        f"{'mesh':<34} {'remat':<5} {'parts':>5} {'bytes':>11} {'fits':>4} "
        f"{'collective':>11} {'tokens/s':>9} {'MFU':>6}  limit",
    ]
    for each in found[:SHOWN]:
        lines.append(_row(mesh_line(each.experiment.mesh), each, each.estimated))
        if each.compiled and each.compiled.roofline:
            lines.append(_row("  compiled", each, each.compiled))
        elif each.compiled:
            needed = in_bytes(each.compiled.bytes_per_device["total"] or math.nan)
            lines.append(f"  compiled: does not fit, needs {needed}")
    return "\n".join(lines)


def _row(name: str, candidate: Candidate, figures: Estimate | Budget) -> str:
    exchanged = figures.collective_bytes_per_device or {}
    total = exchanged if isinstance(exchanged, float) else exchanged.get("total", 0)
    roof = figures.roofline or {}
    size = in_bytes(figures.bytes_per_device["total"] or math.nan)
    return (
        f"{name:<34} {candidate.experiment.model.remat:<5} "
        f"{candidate.experiment.training.num_microbatches:>5} {size:>11} "
        f"{'yes' if figures.fits else 'no':>4} {in_bytes(total):>11} "
        f"{roof['tokens_per_second_per_chip']:>9,.0f} {roof['mfu']:>6.1%}  {figures.limit}"
    )


def mesh_line(mesh: MeshConfig) -> str:
    """`fsdp=16 tensor=4`."""
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "one device"

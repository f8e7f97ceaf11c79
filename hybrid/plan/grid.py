"""Window × ratio × context × mesh: does it fit, what does it cost, by formula, for a config.

Each cell is the config with another window, another number of local layers to a global one, rows of
another length, and another mesh; the tokens of a step stay those of the config, but for meshes with
more places for rows than there are rows.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from hybrid import model
from hybrid.config import ConfigError
from hybrid.costs import model_costs
from hybrid.experiment import Experiment
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.plan.estimate import Estimate, estimate
from hybrid.plan.search import mesh_line
from hybrid.plan.table import in_bytes
from hybrid.plan.topology import Topology
from hybrid.sharding import MeshConfig

WINDOWS = (512, 1024, 4096)
RATIOS = (0, 1, 5)  # local layers to a global one
CONTEXTS = (8192, 32_768, 131_072, 262_144)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table.  cache_bytes: of the caches of one row of `context` tokens."""

    pattern: str
    window: int
    context: int
    rows: int
    mesh: MeshConfig
    cache_bytes: int
    flops_per_token: float
    estimated: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def grid(experiment: Experiment, topology: Topology) -> list[Cell]:
    """All cells that the model has; one without local layers has no window."""
    return list(_cells(experiment, topology))


def _cells(experiment: Experiment, topology: Topology) -> Iterator[Cell]:
    tokens = experiment.training.batch_size * experiment.training.context_length
    meshes = _meshes(topology.num_devices)
    for ratio, window, context, mesh in itertools.product(RATIOS, WINDOWS, CONTEXTS, meshes):
        if ratio == 0 and window != WINDOWS[0]:
            continue
        rows = max(tokens // context, 1, mesh.data * mesh.fsdp)
        try:
            changed = _changed(experiment, "L" * ratio + "G", window, context, rows, mesh)
            found = estimate(changed, topology)
        except ConfigError:  # a pattern without a donor, a mesh that does not divide the model
            continue
        config = changed.model
        form = CacheFormat(context, changed.inference.cache_dtype or config.dtype)
        yield Cell(
            pattern=config.pattern,
            window=window if ratio else 0,
            context=context,
            rows=rows,
            mesh=mesh,
            cache_bytes=model_costs.cache_bytes(model.layer_plan(config), form, 1)["total"],
            flops_per_token=model_costs.forward_flops_per_token(config, context),
            estimated=found,
        )


def _meshes(num_devices: int) -> list[MeshConfig]:
    """All on fsdp, 4 of them on tensor, 8 on context, where there are so many."""
    splits = ((1, 1), (4, 1), (1, 8))
    return [
        MeshConfig(data=1, fsdp=num_devices // (t * c), tensor=t, context=c)
        for t, c in splits
        if num_devices % (t * c) == 0
    ]


def _changed(experiment, pattern, window, context, rows, mesh) -> Experiment:
    config = dataclasses.replace(
        experiment.model,
        pattern=pattern,
        window_size=window,
        window_sizes=(),
        last_layer="force_global",
    )
    training = dataclasses.replace(
        experiment.training,
        context_length=context,
        batch_size=rows,
        num_microbatches=1,
        window_schedule=(),
        window_choices=(),
    )
    return dataclasses.replace(experiment, model=config, training=training, mesh=mesh)


def render(cells: list[Cell], topology: Topology) -> str:
    """The table, a line a cell."""
    memory = in_bytes(topology.chip.device().memory)
    lines = [
        f"a train step on {topology.name}, by formula ({memory} a device); caches of one row",
        "",
        f"{'pattern':<8} {'window':>6} {'context':>8} {'rows':>5} {'mesh':<20} {'cache':>11} "
        f"{'a device':>11} {'fits':>4} {'tokens/s':>9} {'MFU':>6}  limit",
    ]
    for cell in cells:
        one, roof = cell.estimated, cell.estimated.roofline
        lines.append(
            f"{cell.pattern:<8} {cell.window or '-':>6} {cell.context:>8,} {cell.rows:>5} "
            f"{mesh_line(cell.mesh):<20} {in_bytes(cell.cache_bytes):>11} "
            f"{in_bytes(one.bytes_per_device['total']):>11} {'yes' if one.fits else 'no':>4} "
            f"{roof['tokens_per_second_per_chip']:>9,.0f} {roof['mfu']:>6.1%}  {one.limit}"
        )
    return "\n".join(lines)

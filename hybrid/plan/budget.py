"""What one device of a topology does in a train step, and how long that would take it.

The roofline: with F the device's FLOPs, M the bytes between it and its memory, and C those from
other chips (an all-reduce counts twice, as a reduction and a gather),

    (1)  compute = F / peak FLOP/s      memory = M / memory rate      collective = C / link rate
    (2)  step = max(compute, memory, collective)
    (3)  mfu = (FLOPs of forward and backward) / (devices · peak FLOP/s · step)

(2) is what a program that overlaps everything would take, with each link of the chip in use: a
bound from below, for comparing meshes, not a forecast.

Read first: `compiled.py`, where the counts come from. `budget_table.py` prints a budget.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hybrid.costs import collectives
from hybrid.costs.training_flops import step_flops, trained_share, training_flops
from hybrid.experiment import Experiment
from hybrid.plan import compiled
from hybrid.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Budget:
    """A device's share of a train step, counted in the compiled program.

    Where the program does not fit the compiler makes none: then `bytes_per_device["total"]` is
    what it says that it would need, `fits` is False and all other figures are None.

    Attributes:
      topology, mesh: the devices and what splits them.
      bytes_per_device: arguments, outputs, temporaries, and the total with donated buffers once.
      fits: whether the total is within the chip's memory.
      flops_per_device: of matrix products.  flops_ratio: over the formula's
        (`training_flops.step_flops`), recomputation counted.
      flops_by_part, collective_bytes_per_device: by part of the model.
      collective_bytes_by_operation: the same bytes by what the program does.
      largest_buffers: {bytes, type, part, made_by} each, the largest first.
      compile_seconds: how long the compiler took.
      roofline: compute_seconds, memory_seconds, collective_seconds, tokens_per_second_per_chip,
        mfu.  limit: which of the three is the longest.
    """

    topology: str
    mesh: Mapping[str, int]
    bytes_per_device: Mapping[str, float | None]
    fits: bool
    flops_per_device: float | None = None
    flops_ratio: float | None = None
    flops_by_part: Mapping[str, float] | None = None
    collective_bytes_per_device: Mapping[str, float] | None = None
    collective_bytes_by_operation: Mapping[str, float] | None = None
    largest_buffers: tuple[Mapping[str, Any], ...] = ()
    compile_seconds: float | None = None
    roofline: Mapping[str, float] | None = None
    limit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def budget(
    experiment: Experiment,
    topology: Topology,
    progress: compiled.Progress = lambda seconds: None,
) -> Budget:
    """The budget of the train step of `experiment` on `topology`.

    Args:
      progress: called each second while the compiler runs, with the seconds so far.
    Raises: ConfigError without libtpu, or where mesh, batch, model and topology don't go together.
    """
    mesh = dict(compiled.check_mesh(experiment, topology).shape)
    figures = compiled.figures(experiment, topology, progress)
    if "needed" in figures:
        unknown = dict.fromkeys(("arguments", "outputs", "temporaries"))
        return Budget(topology.name, mesh, {**unknown, "total": figures["needed"]}, fits=False)
    sizes = Counter({(made, part): size for made, part, size in figures["collectives"]})
    flops = sum(figures["flops_by_part"].values())
    exchanged = sum(size * (2 if made == "all-reduce" else 1) for (made, _), size in sizes.items())
    roof = roofline(experiment, topology, flops, figures["memory_traffic"], exchanged)
    share = trained_share(experiment.model, experiment.lora, experiment.optimizer.freeze)
    formula = step_flops(experiment.model, experiment.training.step, share)
    return Budget(
        topology=topology.name,
        mesh=mesh,
        bytes_per_device=figures["bytes_per_device"],
        fits=figures["bytes_per_device"]["total"] <= topology.chip.device().memory,
        flops_per_device=flops,
        flops_ratio=flops / (formula / topology.num_devices),
        flops_by_part=figures["flops_by_part"],
        collective_bytes_per_device=collectives.by_part(sizes),
        collective_bytes_by_operation=collectives.by_operation(sizes),
        largest_buffers=tuple(figures["largest_buffers"]),
        compile_seconds=figures["lower_seconds"] + figures["compile_seconds"],
        roofline=roof,
        limit=limit(roof),
    )


def limit(roof: Mapping[str, float]) -> str:
    """Which of compute, memory and collective is the longest of (1)."""
    return max(("compute", "memory", "collective"), key=lambda name: roof[f"{name}_seconds"])


def roofline(
    experiment: Experiment, topology: Topology, flops: float, moved: float, exchanged: float
) -> dict[str, float]:
    """(1) to (3) of a device with these FLOPs, bytes of its memory and bytes from other chips."""
    device, step = topology.chip.device(), experiment.training.step
    seconds = {
        "compute_seconds": flops / device.flops,
        "memory_seconds": moved / device.memory_rate,
        "collective_seconds": exchanged / device.link_rate,
    }
    longest = max(seconds.values())
    one = dataclasses.replace(step, num_steps=1)
    share = trained_share(experiment.model, experiment.lora, experiment.optimizer.freeze)
    useful = training_flops([(0, experiment.model)], one, share)
    tokens = step.batch_size * step.context_length
    return seconds | {
        "tokens_per_second_per_chip": tokens / topology.num_chips / longest,
        "mfu": useful / (topology.num_devices * device.flops * longest),
    }

"""From a sweep's config to its runs: names, resolved experiments, folders; all checked.

    config → cells (overrides in an arm) → matched to their baseline → × learning rates × seeds

A cell's experiment is the base with the arm's and the cell's overrides, in that order. Every run
is an ordinary workdir, `runs/ARM/CELL/seed=0`, that train.py could have made.

Read next: `match.py` (what is held equal), `sweep.py` (running them).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid.ablate.config import NAME, Overrides, SweepConfig
from hybrid.ablate.match import matched, train_flops
from hybrid.ablate.pairing import find_partner
from hybrid.config import ConfigError
from hybrid.experiment import Experiment

RUNS = "runs"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a sweep in one arm.

    Attributes:
      name: unique in its arm.  arm: "" where there is only one.
      overrides: against the base by dotted key, without the arm's.
      experiment: resolved and matched, with the base's seed and learning rate.
      changed: {dotted key: (from, to)}, what matching changed.
    """

    name: str
    arm: str
    overrides: Overrides
    experiment: Experiment
    changed: dict[str, tuple]


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run to do: a cell at one seed and learning rate; `folder` is relative to the sweep's."""

    cell: Cell
    seed: int
    learning_rate: float
    experiment: Experiment
    folder: str

    @property
    def label(self) -> str:
        """For a progress line: `needle, 5:1, learning rate 0.01, seed 0`."""
        parts = [self.cell.arm, self.cell.name, f"learning rate {self.learning_rate:g}"]
        return ", ".join([*filter(None, parts), f"seed {self.seed}"])


def cells(config: SweepConfig) -> tuple[Cell, ...]:
    """All cells of a sweep, arm by arm, each matched to the baseline of its arm.

    Raises: ConfigError for a cell that can't be built, twins, or a baseline that isn't there.
    """
    found = []
    arms: tuple[tuple[str, Overrides], ...] = config.arms or (("", {}),)
    for arm, of_arm in arms:
        built = [
            Cell(name, arm, overrides, _build(config, {**of_arm, **overrides}, name), {})
            for name, overrides in _named(config)
        ]
        baselines = [_partner(cell, built, config.baseline) for cell in built]
        for cell, baseline in zip(built, baselines, strict=True):
            fitted, changed = matched(cell.experiment, baseline.experiment, config.match)
            found.append(dataclasses.replace(cell, experiment=fitted, changed=changed))
    return tuple(found)


def _partner(cell: Cell, of_arm: list[Cell], baseline: Overrides) -> Cell:
    """Raises: ConfigError where the cell has none."""
    found = find_partner(of_arm, cell, baseline or None)
    if found is None:
        problem = f"is no cell of the sweep, nor is it with the other overrides of {cell.name}"
        raise ConfigError("baseline", problem, baseline)
    return found


def runs(config: SweepConfig) -> tuple[Planned, ...]:
    """All runs of a sweep, cell by cell, so that runs of one shape follow each other."""
    return tuple(
        _planned(config, cell, learning_rate, seed)
        for cell in cells(config)
        for learning_rate in config.learning_rates or (cell.experiment.optimizer.learning_rate,)
        for seed in config.seeds
    )


def _planned(config: SweepConfig, cell: Cell, learning_rate: float, seed: int) -> Planned:
    experiment = dataclasses.replace(
        cell.experiment,
        training=dataclasses.replace(cell.experiment.training, seed=seed),
        optimizer=dataclasses.replace(cell.experiment.optimizer, learning_rate=learning_rate),
    )
    parts = [RUNS, cell.arm, cell.name]
    if config.learning_rates:
        parts.append(f"learning_rate={learning_rate:g}")
    folder = "/".join([*(_as_folder(part) for part in parts if part), f"seed={seed}"])
    return Planned(cell, seed, learning_rate, experiment, folder)


# --- Cells and their names -------------------------------------------------------------------


def _named(config: SweepConfig) -> list[tuple[str, Overrides]]:
    """(name, overrides) of each cell.  Raises: ConfigError for two of one name."""
    named = []
    for overrides in config.cells or _crossed(config.axes):
        given = {key: value for key, value in overrides.items() if key != NAME}
        named.append((str(overrides.get(NAME) or cell_name(given)), given))
    names = [name for name, _ in named]
    folders = [_as_folder(name) for name in names]
    twins = [name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1]
    if twins:
        raise ConfigError("cells" if config.cells else "axes", "give a cell twice", twins[0])
    return named


def _crossed(axes: tuple[tuple[str, tuple], ...]) -> Iterator[Overrides]:
    keys = [key for key, _ in axes]
    for values in itertools.product(*(values for _, values in axes)):
        yield dict(zip(keys, values, strict=True))


def cell_name(overrides: Overrides) -> str:
    """A short name of overrides: the last word of each key, the whole key where that is unclear.

    >>> cell_name({"model.window_size": 8, "model.unified_kv": True})
    'window_size=8,unified_kv=true'
    """
    lasts = [key.rsplit(".", 1)[-1] for key in overrides]
    parts = [
        f"{last if lasts.count(last) == 1 else key}={_shown(value)}"
        for last, (key, value) in zip(lasts, overrides.items(), strict=True)
    ]
    return ",".join(parts) or "base"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "-".join(_shown(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def _as_folder(name: str) -> str:
    """A name as one folder: nothing that a path or a shell would read otherwise."""
    return re.sub(r"[^\w.,=+@%-]", "_", name).strip(".") or "_"


# --- Building --------------------------------------------------------------------------------


def _build(config: SweepConfig, overrides: Overrides, name: str) -> Experiment:
    """Raises: ConfigError that names the cell."""
    try:
        values = config_lib.updated(config_lib.to_dict(config.base), overrides)
        experiment = experiment_lib.from_config(values)
        if not config.trained:
            train_flops(experiment)  # checks what only training reads
    except ConfigError as error:
        problem = f"{error.problem} (in cell {name})"
        raise ConfigError(error.key, problem, error.got, error.accepted) from None
    return experiment

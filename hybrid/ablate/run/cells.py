"""From a sweep's config to its runs: names, resolved experiments, folders; all checked.

    config → cells (overrides in an arm) → matched to their baseline → × learning rates × seeds

A cell's experiment is the base with the arm's and the cell's overrides, in that order. Every run
is an ordinary workdir, `runs/ARM/CELL/seed=0`, that train.py could have made. No two share a
folder, on any file system, and a folder follows from the sweep alone (`folder_names`).
"""

import dataclasses
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid.ablate.config import NAME, Overrides, SweepConfig
from hybrid.ablate.run.match import matched, train_flops
from hybrid.ablate.run.pairing import partner_indices
from hybrid.config import MOST_NAME, ConfigError
from hybrid.experiment import Experiment

_MOST_KEPT = 200  # bytes of a longer name, before the digits of a hash


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a sweep in one arm.

    Attributes:
      name: unique in its arm.  arm: "" where there is only one.
      folder: of its runs, relative to the sweep's.
      overrides: against the base by dotted key, without the arm's.
      experiment: resolved and matched, with the base's seed and learning rate.
      changed: {dotted key: (from, to)}, what matching changed.
    """

    name: str
    arm: str
    folder: str
    overrides: Overrides
    experiment: Experiment
    changed: dict[str, tuple] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """A cell at one seed and learning rate; `folder` is relative to the sweep's."""

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


def runs(config: SweepConfig) -> tuple[SweepRun, ...]:
    """All runs of a sweep, cell by cell, so that runs of one shape follow each other."""
    return tuple(
        _sweep_run(config, cell, learning_rate, seed)
        for cell in cells(config)
        for learning_rate in config.learning_rates or (cell.experiment.optimizer.learning_rate,)
        for seed in config.seeds
    )


def _sweep_run(config: SweepConfig, cell: Cell, learning_rate: float, seed: int) -> SweepRun:
    experiment = dataclasses.replace(
        cell.experiment,
        training=dataclasses.replace(cell.experiment.training, seed=seed),
        optimizer=dataclasses.replace(cell.experiment.optimizer, learning_rate=learning_rate),
    )
    rates = [f"learning_rate={_rate_name(config, learning_rate)}"] if config.learning_rates else []
    folder = "/".join([cell.folder, *rates, f"seed={seed}"])
    return SweepRun(cell, seed, learning_rate, experiment, folder)


def _rate_name(config: SweepConfig, rate: float) -> str:
    short = f"{rate:g}"
    twins = [other for other in config.learning_rates if f"{other:g}" == short]
    return short if len(twins) == 1 else repr(rate)


def cells(config: SweepConfig) -> tuple[Cell, ...]:
    """All cells of a sweep, arm by arm, each matched to the baseline of its arm.

    Raises: ConfigError for a cell that can't be built, two of one name, or a missing baseline.
    """
    arms: dict[str, Overrides] = dict(config.arms) or {"": {}}
    folders = folder_names(list(arms)) if config.arms else {"": ""}
    return tuple(
        cell
        for arm, overrides in arms.items()
        for cell in _cells_of_arm(config, arm, f"runs/{folders[arm]}".rstrip("/"), overrides)
    )


def _cells_of_arm(
    config: SweepConfig, arm: str, folder: str, arm_overrides: Overrides
) -> list[Cell]:
    built = []
    named = _named_overrides(config)
    folders = folder_names(list(named))
    for name, overrides in named.items():
        try:
            values = config_lib.to_dict(config.base)
            values = config_lib.updated(values, {**arm_overrides, **overrides})
            experiment = experiment_lib.from_config(values)
            built.append(Cell(name, arm, f"{folder}/{folders[name]}", overrides, experiment))
            if not config.trained:
                train_flops(built[-1].experiment)  # checks what only training reads
        except ConfigError as error:
            problem = f"{error.problem} (in cell {name})"
            raise ConfigError(error.key, problem, error.got, error.accepted) from None
    partners = partner_indices([cell.overrides for cell in built], config.baseline or None)
    matched_cells = []
    for cell, partner in zip(built, partners, strict=True):
        if partner is None:
            problem = f"is no cell of the sweep, nor is it with the other overrides of {cell.name}"
            raise ConfigError("baseline", problem, config.baseline)
        fitted, changed = matched(cell.experiment, built[partner].experiment, config.match)
        matched_cells.append(dataclasses.replace(cell, experiment=fitted, changed=changed))
    return matched_cells


def _named_overrides(config: SweepConfig) -> dict[str, Overrides]:
    """{name: overrides} of each cell.  Raises: ConfigError for two of one name."""
    named: dict[str, Overrides] = {}
    for entry in config.cells or crossed(config.axes):
        overrides = {key: value for key, value in entry.items() if key != NAME}
        name = str(entry.get(NAME) or cell_name(overrides))
        if name in named and not entry.get(NAME) and overrides != named[name]:
            name = f"{name}-{_digits(repr(overrides))}"  # values that differ beyond their names
        if name in named:
            raise ConfigError("cells" if config.cells else "axes", "give a cell twice", name)
        named[name] = overrides
    return named


def crossed(axes: Sequence[Sequence[Any]]) -> list[Overrides]:
    """The points of a grid: one value of each axis, the last axis fastest."""
    keys, points = [key for key, _ in axes], itertools.product(*(values for _, values in axes))
    return [dict(zip(keys, values, strict=True)) for values in points]


def cell_name(overrides: Overrides) -> str:
    """A short name of overrides: the last word of each key, the whole key where that is unclear.

    >>> cell_name({"model.window_size": 8, "model.unified_kv": True})
    'window_size=8,unified_kv=true'
    """
    lasts = [key.rsplit(".", 1)[-1] for key in overrides]
    parts = [
        f"{last if lasts.count(last) == 1 else key}={_value_name(value)}"
        for last, (key, value) in zip(lasts, overrides.items(), strict=True)
    ]
    return ",".join(parts) or "base"


def _value_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "-".join(map(_value_name, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """A folder's name for each of several different names, no two alike on any file system.

    It has no character that means something in a path or a shell. Digits of a hash follow where a
    name would be too long, or is taken but for the case of letters.
    """
    folders: dict[str, str] = {}
    taken = set()
    for name in names:
        folder = re.sub(r"[^\w.,=+@%-]", "_", name).strip(".") or "_"
        if len(folder.encode()) > MOST_NAME or _caseless(folder) in taken:
            short = folder.encode()[:_MOST_KEPT].decode(errors="ignore")
            folder = f"{short}-{_digits(name)}"
        taken.add(_caseless(folder))
        folders[name] = folder
    return folders


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFKC", name.casefold())


def _digits(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()

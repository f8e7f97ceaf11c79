"""Runs grouped into cells: which learning rate a cell stands with, and whom it is paired with.

Runs that differ only in seed and learning rate form a `Cell`; its runs at one rate are a `Rate`.
Only finished runs with a finite loss count. Read `results.py` (a Run) first.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.ablate import statistics
from hybrid.ablate.results import Run


@dataclasses.dataclass(frozen=True)
class Rate:
    """The finished runs of a cell at one learning rate, by seed."""

    learning_rate: float | None
    runs: tuple[Run, ...]

    @property
    def losses(self) -> dict[int, float]:
        """{seed: final loss}."""
        return {run.seed: run.loss for run in self.runs if run.loss is not None}

    @property
    def mean_loss(self) -> float | None:
        """Mean final loss over its seeds; None without a run."""
        return statistics.plain_mean(list(self.losses.values())) if self.runs else None


@dataclasses.dataclass(frozen=True)
class Cell:
    """All runs of one set of overrides; `best` is what it stands for."""

    name: str
    overrides: Mapping[str, Any]
    rates: tuple[Rate, ...]

    @functools.cached_property
    def best(self) -> Rate:
        """Of the rates with the most finished seeds that of the lowest mean loss, or the first."""

        def rank(rate: Rate) -> tuple[int, float]:
            return -len(rate.runs), 0.0 if rate.mean_loss is None else rate.mean_loss

        return min(self.rates, key=rank)


def group(runs: Sequence[Run]) -> list[Cell]:
    """The cells of an arm's runs, each where it is first seen."""
    grouped: dict[Any, dict[float | None, list[Run]]] = {}
    first: dict[Any, Run] = {}
    for run in runs:
        key = _frozen(run.overrides)
        first.setdefault(key, run)
        rates = grouped.setdefault(key, {})
        rates.setdefault(run.learning_rate, []).append(run)
    return [
        Cell(
            first[key].name,
            first[key].overrides,
            tuple(Rate(rate, _finished(of_rate)) for rate, of_rate in rates.items()),
        )
        for key, rates in grouped.items()
    ]


def _finished(runs: Sequence[Run]) -> tuple[Run, ...]:
    return tuple(sorted((r for r in runs if r.loss is not None), key=lambda run: run.seed))


def _frozen(value: Any) -> Any:
    """A hashable that is equal for overrides that mean the same, lists and tuples alike."""
    if isinstance(value, Mapping):
        return frozenset((key, _frozen(entry)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(entry) for entry in value)
    return value


def find_partner(
    cells: Sequence[Cell], cell: Cell, baseline: Mapping[str, Any] | None
) -> Cell | None:
    """Whom `cell` is paired with, itself if it is a baseline; None if the arm has no such cell."""
    wanted = cells[0].overrides if baseline is None else baseline
    known = {_frozen(other.overrides): other for other in cells}
    everyones = known.get(_frozen(wanted))
    return everyones or known.get(_frozen({**cell.overrides, **wanted}))


def mean_curve(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """(train FLOPs, mean loss) at the steps where all runs have a finite loss, in order."""
    curves = [
        {step: (flops, loss) for step, flops, loss in run.curve if flops and loss is not None}
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    flops, losses = (
        [statistics.plain_mean([curve[step][part] for curve in curves]) for step in steps]
        for part in (0, 1)
    )
    return flops, losses

"""Runs grouped into cells, and which learning rate a cell stands with.

Runs that differ only in seed and learning rate form a `Cell`; its runs at one rate are a `Rate`.
Only finished runs with a finite loss count. Read `results.py` (a Run) first.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.ablate import statistics
from hybrid.ablate.pairing import frozen
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
        key = frozen(run.overrides)
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

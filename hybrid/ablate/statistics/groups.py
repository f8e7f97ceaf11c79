"""Runs grouped into cells, and the learning rate that represents a cell.

Runs that differ only in seed and learning rate are of one cell; those at one rate are a
`RateRuns`. Only finished runs with a finite loss count.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.ablate.run.pairing import hashable
from hybrid.ablate.run.run_result import RunResult
from hybrid.ablate.statistics.intervals import plain_mean


@dataclasses.dataclass(frozen=True)
class RateRuns:
    """The finished runs of a cell at one learning rate, by seed."""

    learning_rate: float | None
    runs: tuple[RunResult, ...]

    @property
    def losses(self) -> dict[int, float]:
        """{seed: final loss}."""
        return {run.seed: run.loss for run in self.runs if run.loss is not None}

    @property
    def mean_loss(self) -> float | None:
        """Mean final loss over its seeds; None without a run."""
        return plain_mean(list(self.losses.values())) if self.runs else None


@dataclasses.dataclass(frozen=True)
class CellRuns:
    """All runs of one set of overrides."""

    name: str
    overrides: Mapping[str, Any]
    rates: tuple[RateRuns, ...]

    @functools.cached_property
    def best(self) -> RateRuns:
        """Of the rates with the most finished seeds that of the lowest mean loss, or the first."""

        def rank(rate: RateRuns) -> tuple[int, float]:
            return -len(rate.runs), 0.0 if rate.mean_loss is None else rate.mean_loss

        return min(self.rates, key=rank)


def group(runs: Sequence[RunResult]) -> list[CellRuns]:
    """The cells of an arm's runs, in the order of their first runs."""
    by_cell: dict[Any, list[RunResult]] = {}
    for run in runs:
        by_cell.setdefault(hashable(run.overrides), []).append(run)
    return [CellRuns(of[0].name, of[0].overrides, _by_rate(of)) for of in by_cell.values()]


def _by_rate(runs: Sequence[RunResult]) -> tuple[RateRuns, ...]:
    def finished(rate: float | None) -> tuple[RunResult, ...]:
        of_rate = [run for run in runs if run.learning_rate == rate and run.loss is not None]
        return tuple(sorted(of_rate, key=lambda run: run.seed))

    rates = dict.fromkeys(run.learning_rate for run in runs)
    return tuple(RateRuns(rate, finished(rate)) for rate in rates)


def mean_curve(runs: Sequence[RunResult]) -> tuple[list[float], list[float]]:
    """(train FLOPs, mean loss) at the steps where all runs have a finite loss, in order."""
    curves = [
        {step: (flops, loss) for step, flops, loss in run.curve if flops and loss is not None}
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    flops, losses = (
        [plain_mean([curve[step][part] for curve in curves]) for step in steps] for part in (0, 1)
    )
    return flops, losses

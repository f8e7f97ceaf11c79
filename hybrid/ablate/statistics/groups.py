"""Runs grouped into cells, and the learning rate that represents a cell.

Runs that differ only in seed and learning rate are of one cell. Only finished runs with a finite
loss count.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.ablate.run.pairing import hashable
from hybrid.ablate.run.run_result import RunResult
from hybrid.ablate.statistics.intervals import plain_mean

Runs = tuple[RunResult, ...]


@dataclasses.dataclass(frozen=True)
class CellRuns:
    """All finished runs of one set of overrides: {learning rate: runs by seed}."""

    name: str
    overrides: Mapping[str, Any]
    by_rate: Mapping[float | None, Runs]

    @functools.cached_property
    def learning_rate(self) -> float | None:
        """Of the rates with the most runs that of the lowest mean loss, or the first."""
        return min(
            self.by_rate,
            key=lambda rate: (-len(self.by_rate[rate]), mean_loss(self.by_rate[rate]) or 0.0),
        )

    @property
    def runs(self) -> Runs:
        """Those at the best learning rate."""
        return self.by_rate[self.learning_rate]


def losses(runs: Runs) -> dict[int, float]:
    """{seed: final loss} of finished runs."""
    return {run.seed: run.loss for run in runs if run.loss is not None}


def mean_loss(runs: Runs) -> float | None:
    """Mean final loss over seeds; None without a run."""
    return plain_mean(list(losses(runs).values())) if runs else None


def group(runs: Sequence[RunResult]) -> list[CellRuns]:
    """The cells of an arm's runs, in the order of their first runs."""
    cells: dict[Any, CellRuns] = {}
    for run in runs:
        cell = CellRuns(run.name, run.overrides, {})
        by_rate: Any = cells.setdefault(hashable(run.overrides), cell).by_rate
        finished = by_rate.setdefault(run.learning_rate, ())
        if run.loss is not None:
            by_rate[run.learning_rate] = tuple(sorted((*finished, run), key=lambda r: r.seed))
    return list(cells.values())


def mean_curve(runs: Runs) -> tuple[list[float], list[float]]:
    """(train FLOPs, mean loss) at the steps where all runs have a finite loss, in order."""
    points: dict[int, list[tuple[float, float]]] = {}
    for step, flops, loss in (point for run in runs for point in run.curve):
        if flops and loss is not None:
            points.setdefault(step, []).append((flops, loss))
    shared = [points[step] for step in sorted(points) if len(points[step]) == len(runs)]
    flops, losses = ([plain_mean([pair[i] for pair in at]) for at in shared] for i in (0, 1))
    return flops, losses

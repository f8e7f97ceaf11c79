"""Each cell's loss and its difference to the baseline, with the intervals of both.

The cells of one arm are compared with one another. The rules:

    learning rate  a cell is represented by the rate whose runs have the lowest mean final loss;
                   rates with fewer finished seeds are chosen only where none has more
    partner        the cell that a cell is paired with (`pairing.py`)
    pairing        over the seeds that both have; by token where both scored the same tokens
    lengths        loss, differences and accuracies are those of the first evaluated context
                   length (as `eval/loss` is), by position and repeats those of the longest

Runs that differ only in seed and learning rate are of one cell. Cells whose runs are not all
finished are summarised over those that are; a cell with none is left out, and so is an arm with no
cell. A run that ended with a loss that isn't finite counts as not finished. Token records are read
cell by cell: one cell's seeds and its partner's are in memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hybrid.ablate.run.pairing import hashable, partner_indices
from hybrid.ablate.run.run_result import RunResult
from hybrid.ablate.statistics import benchmarks, token_figures
from hybrid.ablate.statistics.benchmarks import Asked
from hybrid.ablate.statistics.cell_summary import (
    TEXT,
    ArmSummary,
    CellSummary,
    ContextSummary,
    RateSummary,
)
from hybrid.ablate.statistics.token_figures import SeedRecords
from hybrid.evaluation import intervals
from hybrid.evaluation.intervals import CountedMean
from hybrid.evaluation.token_records import TokenRecords

Runs = tuple[RunResult, ...]
RecordsOf = Callable[[RunResult], Mapping[int, TokenRecords]]
AskedOf = Callable[[RunResult], Asked]
Lengths = Mapping[int, SeedRecords]  # {context length: records}, in the order evaluated
_COSTS = (
    *("num_params", "flops_per_token", "train_flops", "kv_cache_bytes", "cache_context"),
    *("reach", "letters", "changed"),
)


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


def summarize(
    runs: Sequence[RunResult],
    records_of: RecordsOf,
    baseline: Mapping[str, Any] | None = None,
    asked_of: AskedOf = lambda run: {},
) -> tuple[ArmSummary, ...]:
    """The arms of a sweep that have a finished run, with their cells.

    Args:
      runs: all of the sweep, finished or not, in the sweep's order.
      records_of: reads a finished run's records, {context length: TokenRecords} in the order of
        `eval.context_length`; {} where it has none, which leaves the token figures empty.
      baseline: the overrides that others are paired with; by default each arm's first cell's.
      asked_of: reads the samples of a finished run's benchmarks, by name.
    """
    by_arm: dict[str, list[RunResult]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    readers = records_of, asked_of
    arms = [_arm(name, group(of_arm), *readers, baseline) for name, of_arm in by_arm.items()]
    return tuple(arm for arm in arms if arm is not None)


def _arm(
    name: str,
    cells: Sequence[CellRuns],
    records_of: RecordsOf,
    asked_of: AskedOf,
    baseline: Mapping[str, Any] | None,
) -> ArmSummary | None:
    # Two cells are kept: the one being summarised and its partner, often the same for all.
    @functools.lru_cache(maxsize=2)
    def records_at(index: int) -> Lengths:
        lengths: dict[int, dict[int, TokenRecords]] = {}
        for run in cells[index].runs:
            for length, records in records_of(run).items():
                lengths.setdefault(length, {})[run.seed] = records
        return lengths

    partners = partner_indices([cell.overrides for cell in cells], baseline)
    summaries, lengths = [], []
    for index, partner in enumerate(partners):
        if cells[index].runs:
            other, others = (None, {}) if partner is None else (cells[partner], records_at(partner))
            lengths += list(records_at(index))
            asked = [
                {run.seed: asked_of(run) for run in (cell.runs if cell else ())}
                for cell in (cells[index], None if partner == index else other)
            ]
            summary = _cell(cells[index], other, records_at(index), others)
            scores = benchmarks.scored(*asked)
            summaries.append(dataclasses.replace(summary, benchmarks=scores))
    if not summaries:
        return None
    names = {cells[partner].name if partner is not None else None for partner in partners}
    first = next(run for cell in cells for run in cell.runs)
    return ArmSummary(
        arm=name,
        task=first.task,
        chance=first.chance,
        baseline=names.pop() if len(names) == 1 else None,
        context_lengths=tuple(dict.fromkeys(lengths)),
        cells=tuple(
            dataclasses.replace(cell, on_front=_is_on_front(cell, summaries)) for cell in summaries
        ),
    )


def _is_on_front(cell: CellSummary, cells: Sequence[CellSummary]) -> bool:
    size, sizes = cell.kv_cache_bytes, [other.kv_cache_bytes for other in cells]
    return size is not None and not any(
        smaller is not None and smaller < size and other.loss.mean < cell.loss.mean
        for smaller, other in zip(sizes, cells, strict=True)
    )


def _cell(
    cell: CellRuns, partner: CellRuns | None, records: Lengths, partner_records: Lengths
) -> CellSummary:
    """A cell's summary but for `on_front`; `partner` may be the cell itself."""
    other = None if partner is cell else partner
    own, runs = losses(cell.runs), cell.runs
    speeds = [run.tokens_per_second for run in runs if run.tokens_per_second is not None]
    return CellSummary(
        name=cell.name,
        overrides=cell.overrides,
        is_baseline=partner is cell,
        partner=None if partner is None else partner.name,
        num_seeds=len(runs),
        learning_rate=cell.learning_rate,
        learning_rates=tuple(
            RateSummary(rate, mean_loss(of_rate), len(of_rate))
            for rate, of_rate in cell.by_rate.items()
        ),
        loss=intervals.mean_over_seeds(list(own.values())),
        difference=None if other is None else _difference(own, losses(other.runs)),
        tokens_per_second=float(np.median(speeds)) if speeds else None,
        effective_speedup=None if partner is None else _speedup(runs, partner.runs),
        **{name: getattr(runs[0], name) for name in _COSTS},
        **_token_figures(runs[0].task, records, partner_records if other else {}),
    )


def _difference(own: Mapping[int, float], others: Mapping[int, float]) -> CountedMean | None:
    seeds = sorted(set(own) & set(others))
    pairs = [own[seed] for seed in seeds], [others[seed] for seed in seeds]
    return intervals.paired_over_seeds(*pairs) if seeds else None


def _token_figures(task: str, records: Lengths, partner: Lengths) -> dict[str, Any]:
    if not records:
        return {}
    first, longest = next(iter(records)), max(records)
    at_first = records[first]
    by_seed = {seed: token_figures.accuracy({seed: one}) for seed, one in at_first.items()}
    figures: dict[str, Any] = {
        "difference_documents": token_figures.document_difference(at_first, partner.get(first, {})),
        "by_context": tuple(
            _context(length, records[length], partner.get(length, {})) for length in records
        ),
        "accuracy": token_figures.accuracy(at_first),
        "accuracy_by_seed": {seed: share for seed, share in by_seed.items() if share},
        "by_distance": token_figures.accuracies(at_first, "distance"),
        "by_num_pairs": token_figures.accuracies(at_first, "num_pairs"),
    }
    if task == TEXT:
        figures["by_position"], figures["repeats"] = token_figures.buckets(
            records[longest], partner.get(longest, {}), {"position": 0, "repeat_distance": 1}
        )
    return figures


def _context(length: int, records: SeedRecords, partner: SeedRecords) -> ContextSummary:
    """The loss at one context length, from the records' own means."""
    own, others = (
        {seed: float(np.mean(one.nll, dtype=np.float64)) for seed, one in each.items()}
        for each in (records, partner)
    )
    return ContextSummary(
        context_length=length,
        loss=intervals.mean_over_seeds(list(own.values())),
        difference=_difference(own, others),
        accuracy=token_figures.accuracy(records),
    )


def _speedup(runs: Runs, baseline: Runs) -> float | None:
    """Training FLOPs that the baseline needs for the cell's loss, over the cell's own."""
    own, loss = runs[0].train_flops, mean_loss(runs)
    if not own or loss is None:
        return None
    needed = intervals.first_crossing(*mean_curve(baseline), loss)
    return None if needed is None else needed / own


# --- Runs grouped into cells ------------------------------------------------------------------


def losses(runs: Runs) -> dict[int, float]:
    """{seed: final loss} of finished runs."""
    return {run.seed: run.loss for run in runs if run.loss is not None}


def mean_loss(runs: Runs) -> float | None:
    """Mean final loss over seeds; None without a run."""
    return intervals.plain_mean(list(losses(runs).values())) if runs else None


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
    means = [tuple(map(intervals.plain_mean, zip(*at, strict=True))) for at in shared]
    return [flops for flops, _ in means], [loss for _, loss in means]

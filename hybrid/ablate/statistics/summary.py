"""Each cell's loss and its difference to the baseline, with the intervals of both.

The cells of one arm are compared with one another. The rules:

    learning rate  a cell is represented by the rate whose runs have the lowest mean final loss;
                   rates with fewer finished seeds are chosen only where none has more
    partner        the cell that a cell is paired with (`pairing.py`)
    pairing        over the seeds that both have; by token where both scored the same tokens
    lengths        loss, differences and accuracies are those of the first evaluated context
                   length (as `eval/loss` is), by position and repeats those of the longest

Cells whose runs are not all finished are summarised over those that are; a cell with none is left
out, and so is an arm with no cell. A run that ended with a loss that isn't finite counts as not
finished. Scores are read cell by cell: one cell's seeds and its partner's are in memory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hybrid.ablate.run.pairing import partner_indices
from hybrid.ablate.run.run_result import RunResult
from hybrid.ablate.statistics import intervals, token_scores
from hybrid.ablate.statistics.cell_summary import (
    TEXT,
    ArmSummary,
    CellSummary,
    ContextSummary,
    RateSummary,
)
from hybrid.ablate.statistics.groups import CellRuns, RateRuns, group, mean_curve
from hybrid.ablate.statistics.intervals import SeedDifference
from hybrid.ablate.statistics.token_scores import SeedScores
from hybrid.evaluation.scores import Scores

ScoresOf = Callable[[RunResult], Mapping[int, Scores]]
Lengths = Mapping[int, SeedScores]  # {context length: {seed: Scores}}, in the order evaluated
_COSTS = (
    *("num_params", "flops_per_token", "train_flops", "kv_cache_bytes", "cache_context"),
    *("reach", "letters", "changed"),
)


def summarize(
    runs: Sequence[RunResult], scores_of: ScoresOf, baseline: Mapping[str, Any] | None = None
) -> tuple[ArmSummary, ...]:
    """The arms of a sweep that have a finished run, with their cells.

    Args:
      runs: all of the sweep, finished or not, in the sweep's order.
      scores_of: reads a finished run's scores, {context length: Scores} in the order of
        `eval.context_length`; {} where it has none, which leaves the token figures empty.
      baseline: the overrides that others are paired with; by default each arm's first cell's.
    """
    by_arm: dict[str, list[RunResult]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    arms = [_arm(name, group(of_arm), scores_of, baseline) for name, of_arm in by_arm.items()]
    return tuple(arm for arm in arms if arm is not None)


# --- An arm ------------------------------------------------------------------------------------


def _arm(
    name: str, cells: Sequence[CellRuns], scores_of: ScoresOf, baseline: Mapping[str, Any] | None
) -> ArmSummary | None:
    partners = partner_indices([cell.overrides for cell in cells], baseline)

    # Two cells are kept: the one being summarised and its partner, often the same for all.
    @functools.lru_cache(maxsize=2)
    def scores_at(index: int) -> Lengths:
        return _read(cells[index].best.runs, scores_of)

    summaries, lengths = [], []
    for index, partner in enumerate(partners):
        if cells[index].best.runs:
            partner_scores = {} if partner is None else scores_at(partner)
            scores = scores_at(index)
            lengths += list(scores)
            other = None if partner is None else cells[partner]
            summaries.append(_cell(cells[index], other, scores, partner_scores))
    if not summaries:
        return None
    names = {None if partner is None else cells[partner].name for partner in partners}
    first = next(run for cell in cells for run in cell.best.runs)
    return ArmSummary(
        arm=name,
        task=first.task,
        chance=first.chance,
        baseline=names.pop() if len(names) == 1 else None,
        context_lengths=tuple(dict.fromkeys(lengths)),
        cells=tuple(_with_front(summaries)),
    )


def _read(runs: Sequence[RunResult], scores_of: ScoresOf) -> Lengths:
    """Scores of a cell's runs, lengths outermost; seeds without scores are left out."""
    lengths: dict[int, dict[int, Scores]] = {}
    for run in runs:
        for length, scores in scores_of(run).items():
            lengths.setdefault(length, {})[run.seed] = scores
    return lengths


def _with_front(cells: Sequence[CellSummary]) -> list[CellSummary]:
    """The cells with `on_front` set."""
    sizes = [math.inf if cell.kv_cache_bytes is None else cell.kv_cache_bytes for cell in cells]

    def is_on_front(size: float, loss: float) -> bool:
        others = zip(sizes, cells, strict=True)
        return size < math.inf and not any(s < size and c.loss.mean < loss for s, c in others)

    return [
        dataclasses.replace(cell, on_front=is_on_front(size, cell.loss.mean))
        for size, cell in zip(sizes, cells, strict=True)
    ]


# --- A cell ------------------------------------------------------------------------------------


def _cell(
    cell: CellRuns, partner: CellRuns | None, scores: Lengths, partner_scores: Lengths
) -> CellSummary:
    """A cell's summary but for `on_front`; `partner` may be the cell itself."""
    other = None if partner is cell else partner
    best, runs = cell.best, cell.best.runs
    speeds = [run.tokens_per_second for run in runs if run.tokens_per_second is not None]
    return CellSummary(
        name=cell.name,
        overrides=cell.overrides,
        is_baseline=partner is cell,
        partner=None if partner is None else partner.name,
        num_seeds=len(runs),
        learning_rate=best.learning_rate,
        learning_rates=tuple(
            RateSummary(rate.learning_rate, rate.mean_loss, len(rate.runs)) for rate in cell.rates
        ),
        loss=intervals.mean_over_seeds(list(best.losses.values())),
        difference=None if other is None else _difference(best.losses, other.best.losses),
        tokens_per_second=float(np.median(speeds)) if speeds else None,
        effective_speedup=None if partner is None else _speedup(best, partner.best),
        **{name: getattr(runs[0], name) for name in _COSTS},
        **_token_figures(runs[0].task, scores, partner_scores if other else {}),
    )


def _difference(losses: Mapping[int, float], others: Mapping[int, float]) -> SeedDifference | None:
    seeds = sorted(set(losses) & set(others))
    if not seeds:
        return None
    return intervals.paired_over_seeds(
        [losses[seed] for seed in seeds], [others[seed] for seed in seeds]
    )


def _token_figures(task: str, scores: Lengths, partner: Lengths) -> dict[str, Any]:
    """The fields of a CellSummary that come from raw scores."""
    if not scores:
        return {}
    first, longest = next(iter(scores)), max(scores)
    at_first, at_longest = scores[first], (scores[longest], partner.get(longest, {}))
    is_text = task == TEXT
    return {
        "difference_documents": token_scores.document_difference(at_first, partner.get(first, {})),
        "by_context": tuple(
            _context(length, scores[length], partner.get(length, {})) for length in scores
        ),
        "by_position": token_scores.by_position(*at_longest) if is_text else (),
        "repeats": token_scores.repeats(*at_longest) if is_text else (),
        "accuracy": token_scores.accuracy(at_first),
        "accuracy_by_seed": token_scores.accuracy_by_seed(at_first),
        "by_distance": token_scores.accuracy_by("distance", at_first),
        "by_num_pairs": token_scores.accuracy_by("num_pairs", at_first),
    }


def _context(length: int, scores: SeedScores, partner: SeedScores) -> ContextSummary:
    """The loss at one context length, from the scores' own means."""
    losses, others = (
        {seed: float(np.mean(one.nll, dtype=np.float64)) for seed, one in each.items()}
        for each in (scores, partner)
    )
    return ContextSummary(
        context_length=length,
        loss=intervals.mean_over_seeds(list(losses.values())),
        difference=_difference(losses, others),
        accuracy=token_scores.accuracy(scores),
    )


def _speedup(cell: RateRuns, baseline: RateRuns) -> float | None:
    """Training FLOPs that the baseline needs for the cell's loss, over the cell's own."""
    own, loss = cell.runs[0].train_flops, cell.mean_loss
    if not own or loss is None:
        return None
    needed = intervals.first_crossing(*mean_curve(baseline.runs), loss)
    return None if needed is None else needed / own

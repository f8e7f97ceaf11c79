"""What a sweep found: each cell's loss, its difference to the baseline, and how sure both are.

Read `groups.py` first: runs that differ only in seed and learning rate form a cell, and the cells
of one arm are compared with one another. The rules:

    learning rate  a cell stands with the rate whose runs have the lowest mean final loss; rates
                   with fewer finished seeds are chosen only where none has more
    partner        whom a cell is paired with: the arm's cell that has exactly the baseline's
                   overrides, else the cell with this cell's overrides updated by the baseline's
    pairing        over the seeds that both have; by token where both scored the same tokens
    lengths        loss, differences and accuracies are those of the first evaluated context
                   length (as `eval/loss` is), by position and repeats those of the longest

Cells whose runs are not all finished are summarised over those that are; a cell with none is left
out, and so is an arm with no cell. A run that ended with a loss that isn't finite counts as not
finished. Scores are read cell by cell: one cell's seeds and its partner's are in memory.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hybrid.ablate import groups, statistics, token_scores
from hybrid.ablate.groups import Cell, Rate
from hybrid.ablate.pairing import find_partner
from hybrid.ablate.results import Run
from hybrid.ablate.statistics import Estimate
from hybrid.ablate.token_scores import SeedScores
from hybrid.evaluation.token_records import TokenRecords as Scores

ScoresOf = Callable[[Run], Mapping[int, Scores]]
Lengths = Mapping[int, SeedScores]  # {context length: {seed: Scores}}, in the order evaluated
TEXT = "text"  # the task of runs that have no right and wrong


def summarize(
    runs: Sequence[Run], scores_of: ScoresOf, baseline: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The `summary` of results.json.

    Args:
      runs: all of the sweep, finished or not, in the sweep's order.
      scores_of: reads a finished run's scores, {context length: Scores} in the order of
        `eval.context_length`; {} where it has none, whose token figures are then missing.
      baseline: the overrides that others are paired with; by default each arm's first cell's.
    Returns: {"arms": [...]}, see the module's docstring.
    """
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    arms = [
        _arm(name, groups.group(of_arm), scores_of, baseline) for name, of_arm in by_arm.items()
    ]
    return {"arms": [arm for arm in arms if arm["cells"]]}


# --- An arm ------------------------------------------------------------------------------------


def _arm(
    name: str, cells: Sequence[Cell], scores_of: ScoresOf, baseline: Mapping[str, Any] | None
) -> dict[str, Any]:
    partners = [find_partner(cells, cell, baseline) for cell in cells]
    indices = {id(cell): index for index, cell in enumerate(cells)}

    # Two cells are kept: the one being summarised and its partner, often everyone's.
    @functools.lru_cache(maxsize=2)
    def scores_at(index: int) -> Lengths:
        return _read(cells[index].best.runs, scores_of)

    entries, lengths = [], []
    for index, (cell, partner) in enumerate(zip(cells, partners, strict=True)):
        if cell.best.runs:
            there = None if partner is None else scores_at(indices[id(partner)])
            here = scores_at(index)
            lengths += list(here)
            entries.append(_cell(cell, partner, here, there or {}))
    _mark_front(entries)
    names = {None if partner is None else partner.name for partner in partners}
    return {
        "arm": name,
        "task": next((run.task for cell in cells for run in cell.best.runs), None),
        "chance": next((run.chance for cell in cells for run in cell.best.runs), None),
        "baseline": names.pop() if len(names) == 1 else None,
        "context_lengths": list(dict.fromkeys(lengths)),
        "cells": entries,
    }


def _read(runs: Sequence[Run], scores_of: ScoresOf) -> Lengths:
    """Scores of a cell's runs, lengths outermost; seeds without scores are left out."""
    lengths: dict[int, dict[int, Scores]] = {}
    for run in runs:
        for length, scores in (scores_of(run) or {}).items():
            lengths.setdefault(length, {})[run.seed] = scores
    return lengths


def _mark_front(entries: Sequence[dict[str, Any]]) -> None:
    """Sets `on_front`: no other cell has both fewer cache bytes and a lower loss."""
    known = [entry for entry in entries if entry["kv_cache_bytes"] is not None]
    for entry in entries:
        entry["on_front"] = entry["kv_cache_bytes"] is not None and not any(
            other["kv_cache_bytes"] < entry["kv_cache_bytes"]
            and other["loss"]["mean"] < entry["loss"]["mean"]
            for other in known
        )


# --- A cell ------------------------------------------------------------------------------------


def _cell(cell: Cell, partner: Cell | None, here: Lengths, there: Lengths) -> dict[str, Any]:
    """A cell's entry but for `on_front`; `partner` may be the cell itself."""
    is_baseline = partner is cell
    other = None if is_baseline else partner
    losses = cell.best.losses
    return {
        "name": cell.name,
        "overrides": dict(cell.overrides),
        "is_baseline": is_baseline,
        "partner": None if partner is None else partner.name,
        "num_seeds": len(losses),
        "learning_rate": cell.best.learning_rate,
        "learning_rates": [_rate(rate) for rate in cell.rates],
        "loss": _with_std(statistics.mean_over_seeds(list(losses.values()))),
        "difference": None if other is None else _seed_difference(losses, other.best.losses),
        **_token_figures(cell.best.runs[0].task, here, there if other else {}),
        **_costs(cell.best.runs),
        "effective_speedup": None if partner is None else _speedup(cell.best, partner.best),
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {
        "learning_rate": rate.learning_rate,
        "loss": rate.mean_loss,
        "num_seeds": len(rate.runs),
    }


def _with_std(estimate: Estimate) -> dict[str, Any]:
    return token_scores.to_dict(estimate) | {"std": estimate.std}


def _seed_difference(
    losses: Mapping[int, float], others: Mapping[int, float]
) -> dict[str, Any] | None:
    seeds = token_scores.common(losses, others)
    if not seeds:
        return None
    estimate = statistics.paired_over_seeds(
        [losses[seed] for seed in seeds], [others[seed] for seed in seeds]
    )
    return token_scores.to_dict(estimate) | {"num": estimate.num}


def _token_figures(task: str, here: Lengths, there: Lengths) -> dict[str, Any]:
    """What the raw scores add; empty lists and nulls where there are none."""
    if not here:
        return {**_NO_TOKEN_FIGURES}
    first, longest = next(iter(here)), max(here)
    scores = here[first]
    documents = token_scores.document_difference(scores, there.get(first, {}))
    at_longest = here[longest], there.get(longest, {})
    return {
        "difference_documents": None
        if documents is None
        else token_scores.to_dict(documents) | {"num_documents": documents.num},
        "by_context": [_context(length, here[length], there.get(length, {})) for length in here],
        "by_position": token_scores.by_position(*at_longest) if task == TEXT else [],
        "repeats": token_scores.repeats(*at_longest) if task == TEXT else [],
        "accuracy": token_scores.accuracy(scores),
        "accuracy_by_seed": token_scores.accuracy_by_seed(scores),
        "by_distance": token_scores.by_distance(scores),
        "by_num_pairs": token_scores.by_num_pairs(scores),
    }


_NO_TOKEN_FIGURES: dict[str, Any] = {
    **dict.fromkeys(("difference_documents", "accuracy")),
    "by_context": [],
    "by_position": [],
    "repeats": [],
    "accuracy_by_seed": [],
    "by_distance": [],
    "by_num_pairs": [],
}


def _context(length: int, scores: SeedScores, partner: SeedScores) -> dict[str, Any]:
    """The loss at one context length, from the scores' own means."""
    losses, others = _mean_losses(scores), _mean_losses(partner)
    return {
        "context_length": length,
        "loss": _with_std(statistics.mean_over_seeds(list(losses.values()))),
        "difference": _seed_difference(losses, others),
        "accuracy": token_scores.accuracy(scores),
    }


def _mean_losses(scores: SeedScores) -> dict[int, float]:
    return {seed: float(np.mean(one.nll, dtype=np.float64)) for seed, one in scores.items()}


def _costs(runs: Sequence[Run]) -> dict[str, Any]:
    """What a cell costs: the same for all its seeds, but for the speed, of which the median."""
    run = runs[0]
    speeds = [run.tokens_per_second for run in runs if run.tokens_per_second is not None]
    return {
        "num_params": run.num_params,
        "flops_per_token": run.flops_per_token,
        "train_flops": run.train_flops,
        "kv_cache_bytes": run.kv_cache_bytes,
        "cache_context": run.cache_context,
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
        "reach": run.reach,
        "letters": run.letters,
        "changed": dict(run.changed),
    }


def _speedup(cell: Rate, baseline: Rate) -> float | None:
    """Training FLOPs that the baseline needs for the cell's loss, over the cell's own."""
    own, loss = cell.runs[0].train_flops, cell.mean_loss
    if not own or loss is None:
        return None
    needed = statistics.first_crossing(*groups.mean_curve(baseline.runs), loss)
    return None if needed is None else needed / own

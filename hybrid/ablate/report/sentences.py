"""The answer of a sweep as statements "WHAT: CELL (figures), CELL (figures).", from intervals.

A cell is called worse or better only where the 95 % interval of its paired difference excludes
zero, above 90 % only where its Wilson interval is, at chance only where the interval contains it.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from hybrid.ablate.report import view
from hybrid.ablate.report.notation import binary, decimal, fixed, percent, signed, times
from hybrid.ablate.report.results import SweepResults
from hybrid.ablate.report.view import Arm
from hybrid.ablate.statistics.cell_summary import CellSummary
from hybrid.ablate.statistics.intervals import Estimate, SeedDifference, Share, wilson

SOLVED = 0.9  # the accuracy that counts as solved
# By the sign of a difference.
_VERDICTS = {
    1: "Worse than {}",
    -1: "Better than {}",
    0: "Not told apart from {}",
    None: "No interval over seeds, difference to {}",
}


def by_arm(results: SweepResults) -> dict[str, list[str]]:
    """{arm's name: its statements}."""
    return {arm.name: of_arm(arm) for arm in view.arms(results)}


def of_arm(arm: Arm) -> list[str]:
    """The statements about an arm."""
    if all(cell.accuracy for cell in arm.cells):
        return [*_accuracies(arm), *_beyond_reach(arm)]
    if any(cell.difference for cell in arm.cells):
        return [*_least_cache(arm), *_differences(arm), *_over_documents(arm)]
    return _losses(arm)


def _statement(what: str, arm: Arm, cells: Sequence[tuple[CellSummary, str]]) -> str:
    return f"{what}: {', '.join(f'{arm.label(cell)} ({text})' for cell, text in cells)}."


def _figures(estimate: Estimate, number: Callable[[float], str] = signed) -> str:
    if estimate.sign is None:
        return number(estimate.mean)
    low, high = estimate.ends
    return f"{number(estimate.mean)}, {number(low)} to {number(high)}"


def _baseline(arm: Arm) -> str:
    return f"the baseline {arm.label(arm.baseline)}" if arm.baseline else "its own baseline"


def _sign(difference: Estimate | None) -> int | None:
    return difference.sign if difference else None


# --- Losses ----------------------------------------------------------------------------------


def _least_cache(arm: Arm) -> Iterator[str]:
    """How far the cache can shrink before a cell is worse: the last one that isn't."""
    base = arm.baseline
    size = base.kv_cache_bytes or 0 if base else 0
    cheaper = [cell for cell in arm.others if 0 < (cell.kv_cache_bytes or 0) < size]
    cheaper.sort(key=lambda cell: (-(cell.kv_cache_bytes or 0), cell.loss.mean))
    holding = list(itertools.takewhile(lambda cell: _sign(cell.difference) in (0, -1), cheaper))
    if base and holding:
        cell = holding[-1]
        cache = cell.kv_cache_bytes or size
        text = (
            f"{binary(cache)} in place of {binary(size)} at {cell.cache_context} tokens, "
            f"{times(size / cache)} less; FLOPs a token {decimal(cell.flops_per_token)} in place of "
            f"{decimal(base.flops_per_token)}; loss {fixed(cell.loss.mean)} in place of "
            f"{fixed(base.loss.mean)}"
        )
        yield _statement(
            f"Least cache without being worse than {_baseline(arm)}", arm, [(cell, text)]
        )
    elif cheaper:
        yield f"No cell with less cache than {_baseline(arm)} holds its loss."


def _differences(arm: Arm) -> Iterator[str]:
    """The cells by verdict, at the first and the longest context where there are several."""
    lengths = [
        entry.context_length for cell in arm.others for entry in cell.by_context if entry.difference
    ]
    if len(set(lengths)) < 2:
        yield from _verdicts(arm, "", [(cell, cell.difference) for cell in arm.others])
        return
    for length in dict.fromkeys([lengths[0], max(lengths)]):
        differences = [
            (cell, entry.difference)
            for cell in arm.others
            for entry in cell.by_context
            if entry.context_length == length
        ]
        yield from _verdicts(arm, f"At {length} tokens: ", differences)


def _verdicts(
    arm: Arm, place: str, differences: Sequence[tuple[CellSummary, SeedDifference | None]]
) -> Iterator[str]:
    known = [(cell, each) for cell, each in differences if each]
    for sign, verdict in _VERDICTS.items():
        cells = [(cell, each) for cell, each in known if each.sign == sign]
        if not cells:
            continue
        seeds = " or ".join(map(str, sorted({each.num for _, each in cells})))
        what = f"{place}{verdict.format(_baseline(arm))} (seeds: {seeds})"
        yield _statement(what, arm, [(cell, _figures(each)) for cell, each in cells])
        if sign == 0:
            size = max(high - low for low, high in (each.ends for _, each in cells)) / 2
            yield f"With {seeds} seeds, differences below about {fixed(size)} nat would not show."


def _over_documents(arm: Arm) -> Iterator[str]:
    """Where seeds give no interval, the differences that hold for other text; else far repeats."""
    if all(_sign(cell.difference) is None for cell in arm.others):
        what = "Not zero for other text either, with these very parameters"
        pairs = [(cell, cell.difference_documents) for cell in arm.others]
        cells = [(cell, _figures(each)) for cell, each in pairs if each and each.sign]
    else:
        what = "Worse on the farthest repeats of a bigram, by the interval over documents"
        cells = []
        for cell in arm.others:
            known = [
                (each, each.difference)
                for each in cell.repeats
                if _sign(each.difference) is not None
            ]
            for bucket, difference in known[-1:]:
                if difference and difference.sign == 1:
                    place = f"{bucket.start} to {bucket.end - 1} tokens back"
                    cells.append((cell, f"{place}: {_figures(difference)}"))
    if cells:
        yield _statement(what, arm, cells)


def _losses(arm: Arm) -> list[str]:
    """Losses from the lowest, where no cell is paired with another."""
    best, *others = sorted(arm.cells, key=lambda cell: cell.loss.mean)
    cells = [(cell, _figures(cell.loss, fixed)) for cell in (best, *others)]
    told = [_statement("Mean loss, not paired, from the lowest", arm, cells)]
    near = [cell for cell in others if cell.loss.ends[0] <= best.loss.ends[1]]
    if near and best.loss.sign is not None:
        names = ", ".join(map(arm.label, near))
        told.append(f"Intervals that overlap that of {arm.label(best)}: {names}.")
    return told


# --- Tasks -----------------------------------------------------------------------------------


def _accuracies(arm: Arm) -> Iterator[str]:
    """Which cells solve the task over all questions, whose seeds disagree, and the most pairs."""
    shares = [(cell, cell.accuracy) for cell in arm.cells if cell.accuracy]
    for what, is_solved in (("Accuracy above 90 %", True), ("Accuracy not above 90 %", False)):
        cells = [
            (c, _figures(each, percent))
            for c, each in shares
            if (each.ends[0] > SOLVED) == is_solved
        ]
        if cells:
            yield _statement(what, arm, cells)
    split = []
    for cell in arm.cells:
        ends = [share.ends for share in cell.accuracy_by_seed.values()]
        if ends and max(low for low, _ in ends) > min(high for _, high in ends):
            means = [percent(share.mean) for share in cell.accuracy_by_seed.values()]
            split.append((cell, ", ".join(means)))
    if split:
        yield _statement("Seeds disagree", arm, split)
    most = max((num for cell in arm.cells for num in cell.by_num_pairs), default=0)
    if any(len(cell.by_num_pairs) > 1 for cell in arm.cells):
        pairs = [(cell, cell.by_num_pairs.get(most)) for cell in arm.cells]
        cells = [(cell, _figures(share, percent)) for cell, share in pairs if share]
        yield _statement(f"At the most pairs, {most}", arm, cells)


def _beyond_reach(arm: Arm) -> Iterator[str]:
    """Accuracy past the reach of all-local stacks, against chance and against one window."""
    cells: dict[str, list[tuple[CellSummary, str]]] = {}
    for cell in arm.cells:
        past = cell.reach and _pooled(cell, cell.reach, math.inf)
        if not cell.reach or not past:
            continue
        near = _pooled(cell, 0, (cell.reach - 1) // len(cell.letters) + 1)
        within = f"; within one window {percent(near.mean)}" if near else ""
        low, high = past.ends
        what = "Beyond the reach"
        if arm.chance:
            at_chance = "at" if low <= arm.chance <= high else "not at"
            what += f", {at_chance} chance ({percent(arm.chance)})"
        text = f"reach {cell.reach}: {_figures(past, percent)}{within}"
        cells.setdefault(what, []).append((cell, text))
    for what, of_kind in cells.items():
        yield _statement(what, arm, of_kind)


def _pooled(cell: CellSummary, first: float, end: float) -> Share | None:
    """Accuracy over all questions at distances in [first, end); None without any."""
    shares = [share for at, share in cell.by_distance.items() if first <= at < end]
    num = sum(share.num for share in shares)
    right = round(sum(share.mean * share.num for share in shares))
    return wilson(right, num) if num else None

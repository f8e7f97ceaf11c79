"""The answer of a sweep as statements "WHAT: CELL (figures), CELL (figures).", from intervals.

A cell is called worse or better only where the 95 % interval of its paired difference excludes
zero, above 90 % only where its Wilson interval is, at chance only where the interval contains it.
"""

import itertools
import math
from collections.abc import Callable, Iterator

from hybrid.ablate.report import view
from hybrid.ablate.report.notation import binary, decimal, fixed, percent, score, signed, times
from hybrid.ablate.report.results import SweepResults
from hybrid.ablate.report.view import Arm
from hybrid.ablate.statistics.cell_summary import CellSummary
from hybrid.evaluation.intervals import CountedMean, Estimate, wilson

SOLVED = 0.9  # the accuracy that counts as solved
_VERDICTS = {
    1: "worse than",
    -1: "better than",
    0: "not told apart from",
    None: "no interval against",
}
Facts = Iterator[tuple[str, CellSummary, str]]  # (what, cell, figures)


def by_arm(results: SweepResults) -> dict[str, list[str]]:
    """{arm's name: its statements}, the cells that one is true of together."""
    return {arm.name: _of_arm(arm) for arm in view.arms(results)}


def _of_arm(arm: Arm) -> list[str]:
    statements: dict[str, list[str]] = {}
    is_task = all(cell.accuracy for cell in arm.cells)
    facts = _of_task(arm) if is_task else _of_text(arm)
    for what, cell, text in itertools.chain(facts, _of_benchmarks(arm)):
        statements.setdefault(what, []).append(f"{arm.label(cell)} ({text})")
    return [f"{what[:1].upper()}{what[1:]}: {', '.join(of)}." for what, of in statements.items()]


def _figures(estimate: Estimate, number: Callable[[float], str] = signed) -> str:
    low, high = map(number, estimate.ends)
    return number(estimate.mean) + ("" if estimate.sign is None else f", {low} to {high}")


def _of_text(arm: Arm) -> Facts:
    if not any(cell.difference for cell in arm.cells):
        what = "no paired differences; mean loss from the lowest"
        for cell in sorted(arm.cells, key=lambda cell: cell.loss.mean):
            yield what, cell, _figures(cell.loss, fixed)
        return
    base = f"the baseline {arm.label(arm.baseline)}" if arm.baseline else "its own baseline"
    if arm.baseline:
        yield from _least_cache(arm, arm.baseline, base)
    for cell in arm.others:
        entries = [
            (f"at {each.context_length} tokens, ", each.difference) for each in cell.by_context
        ]
        for place, difference in entries if len(entries) > 1 else [("", cell.difference)]:
            if difference:
                text, (low, high) = _figures(difference), difference.ends
                if difference.sign == 0:
                    text += f"; a difference below {fixed((high - low) / 2)} would not show"
                seeds = f"{difference.num} seed{'s' * (difference.num > 1)}"
                verdict = f"{_VERDICTS[difference.sign]} {base} ({seeds}, 95 % intervals)"
                yield f"{place}{verdict}", cell, text
    for cell in arm.others:
        over_documents = cell.difference_documents
        farthest = [each for each in cell.repeats if each.difference][-1:]
        if _sign(cell.difference) is None and over_documents and over_documents.sign:
            what = "with these very parameters, other text would hardly change the sign"
            yield what, cell, _figures(over_documents)
        for bucket in farthest if _sign(cell.difference) is not None else []:
            if bucket.difference and bucket.difference.sign == 1:
                place = f"{bucket.start} to {bucket.end - 1} tokens back"
                yield f"worse on repeats {place}", cell, _figures(bucket.difference)


def _least_cache(arm: Arm, base: CellSummary, name: str) -> Facts:
    """How far the cache can shrink before a cell is worse: the last one that isn't."""
    whole = base.kv_cache_bytes or 0
    sized = [(cell.kv_cache_bytes or 0, cell) for cell in arm.others]
    cheaper = sorted(
        [(size, cell) for size, cell in sized if 0 < size < whole],
        key=lambda pair: (-pair[0], pair[1].loss.mean),
    )
    holding = list(itertools.takewhile(lambda pair: _sign(pair[1].difference) in (0, -1), cheaper))
    what = f"least cache without being worse than {name}"
    if cheaper and _sign(cheaper[0][1].difference) == 1:
        what, holding = f"worse than {name} with the first step to less cache", cheaper[:1]
    for size, cell in holding[-1:]:
        saved = f"{binary(size)} in place of {binary(whole)} at {cell.cache_context} tokens"
        flops = f"{decimal(cell.flops_per_token)} in place of {decimal(base.flops_per_token)}"
        yield what, cell, f"{saved}, {times(whole / size)} less; {flops} FLOPs a token"


def _sign(difference: Estimate | None) -> int | None:
    return difference.sign if difference else None


def _of_task(arm: Arm) -> Facts:
    shares = [(cell.accuracy, cell) for cell in arm.cells if cell.accuracy]
    for share, cell in sorted(shares, key=lambda pair: -pair[0].mean):
        is_solved = share.ends[0] > SOLVED
        what = f"accuracy{'' if is_solved else ' not'} above {100 * SOLVED:g} %"
        yield what, cell, _figures(share, percent)
    for cell in arm.cells:
        by_seed = cell.accuracy_by_seed.values()
        if by_seed and max(s.ends[0] for s in by_seed) > min(s.ends[1] for s in by_seed):
            yield "seeds disagree", cell, ", ".join(percent(share.mean) for share in by_seed)
    for cell in arm.cells:
        past = _pooled(cell, cell.reach, math.inf) if cell.reach else None
        if cell.reach and past:
            near = _pooled(cell, 0, (cell.reach - 1) // max(1, len(cell.letters)) + 1)
            within = f"; within one window {percent(near.mean)}" if near else ""
            what = "beyond the reach"
            if arm.chance is not None:
                is_at_chance = past.ends[0] <= arm.chance <= past.ends[1]
                what += f", {'' if is_at_chance else 'not '}at chance ({percent(arm.chance)})"
            yield what, cell, f"reach {cell.reach}: {_figures(past, percent)}{within}"
    for cell in arm.cells:
        if len(cell.by_num_pairs) > 1:
            most = max(cell.by_num_pairs)
            yield f"at {most} pairs, the most", cell, _figures(cell.by_num_pairs[most], percent)


def _of_benchmarks(arm: Arm) -> Facts:
    """Mean scores from the highest, and whether each is told from the baseline's."""
    verdicts = {1: "better than", -1: "worse than", 0: "not told apart from"}
    for name in arm.benchmarks:
        for cell, each in sorted(arm.known(name), key=lambda pair: -pair[1].score.mean):
            text = _figures(each.score, score)
            if each.difference and each.difference.sign is not None:
                text += f"; {verdicts[each.difference.sign]} its baseline"
            yield f"{name}, mean score of 100", cell, text


def _pooled(cell: CellSummary, first: float, end: float) -> CountedMean | None:
    """Accuracy over all questions at distances in [first, end); None without any."""
    shares = [share for at, share in cell.by_distance.items() if first <= at < end]
    num = sum(share.num for share in shares)
    return wilson(round(sum(share.mean * share.num for share in shares)), num) if num else None

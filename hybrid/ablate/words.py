"""The answer of a sweep in words: one to three plain sentences an arm, computed from intervals.

A cell is called worse or better only where the 95 % interval of its paired difference leaves out
zero, above 90 % only where its Wilson interval does, at chance only where the interval holds it.
What three seeds cannot tell is said as well. Read `view.py` first; `report.py` shows the words.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybrid.ablate import statistics, view
from hybrid.ablate.notation import (
    binary,
    fixed,
    has_interval,
    listed,
    percent,
    plain,
    signed,
    times,
)
from hybrid.ablate.view import Arm, Cell

HIGH = 0.9  # the accuracy that counts as solved
_SAME, _WORSE, _BETTER = "same", "worse", "better"


def progress(results: Mapping[str, Any]) -> str:
    """How much of the sweep the answer rests on; empty where all runs are finished."""
    statuses = [run["status"] for run in results["cells"]]
    counts = {status: statuses.count(status) for status in ("finished", "failed", "pending")}
    if counts["finished"] == len(statuses):
        return ""
    parts = [f"{counts['finished']} of {len(statuses)} runs are finished"]
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    parts += [f"{counts['pending']} still to run"] if counts["pending"] else []
    return ", ".join(parts) + (
        "; what follows is about those finished." if counts["finished"] else "."
    )


def answer(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """{arm's name: its sentences}, for the arms that hold a finished cell."""
    return {arm.name: of_arm(arm) for arm in view.arms(results)}


def of_arm(arm: Arm) -> list[str]:
    """One to three sentences about an arm."""
    if all(cell["accuracy"] for cell in arm.cells):
        return list(_of_task(arm))
    if len(arm.cells) == 1:
        return [f"One cell is finished so far: {_with_loss(arm, arm.cells[0])}."]
    if not arm.is_paired:
        return list(_without_baseline(arm))
    if not any(has_interval(cell["difference"]) for cell in arm.others):
        return list(_one_seed(arm))
    return list(_against_baseline(arm))


# --- Losses ----------------------------------------------------------------------------------


def verdict(difference: Mapping[str, Any] | None) -> str | None:
    """`worse`, `better` or `same` than the baseline by an interval; None without one."""
    if difference is None or not has_interval(difference):
        return None
    return _WORSE if difference["low"] > 0 else _BETTER if difference["high"] < 0 else _SAME


def _against_baseline(arm: Arm) -> Iterator[str]:
    by_length = _differences_by_length(arm)
    cheapest = _cheapest_that_holds(arm)
    if cheapest:
        yield cheapest
    if len(by_length) > 1:
        for length in dict.fromkeys([next(iter(by_length)), max(by_length)]):
            yield f"At {length} tokens of context, {_verdicts(arm, by_length[length])}"
        return
    yield _capital(_verdicts(arm, {cell["name"]: cell["difference"] for cell in arm.others}))
    far = _far_repeats(arm)
    if far:
        yield far


def _cheapest_that_holds(arm: Arm) -> str | None:
    """How far the cache can shrink before a cell is worse: the last one that isn't."""
    base = arm.baseline
    if base is None:
        return None
    size = base["kv_cache_bytes"] or 0
    cheaper = [c for c in arm.others if c["kv_cache_bytes"] and c["kv_cache_bytes"] < size]
    if not cheaper:
        return None
    cheaper.sort(key=lambda cell: (-cell["kv_cache_bytes"], cell["loss"]["mean"]))
    holding = list(itertools.takewhile(_holds, cheaper))
    if not holding:
        return f"No cell with less cache than {_baseline(arm)} holds its loss."
    best = holding[-1]
    told = "cannot be told apart from" if verdict(best["difference"]) == _SAME else "beats"
    return (
        f"The {_superlative(arm, best, base)} that {told} {_baseline(arm)} is {arm.label(best)}: "
        f"loss {fixed(best['loss']['mean'])} against {fixed(base['loss']['mean'])} nats a token "
        f"(difference {_difference(best['difference'])}), {_savings(best, base)}."
    )


def _holds(cell: Cell) -> bool:
    return verdict(cell["difference"]) in (_SAME, _BETTER)


def _superlative(arm: Arm, cell: Cell, base: Cell) -> str:
    if arm.scale == view.SHARE:
        return f"highest share of local layers ({100 * (view.local_share(cell) or 0):.0f} %)"
    if arm.scale == view.NUMBER:
        end = "smallest" if arm.value(cell) < arm.value(base) else "largest"
        return f"{end} {arm.axis}"
    return "cell with the least cache"


def _savings(cell: Cell, base: Cell) -> str:
    """What a cheaper cell saves: cache, and FLOPs where they differ by half a percent."""
    cache = (
        f"with {times(base['kv_cache_bytes'] / cell['kv_cache_bytes'])} less cache "
        f"({binary(cell['kv_cache_bytes'])} instead of {binary(base['kv_cache_bytes'])} "
        f"at {cell['cache_context']} tokens)"
    )
    if not cell["flops_per_token"] or not base["flops_per_token"]:
        return cache
    share = cell["flops_per_token"] / base["flops_per_token"] - 1
    if abs(share) < 0.005:
        return cache
    return f"{cache} and {100 * abs(share):.0f} % {'fewer' if share < 0 else 'more'} FLOPs a token"


def _verdicts(arm: Arm, differences: Mapping[str, Any]) -> str:
    """Who is worse, who is better, and down to what size nothing can be told."""
    found: dict[str | None, list[Cell]] = {_WORSE: [], _BETTER: [], _SAME: [], None: []}
    for cell in arm.others:
        found[verdict(differences.get(cell["name"]))].append(cell)

    def tell(cell: Cell) -> str:
        return f"{arm.label(cell)} ({_difference(differences[cell['name']], short=True)})"

    parts = [
        f"{_axis(arm)}{listed([tell(cell) for cell in found[kind]], most=4)} "
        f"{_is(found[kind])} {kind} beyond {_its(found[kind])} 95 % interval"
        for kind in (_WORSE, _BETTER)
        if found[kind]
    ]
    parts += _untold(arm, found[_SAME], differences)
    if found[None]:
        names = listed([arm.label(cell) for cell in found[None]])
        parts.append(f"{names} {_has(found[None])} too few seeds for an interval")
    return f"against {_baseline(arm)}, {'; '.join(parts)}."


def _untold(arm: Arm, same: list[Cell], differences: Mapping[str, Any]) -> list[str]:
    """That some cells can't be told apart, and how large a difference would have shown."""
    if not same:
        return []
    intervals = [differences[cell["name"]] for cell in same]
    size = max((each["high"] - each["low"]) / 2 for each in intervals)
    who = listed([arm.label(cell) for cell in same])
    told = "no other cell can" if len(same) == len(arm.others) > 1 else f"{who} cannot"
    seeds = " or ".join(map(str, sorted({each["num"] for each in intervals})))
    return [
        f"{told} be told apart from it, and "
        f"with {seeds} seeds a difference below about {fixed(size)} nat would not show"
    ]


def _far_repeats(arm: Arm) -> str | None:
    """Who loses on the repeats whose earlier sight is farthest back, which means hide."""
    told, place = [], None
    for cell in arm.others:
        paired = [bucket for bucket in cell["repeats"] if has_interval(bucket["difference"])]
        if paired and verdict(paired[-1]["difference"]) == _WORSE:
            place = f"{paired[-1]['start']} to {paired[-1]['end'] - 1}"
            told.append(f"{arm.label(cell)} ({_difference(paired[-1]['difference'], short=True)})")
    if not told:
        return None
    return (
        f"On repeats of a bigram last seen {place} tokens back, {_axis(arm)}{listed(told, most=4)} "
        f"{'loses' if len(told) == 1 else 'lose'} beyond the interval over documents."
    )


def _without_baseline(arm: Arm) -> Iterator[str]:
    best = min(arm.cells, key=lambda cell: cell["loss"]["mean"])
    worst = max(arm.cells, key=lambda cell: cell["loss"]["mean"])
    why = "No baseline is named" if arm.baseline is None else "No cell is paired with the baseline"
    yield (
        f"{why}, so there are no paired differences: the lowest mean loss is "
        f"{_with_loss(arm, best)}, the highest {_with_loss(arm, worst)}."
    )
    if not all(has_interval(cell["loss"]) for cell in arm.cells):
        yield "With one seed a cell there is no interval over seeds."
        return
    overlap = [c for c in arm.cells if c is not best and c["loss"]["low"] <= best["loss"]["high"]]
    if overlap:
        names = listed([arm.label(cell) for cell in overlap])
        yield f"The interval of {arm.label(best)} overlaps with {_that(overlap)} of {names}."
    else:
        yield f"The interval of {arm.label(best)} overlaps with no other."


def _one_seed(arm: Arm) -> Iterator[str]:
    spread = [c for c in arm.others if c["difference"] or c["difference_documents"]]

    def mean(cell: Cell) -> float:
        return (cell["difference"] or cell["difference_documents"])["mean"]

    low, high = min(spread, key=mean), max(spread, key=mean)
    yield (
        "One seed a cell, so no interval over seeds: whether another seed would say the same "
        "cannot be told."
    )
    base = f", {fixed(arm.baseline['loss']['mean'])} nats a token" if arm.baseline else ""
    yield (
        f"Against {_baseline(arm)}{base}, the losses "
        f"differ by {signed(mean(low))} ({arm.label(low)}) to {signed(mean(high))} "
        f"({arm.label(high)})."
    )
    sure = [c for c in spread if verdict(c["difference_documents"]) in (_WORSE, _BETTER)]
    if sure:
        names = listed([arm.label(cell) for cell in sure])
        yield (
            f"For these very parameters, other text of the kind would hardly change the sign "
            f"at {names}: the interval over documents leaves out zero."
        )


def _differences_by_length(arm: Arm) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for cell in arm.others:
        for entry in cell["by_context"]:
            if entry["difference"]:
                found.setdefault(entry["context_length"], {})[cell["name"]] = entry["difference"]
    return found


# --- Tasks -----------------------------------------------------------------------------------


def _of_task(arm: Arm) -> Iterator[str]:
    yield _solved(arm)
    yield from _disagreeing(arm)
    beyond = _beyond_reach(arm)
    if beyond:
        yield beyond
    pairs = _by_pairs(arm)
    if pairs:
        yield pairs


def _solved(arm: Arm) -> str:
    """Who is above 90 % over all questions, and who is not."""

    def tell(cells: Sequence[Cell]) -> str:
        return listed([f"{arm.label(cell)} ({_accuracy(cell['accuracy'])})" for cell in cells])

    solved = [cell for cell in arm.cells if cell["accuracy"]["low"] > HIGH]
    rest = [cell for cell in arm.cells if cell not in solved]
    over = " over all distances" if any(cell["by_distance"] for cell in arm.cells) else ""
    if not solved:
        best = max(arm.cells, key=lambda cell: cell["accuracy"]["mean"])
        return f"No cell's interval lies above 90 %{over}; the best is {tell([best])}."
    above = f"Above 90 %{over}: {tell(solved)}"
    return f"{above}; not above it: {tell(rest)}." if rest else f"{above}, which is all of them."


def _disagreeing(arm: Arm) -> Iterator[str]:
    """Cells of which one seed learned the task and another did not: intervals that do not meet."""
    for cell in arm.cells:
        seeds = cell["accuracy_by_seed"]
        if seeds and max(s["low"] for s in seeds) > min(s["high"] for s in seeds):
            shares = listed([percent(each["mean"]) for each in seeds])
            yield f"Seeds of {arm.label(cell)} disagree: {shares}."


def _beyond_reach(arm: Arm) -> str | None:
    """Accuracies within a window and past the reach, of the all-local stacks."""
    told = []
    for cell in arm.cells:
        past = _pooled(cell, past=cell["reach"]) if cell["reach"] is not None else None
        if past:
            told.append((cell, past))
    if not told:
        return None
    cells, chance = listed([_fall(arm, cell, past) for cell, past in told], most=3), arm.chance
    if not chance:
        return f"Beyond what the stack can reach: {cells}."
    at = f"Beyond what the stack can reach, at chance ({_guess(chance)})"
    at_chance = [cell for cell, past in told if _holds_share(past, chance)]
    if len(at_chance) == len(told):
        return f"{at}: {cells}."
    names = listed([arm.label(cell) for cell in at_chance]) if at_chance else "none"
    return f"{at} by its interval: {names}; {cells}."


def _holds_share(estimate: statistics.Estimate, share: float) -> bool:
    """Whether an interval holds a share."""
    low, high = estimate.low, estimate.high
    return low is not None and high is not None and low <= share <= high


def _guess(chance: float) -> str:
    """`1 in 16` where chance is such a share, else a percentage."""
    ways = round(1 / chance)
    return f"1 in {ways}" if abs(ways * chance - 1) < 1e-6 else percent(chance)


def _fall(arm: Arm, cell: Cell, past: statistics.Estimate) -> str:
    size = view.window(cell)
    within = size and _pooled(cell, within=size)
    near = f" after {percent(within.mean)} within one window" if within else ""
    return f"{arm.label(cell)} (reach {cell['reach']}: {percent(past.mean)}{near})"


def _pooled(cell: Cell, past: int = 0, within: float = math.inf) -> statistics.Estimate | None:
    """Wilson's interval over all questions at distances in [past, within); None without any."""
    chosen = [each for each in cell["by_distance"] if past <= each["distance"] < within]
    num = sum(each["num"] for each in chosen)
    right = round(sum(each["mean"] * each["num"] for each in chosen))
    return statistics.wilson(right, num) if num else None


def _by_pairs(arm: Arm) -> str | None:
    """Accuracy at the most pairs, where a task has several numbers of them."""
    counts = {each["num_pairs"] for cell in arm.cells for each in cell["by_num_pairs"]}
    if len(counts) < 2:
        return None
    most, told = max(counts), []
    for cell in arm.cells:
        found = [each for each in cell["by_num_pairs"] if each["num_pairs"] == most]
        told += [f"{arm.label(cell)} ({_accuracy(each)})" for each in found]
    return f"At the most pairs, {most}: {listed(told)}."


# --- Phrases ---------------------------------------------------------------------------------


def _difference(difference: Mapping[str, Any], short: bool = False) -> str:
    ends = f"{signed(difference['low'])} to {signed(difference['high'])}"
    if short:
        return f"{signed(difference['mean'])}: {ends}"
    num = difference["num"]
    return f"{signed(difference['mean'])}, 95 % interval {ends} over {num} seeds"


def _accuracy(share: Mapping[str, Any]) -> str:
    if not has_interval(share):
        return percent(share["mean"])
    return f"{percent(share['mean'])}, {100 * share['low']:.1f} to {100 * share['high']:.1f}"


def _with_loss(arm: Arm, cell: Cell) -> str:
    loss = cell["loss"]
    ends = f", {fixed(loss['low'])} to {fixed(loss['high'])}" if has_interval(loss) else ""
    return f"{arm.label(cell)} ({fixed(loss['mean'])} nats a token{ends})"


def _baseline(arm: Arm) -> str:
    if arm.baseline is None:
        return "the baseline of each"
    return f"the baseline {plain(arm.label(arm.baseline))}"


def _axis(arm: Arm) -> str:
    return f"{arm.axis} " if arm.scale == view.NUMBER else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is(cells: Sequence[Cell]) -> str:
    return "is" if len(cells) == 1 else "are"


def _has(cells: Sequence[Cell]) -> str:
    return "has" if len(cells) == 1 else "have"


def _its(cells: Sequence[Cell]) -> str:
    return "its" if len(cells) == 1 else "their"


def _that(cells: Sequence[Cell]) -> str:
    return "that" if len(cells) == 1 else "those"

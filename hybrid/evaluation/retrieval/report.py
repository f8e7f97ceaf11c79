"""A retrieval evaluation as tables for people; `RetrievalResult.to_dict` is for programs."""

from collections.abc import Sequence

from hybrid.evaluation.retrieval.result import GroupScore, RetrievalResult
from hybrid.evaluation.retrieval.ruler import EFFECTIVE


def table(result: RetrievalResult, *, step: int | None, config: str) -> str:
    """Tasks by length with means, then a table of depths by lengths for each task that has one."""
    at = "" if step is None else f"step {step}, "
    parts = [f"{'model':<15} {at}{config}"]
    rows = [task for task in result.tasks if task not in result.tables]
    if rows:
        parts.append(_by_length(result, rows))
    parts += [_by_depth(task, result.of_task(task)) for task in result.tables]
    return "\n\n".join(parts)


def _by_length(result: RetrievalResult, tasks: Sequence[str]) -> str:
    scores = {(group.task, group.length): group for group in result.groups}
    lengths = sorted({group.length for group in result.groups if group.task in tasks})
    rows = [["score by length", *map(str, lengths)]]
    for task in tasks:
        cells = [scores.get((task, length)) for length in lengths]
        rows.append([task, *(_interval(cell) if cell else "" for cell in cells)])
        for floor in next(cell for cell in cells if cell).floors:
            floors = (f"{cell.floors[floor]:.1f}" if cell else "" for cell in cells)
            rows.append([f"  {floor} reply", *floors])
    means = {each.length: f"{each.score:.1f}" for each in result.by_length}
    lines = [_aligned(rows)]
    if means:
        lines = [_aligned([*rows, ["mean", *(means.get(length, "") for length in lengths)]])]
        reached = result.effective_length or "none"
        lines.append(f"effective length {reached} (a mean of at least {EFFECTIVE})")
    return "\n".join(lines)


def _by_depth(task: str, groups: Sequence[GroupScore]) -> str:
    scores = {(group.depth, group.length): f"{group.score:.1f}" for group in groups}
    lengths = sorted({group.length for group in groups})
    depths = sorted({group.depth for group in groups if group.depth is not None})
    rows = [[f"{task} by depth", *map(str, lengths)]]
    rows += [[f"{depth:g} %", *(scores[depth, length] for length in lengths)] for depth in depths]
    return _aligned(rows)


def _interval(group: GroupScore) -> str:
    return f"{group.score:.1f} ({group.low:.0f}–{group.high:.0f})"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )

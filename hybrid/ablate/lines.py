"""Figures with a line a cell: by position, by distance, by number of pairs, by context length.

A drawer takes an arm and returns a figure, or None where the arm has nothing for it. Read
`drawing.py` first; `figures.py` lists the drawers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from hybrid.ablate import drawing, view
from hybrid.ablate.view import Arm


def loss_by_position(arm: Arm) -> Figure | None:
    """Difference to the baseline (or loss) by position in the context."""
    return _buckets(arm, "by_position", "position in the context (tokens before it)")


def repeats_by_distance(arm: Arm) -> Figure | None:
    """The same on repeats of a bigram, by distance to the earlier sight."""
    return _buckets(arm, "repeats", "distance to the earlier sight (tokens)")


def _buckets(arm: Arm, column: str, label: str) -> Figure | None:
    paired = any(b["difference"] for cell in arm.others for b in cell[column])
    cells = [c for c in (arm.others if paired else arm.cells) if c.get(column)]
    what = "difference" if paired else "loss"
    lines = {
        cell["name"]: [
            (_middle(bucket), bucket[what]) for bucket in cell[column] if bucket.get(what)
        ]
        for cell in cells
    }
    if not any(len(line) > 1 for line in lines.values()):
        return None
    figure, axes = drawing.canvas()
    if paired:
        axes.axhline(0, color=drawing.INK, linewidth=1, linestyle=":")
    _lines(axes, arm, lines)
    places = [x for line in lines.values() for x, _ in line]
    zero = 0.5 if min(places) == 0.5 else None
    drawing.log2(axes, [min(places), max(places) * 1.5], zero=zero)
    axes.set_xlabel(label)
    what = f"difference to {drawing.against(arm)}" if paired else "loss"
    axes.set_ylabel(f"{what} (nats a token)")
    return figure


def _middle(bucket: Mapping[str, Any]) -> float:
    """Where a bucket of powers of two stands on a log2 axis; [0, 1) at one half."""
    return math.sqrt(bucket["start"] * (bucket["end"] - 1)) if bucket["start"] else 0.5


def loss_by_context(arm: Arm) -> Figure | None:
    """Loss (accuracy for tasks) at each evaluated context length."""
    what = "loss" if arm.task == "text" else "accuracy"
    lines = {
        cell["name"]: sorted(
            [(each["context_length"], each[what]) for each in cell["by_context"] if each[what]],
            key=lambda point: point[0],
        )
        for cell in arm.cells
    }
    lengths = {x for line in lines.values() for x, _ in line}
    if len(lengths) < 2:
        return None
    figure, axes = drawing.canvas()
    _lines(axes, arm, lines)
    drawing.log2(axes, sorted(lengths))
    axes.set_xlabel("context length of the evaluation (tokens)")
    if what == "loss":
        axes.set_ylabel("loss (nats a token)")
    else:
        drawing.accuracy_axis(axes, arm)
    return figure


def accuracy_by_distance(arm: Arm) -> Figure | None:
    """Accuracy by distance, with the reach of each all-local stack."""
    if arm.scale == view.GRID or len(arm.cells) > drawing.LINES:
        return None
    figure = _accuracies(arm, "by_distance", "distance", "distance to the value (tokens)")
    if figure is None:
        return None
    _mark_reaches(figure.axes[0], arm)
    return figure


def _mark_reaches(axes, arm: Arm) -> None:
    """A dotted line at the reach of each all-local stack, named above where there is room."""
    low, high = axes.get_xlim()
    colours, named = drawing.colours(arm), low
    finite = [cell for cell in arm.cells if cell["reach"] is not None]
    for cell in sorted(finite, key=lambda cell: cell["reach"]):
        reach, colour = cell["reach"], colours[cell["name"]]
        if not 0 < low < reach < high:
            continue
        axes.axvline(reach, color=colour, linewidth=1.2, linestyle=(0, (1, 2)))
        if math.log2(reach / named) < 0.14 * math.log2(high / low):
            continue
        axes.annotate(
            f"reach {reach}" if named == low else str(reach),
            (reach, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            color=drawing.legible(colour),
            fontsize=8,
            ha="center",
        )
        named = reach


def accuracy_by_pairs(arm: Arm) -> Figure | None:
    """Accuracy by the number of pairs to remember."""
    return _accuracies(arm, "by_num_pairs", "num_pairs", "key–value pairs in the context")


def _accuracies(arm: Arm, column: str, key: str, label: str) -> Figure | None:
    lines = {
        cell["name"]: sorted([(each[key], each) for each in cell[column]], key=lambda e: e[0])
        for cell in arm.cells
        if cell[column]
    }
    places = sorted({x for line in lines.values() for x, _ in line})
    if len(places) < 2:
        return None
    figure, axes = drawing.canvas()
    drawing.accuracy_axis(axes, arm)
    if places[0] > 0:
        drawing.log2(axes, places)
    _lines(axes, arm, lines)
    axes.set_xlabel(label)
    return figure


def _lines(axes, arm: Arm, lines: Mapping[str, Sequence[tuple[float, Mapping]]]) -> None:
    """A line with its band for each cell, named at its end."""
    ends = []
    for index, cell in enumerate(arm.cells):
        line = lines.get(cell["name"])
        if not line:
            continue
        xs, intervals = [x for x, _ in line], [interval for _, interval in line]
        style = drawing.line_style(arm, index)
        axes.plot(xs, [interval["mean"] for interval in intervals], **style)
        drawing.band(axes, xs, intervals, style["color"])
        mark = " (baseline)" if cell["is_baseline"] else ""
        name = drawing.clipped(arm.label(cell), 22) + mark
        ends.append((intervals[-1]["mean"], name, style["color"]))
    drawing.label_ends(axes, ends)

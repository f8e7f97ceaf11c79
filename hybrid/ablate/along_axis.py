"""Figures with a point a cell: loss and accuracy along the axis, loss by cache, speed.

A drawer takes an arm and returns a figure, or None where the arm has nothing for it. Read
`drawing.py` first; `figures.py` lists the drawers.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from hybrid.ablate import drawing, notation, view
from hybrid.ablate.view import Arm, Cell

_CHARACTERS = 52  # of tick labels that fit along an axis


def loss_by_axis(arm: Arm) -> Figure | None:
    """Loss above, paired difference to the baseline below, along the axis."""
    if arm.scale == view.GRID or len(arm.cells) < 2 or arm.task != "text":
        return None
    paired = [cell for cell in arm.others if cell["difference"]]
    rows = 2 if paired else 1
    height = 5.0 if rows == 2 else drawing.SIZE[1]
    figure, axes = drawing.canvas(rows, height, sharex=True, squeeze=False)
    top = axes[0][0]
    _along(top, arm, [(cell, cell["loss"]) for cell in arm.cells])
    top.set_ylabel("loss (nats a token)")
    if rows == 2:
        bottom = axes[1][0]
        bottom.axhline(0, color=drawing.INK, linewidth=1, linestyle=":")
        _along(bottom, arm, [(cell, cell["difference"]) for cell in paired])
        at = [_places(arm)[cell["name"]] for cell in arm.cells if cell["is_baseline"]]
        bottom.plot(at, [0] * len(at), "o", color=drawing.INK, markerfacecolor="white")
        bottom.set_ylabel(f"difference to {drawing.against(arm)} (nats)")
    axes[-1][0].set_xlabel(_axis_label(arm))
    return figure


def accuracy_by_axis(arm: Arm) -> Figure | None:
    """Accuracy over all questions along the axis."""
    known = [(cell, cell["accuracy"]) for cell in arm.cells if cell["accuracy"]]
    if arm.scale == view.GRID or len(known) < 2:
        return None
    figure, axes = drawing.canvas()
    _along(axes, arm, known)
    drawing.accuracy_axis(axes, arm)
    axes.set_xlabel(_axis_label(arm))
    return figure


def _along(axes, arm: Arm, points: Sequence[tuple[Cell, Mapping[str, Any]]]) -> None:
    places, colours = _places(arm), drawing.colours(arm)
    xs = [places[cell["name"]] for cell, _ in points]
    if arm.scale in (view.NUMBER, view.SHARE):
        means = [interval["mean"] for _, interval in points]
        axes.plot(xs, means, color="#b6bccb", linewidth=1.4, zorder=1)
    for x, (cell, interval) in zip(xs, points, strict=True):
        filled = {"markerfacecolor": "white"} if cell["is_baseline"] else {}
        drawing.error_bar(axes, x, interval, color=colours[cell["name"]], **filled)
    if _is_log(arm):
        drawing.log2(axes, list(places.values()))
    elif arm.scale == view.NUMBER:
        axes.set_xticks(sorted(places.values()))
    else:
        turned = _crowd(arm) > 1
        style = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        labels = [drawing.clipped(arm.label(cell)) for cell in arm.cells]
        axes.set_xticks(range(len(arm.cells)), labels, **style)
        axes.set_xlim(-0.5, len(arm.cells) - 0.5)


def _crowd(arm: Arm) -> float:
    """How much of the room between two ticks their labels take, at worst."""
    widths = [len(drawing.clipped(arm.label(cell))) for cell in arm.cells]
    pairs = [(left + right) / 2 + 1 for left, right in itertools.pairwise(widths)]
    return max(pairs, default=0) * len(widths) / _CHARACTERS


def _places(arm: Arm) -> dict[str, float]:
    """x of each cell: its number, or its rank."""
    if arm.scale == view.NUMBER:
        return {cell["name"]: arm.value(cell) for cell in arm.cells}
    return {cell["name"]: index for index, cell in enumerate(arm.cells)}


def _is_log(arm: Arm) -> bool:
    """Numbers that span a factor of four or more, none of them zero."""
    if arm.scale != view.NUMBER:
        return False
    values = [arm.value(cell) for cell in arm.cells]
    return min(values) >= 1 and max(values) >= 4 * min(values)


def _axis_label(arm: Arm) -> str:
    if arm.scale == view.NUMBER:
        return arm.axis + (" (tokens)" if "window" in arm.axis else "")
    return "from most to least local" if arm.scale == view.SHARE else ""


# --- Cost ------------------------------------------------------------------------------------


def loss_by_cache(arm: Arm) -> Figure | None:
    """Loss against cache bytes; the cells that nobody beats in both are joined."""
    sized = [cell for cell in arm.cells if cell["kv_cache_bytes"]]
    if arm.task != "text" or len({cell["kv_cache_bytes"] for cell in sized}) < 2:
        return None
    figure, axes = drawing.canvas()
    colours = drawing.colours(arm)
    front = sorted([c for c in sized if c["on_front"]], key=lambda c: c["kv_cache_bytes"])
    axes.plot(
        [cell["kv_cache_bytes"] for cell in front],
        [cell["loss"]["mean"] for cell in front],
        color=drawing.INK,
        linewidth=1.2,
        linestyle=(0, (1, 1.5)),
        zorder=1,
    )
    labels = []
    for cell in sized:
        hollow = {} if cell["on_front"] else {"markerfacecolor": "white"}
        x, colour = cell["kv_cache_bytes"], colours[cell["name"]]
        drawing.error_bar(axes, x, cell["loss"], color=colour, **hollow)
        label = drawing.clipped(arm.label(cell))
        labels.append((cell["on_front"], x, cell["loss"], label, colour))
    sizes = [cell["kv_cache_bytes"] for cell in sized]
    drawing.log2(axes, [min(sizes) / 1.5, max(sizes) * 1.5])
    axes.xaxis.set_major_formatter(lambda x, _: notation.binary(x))
    axes.set_xlim(min(sizes) / 1.25, max(sizes) * 1.6)
    contexts = {cell["cache_context"] for cell in sized}
    at = f" at {min(contexts)} tokens" if len(contexts) == 1 else ""
    axes.set_xlabel(f"KV cache{at} (bytes a sequence)")
    axes.set_ylabel("loss (nats a token)")
    axes.margins(y=0.13)
    labels.sort(key=lambda label: not label[0])  # those of the front find a place first
    drawing.label_points(figure, axes, [label[1:] for label in labels])
    return figure


def tokens_per_second(arm: Arm) -> Figure | None:
    """Training speed, a bar a cell."""
    known = [cell for cell in arm.cells if cell["tokens_per_second"]]
    if len(known) < 2:
        return None
    figure, axes = drawing.canvas(height=0.9 + 0.34 * len(known))
    colours = drawing.colours(arm)
    speeds = [cell["tokens_per_second"] for cell in known]
    labels = [drawing.clipped(arm.label(cell)) for cell in known]
    fills = [colours[cell["name"]] for cell in known]
    bars = axes.barh(range(len(known)), speeds, color=fills, height=0.64)
    axes.bar_label(bars, [notation.decimal(speed) for speed in speeds], padding=4, fontsize=9)
    axes.set_yticks(range(len(known)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, max(speeds) * 1.14)
    axes.xaxis.set_major_formatter(lambda x, _: notation.decimal(x))
    axes.grid(False, axis="y")
    axes.set_xlabel("training speed (tokens/s, median)")
    if arm.scale in (view.NUMBER, view.GRID):
        axes.set_ylabel(arm.axis)
    return figure

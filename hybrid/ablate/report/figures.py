"""The figures of a sweep, from its results alone: only those that the data supports.

A drawer takes an arm and returns a figure, or None where the arm has nothing for it. Read
`drawing.py` first (it loads matplotlib, so import this module late).
"""

import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hybrid.ablate.report import drawing, notation, view
from hybrid.ablate.report.results import SweepResults
from hybrid.ablate.report.view import Arm
from hybrid.ablate.statistics.cell_summary import TEXT, CellSummary
from hybrid.ablate.statistics.intervals import Estimate
from hybrid.process.files import write_whole

LINES = 7  # more cells than these, or two axes, become a heat map
Points = Sequence[tuple[float, Estimate]]


class Drawn(NamedTuple):
    """A rendered figure: `name` is that of its files, `note` explains it in a line."""

    name: str
    arm: str
    title: str
    note: str
    svg: str
    png: bytes


def write(results: SweepResults, folder: pathlib.Path) -> list[Drawn]:
    """Draws all figures into `folder`/figures/NAME.svg and .png; earlier ones of ours go."""
    drawn = draw(results)
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    for each in drawn:
        write_whole(target / f"{each.name}.svg", each.svg)
        write_whole(target / f"{each.name}.png", each.png)
    names = {each.name for each in drawn}
    for path in target.iterdir():
        is_ours = path.suffix in (".svg", ".png") and path.stem.endswith(tuple(_DRAWERS))
        if is_ours and path.stem not in names:
            path.unlink()
    return drawn


def draw(results: SweepResults) -> list[Drawn]:
    """All figures of all arms, rendered.  Pure: equal results give equal bytes."""
    machine = results.settings.get("machine")
    with drawing.style():
        drawn = [_draw(arm, name, machine) for arm in view.arms(results) for name in _DRAWERS]
    return [each for each in drawn if each is not None]


def _draw(arm: Arm, name: str, machine: str | None) -> Drawn | None:
    drawer, title, note, intervals = _DRAWERS[name]
    figure = drawer(arm)
    if figure is None:
        return None
    arm_name = re.sub(r"[^A-Za-z0-9]+", "_", arm.name).strip("_") or "arm"
    file_name = f"{arm_name}_{name}" if arm.name else name
    title = title.format(axis=arm.axis, what="Loss" if arm.task == TEXT else "Accuracy")
    drawing.caption(figure, " · ".join(filter(None, [intervals, machine])))
    svg = drawing.to_svg(figure, file_name, title)
    return Drawn(file_name, arm.name, title, note, svg, drawing.to_png(figure))


# --- A point a cell --------------------------------------------------------------------------


def _loss_by_axis(arm: Arm) -> Figure | None:
    """Loss above, paired difference to the baseline below, along the axis."""
    if arm.scale == view.GRID or len(arm.cells) < 2 or arm.task != TEXT:
        return None
    differences = [(cell, cell.difference) for cell in arm.others if cell.difference]
    rows = 2 if differences else 1
    figure, axes = drawing.canvas(rows, 1.3 + 1.9 * rows, sharex=True, squeeze=False)
    _along(axes[0][0], arm, [(cell, cell.loss) for cell in arm.cells])
    axes[0][0].set_ylabel("loss (nats a token)")
    if differences:
        _along(axes[1][0], arm, differences)
        axes[1][0].axhline(0, color=drawing.INK, linewidth=1, linestyle=":")
        axes[1][0].set_ylabel(f"difference to {_baseline(arm)} (nats)")
    axes[-1][0].set_xlabel(_axis_label(arm))
    return figure


def _accuracy_by_axis(arm: Arm) -> Figure | None:
    """Accuracy over all questions along the axis."""
    shares = [(cell, cell.accuracy) for cell in arm.cells if cell.accuracy]
    if arm.scale == view.GRID or len(shares) < 2:
        return None
    figure, axes = drawing.canvas()
    _along(axes, arm, shares)
    drawing.accuracy_axis(axes, arm.chance)
    axes.set_xlabel(_axis_label(arm))
    return figure


def _along(axes: Any, arm: Arm, points: Sequence[tuple[CellSummary, Estimate]]) -> None:
    """Points at the cells' numbers, on a log2 axis where they span a factor of four, or ranks."""
    is_number, styles = arm.scale == view.NUMBER, drawing.cell_styles(arm)
    places = {
        cell.name: cell.overrides[arm.keys[0]] if is_number else rank
        for rank, cell in enumerate(arm.cells)
    }
    if arm.scale in (view.NUMBER, view.SHARE):
        xs, means = [places[cell.name] for cell, _ in points], [each.mean for _, each in points]
        axes.plot(xs, means, color="#b6bccb", linewidth=1.4, zorder=1)
    for cell, estimate in points:
        hollow = {"markerfacecolor": "white"} if cell.is_baseline else {}
        options = {"color": styles[cell.name]["color"], "marker": "o", **hollow}
        drawing.point(axes, places[cell.name], estimate, **options)
    low, high = min(places.values()), max(places.values())
    if is_number and low >= 1 and high >= 4 * low:
        drawing.log2_axis(axes, list(places.values()))
    elif is_number:
        axes.set_xticks(sorted(places.values()))
    else:
        labels = [drawing.clipped(arm.label(cell)) for cell in arm.cells]
        turned = {"rotation": 30, "ha": "right"} if sum(map(len, labels)) > 40 else {}
        axes.set_xticks(range(len(labels)), labels, **turned)
        axes.set_xlim(-0.5, len(labels) - 0.5)


def _axis_label(arm: Arm) -> str:
    if arm.scale == view.NUMBER:
        return arm.axis + (" (tokens)" if "window" in arm.axis else "")
    return "from most to least local" if arm.scale == view.SHARE else ""


def _baseline(arm: Arm) -> str:
    """What differences are to, short enough for the label of an axis."""
    name = arm.label(arm.baseline) if arm.baseline else ""
    return name if 0 < len(name) <= 14 else "the baseline"


def _loss_by_cache(arm: Arm) -> Figure | None:
    """Loss against cache bytes; the cells on the front are joined, the others hollow."""
    sized = [cell for cell in arm.cells if cell.kv_cache_bytes]
    sizes = [cell.kv_cache_bytes or 0 for cell in sized]
    if arm.task != TEXT or len(set(sizes)) < 2:
        return None
    figure, axes = drawing.canvas()
    styles = drawing.cell_styles(arm)
    front = sorted((cell.kv_cache_bytes or 0, cell.loss.mean) for cell in sized if cell.on_front)
    axes.plot(*zip(*front, strict=True), color=drawing.INK, linewidth=1.2, linestyle=":", zorder=1)
    for cell, size in zip(sized, sizes, strict=True):
        hollow = {} if cell.on_front else {"markerfacecolor": "white"}
        options = {**styles[cell.name], **hollow, "linestyle": ""}
        drawing.point(axes, size, cell.loss, label=drawing.clipped(arm.label(cell)), **options)
    drawing.log2_axis(axes, [min(sizes) / 1.5, max(sizes) * 1.5])
    axes.xaxis.set_major_formatter(lambda x, _: notation.binary(x))
    contexts = {cell.cache_context for cell in sized}
    at = f" at {contexts.pop()} tokens" if len(contexts) == 1 else ""
    axes.set_xlabel(f"KV cache{at} (bytes a sequence)")
    axes.set_ylabel("loss (nats a token)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _tokens_per_second(arm: Arm) -> Figure | None:
    """Training speed, a bar a cell."""
    cells = [cell for cell in arm.cells if cell.tokens_per_second]
    if len(cells) < 2:
        return None
    figure, axes = drawing.canvas(height=0.9 + 0.34 * len(cells))
    styles = drawing.cell_styles(arm)
    speeds = [cell.tokens_per_second or 0 for cell in cells]
    labels = [drawing.clipped(arm.label(cell)) for cell in cells]
    bars = axes.barh(labels, speeds, color=[styles[cell.name]["color"] for cell in cells])
    axes.bar_label(bars, [notation.decimal(speed) for speed in speeds], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda x, _: notation.decimal(x))
    axes.grid(False, axis="y")
    axes.set_xlabel("training speed (tokens/s, median)")
    axes.set_ylabel(arm.axis if arm.scale in (view.NUMBER, view.GRID) else "")
    return figure


# --- A line a cell ---------------------------------------------------------------------------


def _lines(arm: Arm, lines: Mapping[str, Points], x_label: str, y_label: str) -> Figure | None:
    """A line with its band for each cell; None where none has two points."""
    if not any(len(points) > 1 for points in lines.values()):
        return None
    figure, axes = drawing.canvas()
    styles = drawing.cell_styles(arm)
    for cell in arm.cells:
        if lines.get(cell.name):
            mark = " (baseline)" if cell.is_baseline else ""
            label = drawing.clipped(arm.label(cell), 22) + mark
            drawing.line(axes, lines[cell.name], label, **styles[cell.name])
    drawing.legend(axes)
    drawing.log2_axis(axes, [x for points in lines.values() for x, _ in points])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if y_label == "accuracy":
        drawing.accuracy_axis(axes, arm.chance)
    return figure


def _loss_by_position(arm: Arm) -> Figure | None:
    return _buckets(arm, "by_position", "position in the context (tokens before it)")


def _repeats_by_distance(arm: Arm) -> Figure | None:
    return _buckets(arm, "repeats", "distance to the earlier sight (tokens)")


def _buckets(arm: Arm, field: str, label: str) -> Figure | None:
    """Difference to the baseline, or loss where no cell has one, in the middle of each bucket."""
    buckets = {cell.name: getattr(cell, field) for cell in arm.cells}
    is_paired = any(bucket.difference for of_cell in buckets.values() for bucket in of_cell)
    what = "difference" if is_paired else "loss"
    lines = {
        name: [
            (math.sqrt(bucket.start * (bucket.end - 1)), getattr(bucket, what))
            for bucket in of_cell
            if getattr(bucket, what)
        ]
        for name, of_cell in buckets.items()
    }
    what = f"difference to {_baseline(arm)}" if is_paired else "loss"
    figure = _lines(arm, lines, label, f"{what} (nats a token)")
    if figure and is_paired:
        figure.axes[0].axhline(0, color=drawing.INK, linewidth=1, linestyle=":")
    return figure


def _loss_by_context(arm: Arm) -> Figure | None:
    """Loss (accuracy for tasks) at each evaluated context length."""
    what = "loss" if arm.task == TEXT else "accuracy"
    lines = {
        cell.name: [
            (entry.context_length, getattr(entry, what))
            for entry in sorted(cell.by_context, key=lambda entry: entry.context_length)
            if getattr(entry, what)
        ]
        for cell in arm.cells
    }
    label = "context length of the evaluation (tokens)"
    return _lines(arm, lines, label, "loss (nats a token)" if what == "loss" else what)


def _accuracy_by_distance(arm: Arm) -> Figure | None:
    """Accuracy by distance, with a dotted line at the reach of each all-local stack."""
    if arm.scale == view.GRID or len(arm.cells) > LINES:
        return None
    lines = {cell.name: sorted(cell.by_distance.items()) for cell in arm.cells}
    figure = _lines(arm, lines, "distance to the value (tokens)", "accuracy")
    if figure is None:
        return None
    axes, styles = figure.axes[0], drawing.cell_styles(arm)
    low, high = axes.get_xlim()
    for cell in arm.cells:
        if cell.reach and low < cell.reach < high:
            axes.axvline(cell.reach, color=styles[cell.name]["color"], linestyle=(0, (1, 2)))
    return figure


def _accuracy_by_pairs(arm: Arm) -> Figure | None:
    lines = {cell.name: sorted(cell.by_num_pairs.items()) for cell in arm.cells}
    return _lines(arm, lines, "key–value pairs in the context", "accuracy")


# --- A field a cell --------------------------------------------------------------------------


def _accuracy_heat_map(arm: Arm) -> Figure | None:
    """Cells × distance where lines would be too many; a mark where a stack's reach ends."""
    cells = [cell for cell in arm.cells if cell.by_distance]
    distances = sorted({distance for cell in cells for distance in cell.by_distance})
    is_for_lines = arm.scale != view.GRID and len(arm.cells) <= LINES
    if is_for_lines or len(cells) < 2 or len(distances) < 2:
        return None
    shares = [[cell.by_distance.get(distance) for distance in distances] for cell in cells]
    values = [[share.mean if share else math.nan for share in row] for row in shares]
    rows = [arm.label(cell) for cell in cells]
    figure, axes = _heat_map(values, rows, list(map(str, distances)), lambda v: f"{100 * v:.0f}", 1)
    for row, cell in enumerate(cells):
        within = sum(distance < (cell.reach or math.inf) for distance in distances)
        if within < len(distances):
            axes.plot([within - 0.5] * 2, [row - 0.5, row + 0.5], color="#d1242f", linewidth=2.5)
    axes.set_xlabel("distance to the value (tokens); accuracy in %, red: end of the reach")
    axes.set_ylabel(arm.axis)
    return figure


def _grid_heat_map(arm: Arm) -> Figure | None:
    """Loss (accuracy for tasks) over two axes."""
    what = "loss" if arm.task == TEXT else "accuracy"
    estimates = {
        tuple(notation.plain(cell.overrides.get(key)) for key in arm.keys): getattr(cell, what)
        for cell in arm.cells
        if getattr(cell, what)
    }
    if arm.scale != view.GRID or len(estimates) < 2:
        return None
    rows, columns = (list(dict.fromkeys(values)) for values in zip(*estimates, strict=True))
    means = {place: estimate.mean for place, estimate in estimates.items()}
    values = [[means.get((row, column), math.nan) for column in columns] for row in rows]
    if what == "loss":
        figure, axes = _heat_map(values, rows, columns, notation.fixed)
    else:
        figure, axes = _heat_map(values, rows, columns, lambda v: f"{100 * v:.0f} %", 1)
    axes.set_xlabel(view.short(arm.keys[1]))
    axes.set_ylabel(view.short(arm.keys[0]))
    return figure


def _heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    number: Callable[[float], str],
    highest: float | None = None,
) -> tuple[Figure, Any]:
    """Coloured fields with their figures, empty where NaN; colours from 0 to `highest` if given."""
    figure, axes = drawing.canvas(height=1.2 + 0.36 * len(values))
    fields = np.ma.masked_invalid(values)
    low, high = (fields.min(), fields.max()) if highest is None else (0, highest)
    edges = [np.arange(len(names) + 1) - 0.5 for names in (columns, rows)]
    look = {"cmap": "YlGnBu", "edgecolors": "white", "linewidth": 1.2}
    axes.pcolormesh(*edges, fields, vmin=low, vmax=high, **look)
    for (row, column), value in np.ndenumerate(fields.filled(math.nan)):
        is_dark = high > low and (value - low) / (high - low) > 0.55
        ink = "white" if is_dark else drawing.INK
        text = "" if math.isnan(value) else number(float(value))
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(range(len(columns)), [drawing.clipped(name) for name in columns])
    axes.set_yticks(range(len(rows)), [drawing.clipped(name) for name in rows])
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


_OVER_DOCUMENTS = "bands: 95 % interval over documents"
_WILSON = "95 % Wilson interval"
# name: (drawer, title, what one sees, what the intervals are); in the page's order.
_DRAWERS: dict[str, tuple[Callable[[Arm], Figure | None], str, str, str]] = {
    "accuracy_by_distance": (
        _accuracy_by_distance,
        "Accuracy by distance",
        "How far back a value can stand and still be found; dotted: the most tokens back that a "
        "stack of local layers can see, m·(w−1)+1.",
        f"bands: {_WILSON}",
    ),
    "accuracy_heat_map": (
        _accuracy_heat_map,
        "Accuracy by distance",
        "A row a cell; left of the red mark the stack can see the value, right of it it cannot.",
        "",
    ),
    "accuracy_by_pairs": (
        _accuracy_by_pairs,
        "Accuracy by number of pairs",
        "How much a cell remembers at once.",
        f"bands: {_WILSON}",
    ),
    "accuracy_by_axis": (
        _accuracy_by_axis,
        "Accuracy by {axis}",
        "Over all questions of the evaluation.",
        f"bars: {_WILSON}",
    ),
    "loss_by_axis": (
        _loss_by_axis,
        "Loss by {axis}",
        "Above, the mean over seeds; below, the difference to the baseline, paired by seed. "
        "A bar that crosses zero cannot be told apart from the baseline.",
        "bars: 95 % t interval over seeds",
    ),
    "heat_map": (
        _grid_heat_map,
        "{what} over {axis}",
        "A field a cell of the grid; losses in nats a token.",
        "",
    ),
    "loss_by_cache": (
        _loss_by_cache,
        "Loss by cache size",
        "Dotted: the trade-off front, cells that no other beats in both loss and bytes; "
        "hollow points are off it.",
        "bars: 95 % t interval over seeds",
    ),
    "loss_by_context": (
        _loss_by_context,
        "{what} by context length",
        "Each cell evaluated at several lengths, those past training included.",
        "bands: 95 % t interval over seeds",
    ),
    "loss_by_position": (
        _loss_by_position,
        "Loss by position",
        "Where in the context a cell loses or gains; local layers lose where context is long.",
        _OVER_DOCUMENTS,
    ),
    "repeats_by_distance": (
        _repeats_by_distance,
        "Repeats by distance",
        "The second token of a bigram seen before: a cell that sees the earlier place can copy.",
        _OVER_DOCUMENTS,
    ),
    "tokens_per_second": (
        _tokens_per_second,
        "Training speed",
        "Median over the run; the same machine for all cells.",
        "",
    ),
}

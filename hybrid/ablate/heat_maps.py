"""Figures with a field a cell: cells × distance where lines would be too many, and two axes.

A drawer takes an arm and returns a figure, or None where the arm has nothing for it. Read
`drawing.py` first; `figures.py` lists the drawers.
"""

import math
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from hybrid.ablate import drawing, notation, view
from hybrid.ablate.view import Arm


def accuracy_heat_map(arm: Arm) -> Figure | None:
    """Cells × distance where lines would be too many; a mark where a stack's reach ends."""
    if arm.scale != view.GRID and len(arm.cells) <= drawing.LINES:
        return None
    cells = [cell for cell in arm.cells if cell["by_distance"]]
    distances = sorted({each["distance"] for cell in cells for each in cell["by_distance"]})
    if len(cells) < 2 or len(distances) < 2:
        return None
    found = [{each["distance"]: each["mean"] for each in cell["by_distance"]} for cell in cells]
    values = [[row.get(distance) for distance in distances] for row in found]
    figure, axes = _heat_map(values, lambda value: f"{100 * value:.0f}", (0.0, 1.0))
    axes.set_xticks(range(len(distances)), distances)
    axes.set_yticks(range(len(cells)), [drawing.clipped(arm.label(cell)) for cell in cells])
    for row, cell in enumerate(cells):
        within = sum(distance < (cell["reach"] or math.inf) for distance in distances)
        if within < len(distances):
            axes.plot([within - 0.5] * 2, [row - 0.5, row + 0.5], color="#d1242f", linewidth=2.5)
    axes.set_xlabel("distance to the value (tokens); accuracy in %, red: end of the reach")
    axes.set_ylabel(arm.axis)
    return figure


def heat_map(arm: Arm) -> Figure | None:
    """Loss (accuracy for tasks) over two axes."""
    if arm.scale != view.GRID:
        return None
    what = "loss" if arm.task == "text" else "accuracy"
    rows, columns = arm.values(0), arm.values(1)
    found = {
        (rows.index(arm.value(cell, 0)), columns.index(arm.value(cell, 1))): cell[what]["mean"]
        for cell in arm.cells
        if cell[what]
    }
    if len(found) < 2:
        return None
    values = [
        [found.get((row, column)) for column in range(len(columns))] for row in range(len(rows))
    ]
    write = notation.fixed if what == "loss" else lambda value: f"{100 * value:.0f} %"
    limits = (min(found.values()), max(found.values())) if what == "loss" else (0.0, 1.0)
    figure, axes = _heat_map(values, write, limits)
    axes.set_xticks(
        range(len(columns)), [drawing.clipped(notation.plain(each)) for each in columns]
    )
    axes.set_yticks(range(len(rows)), [drawing.clipped(notation.plain(each)) for each in rows])
    axes.set_xlabel(view.short(arm.keys[1]))
    axes.set_ylabel(view.short(arm.keys[0]))
    return figure


def _heat_map(values, write: Callable[[float], str], limits: tuple[float, float]):
    """A table of coloured fields, each with its figure; empty where nothing is known."""
    figure, axes = drawing.canvas(height=1.2 + 0.36 * len(values))
    filled = [[math.nan if value is None else value for value in row] for row in values]
    low, high = limits
    rows, columns = ([place - 0.5 for place in range(n + 1)] for n in (len(values), len(values[0])))
    look = {"cmap": "YlGnBu", "edgecolors": "white", "linewidth": 1.2}
    axes.pcolormesh(columns, rows, np.ma.masked_invalid(filled), vmin=low, vmax=high, **look)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value is not None:
                dark = high > low and (value - low) / (high - low) > 0.55
                ink = "white" if dark else drawing.INK
                text = write(value)
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    return figure, axes

"""A table of one needle as a figure: length to the right, depth down, accuracy as colour and text.

The colours go from 0 to 1 in every figure, so that two of them can be compared.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hybrid.evaluation.drawing import canvas, save, style
from hybrid.evaluation.retrieval.result import GroupScore
from hybrid.process.remote import AnyPath

_COLOURS = "cividis"
_DARK = 0.55  # below it a number is written in white


def write(path: AnyPath, task: str, groups: Sequence[GroupScore], caption: str) -> None:
    """Draws the groups of a table into `path`.svg and `path`.png."""
    with style():
        figure, axes = canvas(height(groups))
        draw(figure, axes, groups)
        title = f"{task}: accuracy by length and depth"
        axes.set_title(title, size=11)
        save(figure, path, title, caption)


def height(groups: Sequence[GroupScore]) -> float:
    """Inches of a table's map."""
    return 1.6 + 0.42 * len({group.depth for group in groups})


def draw(figure: Figure, axes: Any, groups: Sequence[GroupScore]) -> None:
    """Draws a table into `axes` with its colour bar, within `style`."""
    lengths, depths, accuracy = grid(groups)
    image = axes.imshow(accuracy, vmin=0, vmax=1, cmap=_COLOURS, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        colour = "white" if value < _DARK else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=9)
    _label(axes, lengths, depths)
    figure.colorbar(image, ax=axes, label="accuracy", ticks=[0, 0.25, 0.5, 0.75, 1])


def grid(groups: Sequence[GroupScore]) -> tuple[list[int], list[float], np.ndarray]:
    """Lengths, depths, and accuracies from 0 to 1 [depths, lengths]; NaN where there is none."""
    lengths = sorted({group.length for group in groups})
    depths = sorted({group.depth for group in groups if group.depth is not None})
    accuracy = np.full((len(depths), len(lengths)), np.nan)
    for group in groups:
        if group.depth is not None:
            place = depths.index(group.depth), lengths.index(group.length)
            accuracy[place] = group.score / 100
    return lengths, depths, accuracy


def _label(axes: Any, lengths: Sequence[int], depths: Sequence[float]) -> None:
    axes.grid(False)
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("depth of the needle")

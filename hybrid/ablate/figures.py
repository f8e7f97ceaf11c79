"""The figures of a sweep, from results.json alone: only those that the data supports.

Each drawer takes an arm and returns a figure, or None where the arm has nothing for it. `draw`
renders all of them once, for the files and for the page. Read `drawing.py` first (matplotlib is
loaded with it, so import this module late).
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from hybrid.ablate import along_axis, drawing, heat_maps, lines, view
from hybrid.ablate.view import Arm
from hybrid.process.files import write_whole

_OVER_SEEDS = "bars and bands: 95 % t interval over seeds"
_OVER_DOCUMENTS = "bands: 95 % interval over documents"
_WILSON = "bands: 95 % Wilson interval"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A rendered figure: `name` is that of its files, `note` explains it in a line."""

    name: str
    arm: str
    title: str
    note: str
    svg: str
    png: bytes


def write(results: Mapping[str, Any], folder: pathlib.Path) -> list[Drawn]:
    """Draws all figures into `folder`/figures/NAME.svg and .png; earlier ones of ours go."""
    drawn = draw(results)
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    for each in drawn:
        write_whole(target / f"{each.name}.svg", each.svg)
        write_whole(target / f"{each.name}.png", each.png)
    names = {each.name for each in drawn}
    for path in target.iterdir():
        ours = path.suffix in (".svg", ".png") and path.stem.endswith(tuple(_DRAWERS))
        if ours and path.stem not in names:
            path.unlink()
    return drawn


def draw(results: Mapping[str, Any]) -> list[Drawn]:
    """All figures of all arms, rendered.  Pure: equal results give equal bytes."""
    drawn = []
    for arm in view.arms(results):
        for name, (title, note, drawer, told) in _DRAWERS.items():
            with drawing.style():
                figure = drawer(arm)
                if figure is not None:
                    full = f"{_file_name(arm.name)}_{name}" if arm.name else name
                    shown = title.format(
                        axis=arm.axis, what="Loss" if arm.task == "text" else "Accuracy"
                    )
                    parts = [told, results.get("machine")]
                    drawing.caption(figure, " · ".join(part for part in parts if part))
                    svg = drawing.to_svg(figure, full, shown)
                    drawn.append(Drawn(full, arm.name, shown, note, svg, drawing.to_png(figure)))
    return drawn


def _file_name(arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", arm).strip("_") or "arm"


Drawer = Callable[[Arm], Figure | None]
# name: (title, what one sees, drawer, what the intervals are); in the page's order.
_DRAWERS: dict[str, tuple[str, str, Drawer, str]] = {
    "accuracy_by_distance": (
        "Accuracy by distance",
        "How far back a value can stand and still be found; dotted: the most tokens back that a "
        "stack of local layers can see, m·(w−1)+1.",
        lines.accuracy_by_distance,
        _WILSON,
    ),
    "accuracy_heat_map": (
        "Accuracy by distance",
        "A row a cell; left of the red mark the stack can see the value, right of it it cannot.",
        heat_maps.accuracy_heat_map,
        "",
    ),
    "accuracy_by_pairs": (
        "Accuracy by number of pairs",
        "How much a cell remembers at once.",
        lines.accuracy_by_pairs,
        _WILSON,
    ),
    "accuracy_by_axis": (
        "Accuracy by {axis}",
        "Over all questions of the evaluation.",
        along_axis.accuracy_by_axis,
        "bars: 95 % Wilson interval",
    ),
    "loss_by_axis": (
        "Loss by {axis}",
        "Above, the mean over seeds; below, the difference to the baseline, paired by seed. "
        "A bar that crosses zero cannot be told apart from the baseline.",
        along_axis.loss_by_axis,
        "bars: 95 % t interval over seeds",
    ),
    "heat_map": (
        "{what} over {axis}",
        "A field a cell of the grid; losses in nats a token.",
        heat_maps.heat_map,
        "",
    ),
    "loss_by_cache": (
        "Loss by cache size",
        "Dotted: the trade-off front, cells that no other beats in both loss and bytes; "
        "hollow points are off it.",
        along_axis.loss_by_cache,
        "bars: 95 % t interval over seeds",
    ),
    "loss_by_context": (
        "{what} by context length",
        "Each cell evaluated at several lengths, those past training included.",
        lines.loss_by_context,
        _OVER_SEEDS,
    ),
    "loss_by_position": (
        "Loss by position",
        "Where in the context a cell loses or gains; local layers lose where context is long.",
        lines.loss_by_position,
        _OVER_DOCUMENTS,
    ),
    "repeats_by_distance": (
        "Repeats by distance",
        "The second token of a bigram seen before: whoever still sees the earlier place can copy.",
        lines.repeats_by_distance,
        _OVER_DOCUMENTS,
    ),
    "tokens_per_second": (
        "Training speed",
        "Median over the run; the same machine for all cells.",
        along_axis.tokens_per_second,
        "",
    ),
}

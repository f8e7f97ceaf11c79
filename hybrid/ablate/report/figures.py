"""The figures of a sweep, from its results alone: only those that the data supports.

All-local cells are blue and dashed, all-global ones orange and solid, in every figure; hybrids
between them are green. Shades go along the axis. Figures of equal results are equal bytes: no
dates, no random ids. Loads matplotlib, so import this file late.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hybrid.ablate.report import heat_maps, notation, view
from hybrid.ablate.report.results import SweepResults
from hybrid.ablate.report.view import Arm
from hybrid.ablate.statistics.cell_summary import TEXT, CellSummary
from hybrid.evaluation.drawing import FAINT, INK, canvas, save, style
from hybrid.evaluation.intervals import Estimate

_SEEDS, _WILSON = "95 % t interval over seeds", "95 % Wilson interval"
_DOCUMENTS = "95 % interval over documents"
# In the page's order: {kind: (label of x, by default the arm's axis; what bars and bands are)}.
KINDS = {
    "accuracy_by_distance": ("distance to the value (tokens)", _WILSON),
    "accuracy_by_pairs": ("key–value pairs in the context", _WILSON),
    "accuracy_by_axis": ("", _WILSON),
    "loss_by_axis": ("", _SEEDS),
    "loss_by_cache": ("KV cache (bytes a sequence)", _SEEDS),
    "loss_by_context": ("context length of the evaluation (tokens)", "95 % interval"),
    "loss_by_position": ("position in the context (tokens before it)", _DOCUMENTS),
    "repeats_by_distance": ("distance to the earlier sight (tokens)", _DOCUMENTS),
    "score_by_length": ("context (tokens)", "95 % interval over answers"),
    "score_by_depth": ("context (tokens)", ""),
    "tokens_per_second": ("", ""),
}
_SCORE = "mean score"
_ACCURACY, _LOSS, _SPEED = "accuracy", "loss (nats a token)", "training speed (tokens/s)"
_MARKERS = "osD^vPX*<>"
Lines = dict[str, list[tuple[float, Estimate]]]  # {cell's name: its points}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A rendered figure; `name` is that of its files, `kind` one of KINDS."""

    name: str
    kind: str
    arm: str
    title: str
    svg: str


def write(results: SweepResults, folder: pathlib.Path) -> list[Drawn]:
    """Draws all figures into `folder`/figures/NAME.svg and .png; earlier ones of ours go.

    Equal results give equal bytes.
    """
    drawn, target = [], folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    for arm in view.arms(results):
        prefix = f"{_file_name(arm.name) or 'arm'}_" * bool(arm.name)
        with style():
            for name, kind, title, figure in _figures(arm):
                notes = filter(None, [KINDS[kind][1], results.settings.get("machine")])
                title = title[0].upper() + title[1:]
                svg = save(figure, target / (prefix + name), title, " · ".join(notes))
                drawn.append(Drawn(prefix + name, kind, arm.name, title, svg))
    names = {each.name for each in drawn}
    for path in target.iterdir():
        is_ours = path.suffix in (".svg", ".png") and path.stem.endswith(tuple(KINDS))
        if is_ours and path.stem not in names:
            path.unlink()
    return drawn


def _figures(arm: Arm) -> Iterator[tuple[str, str, str, Figure]]:
    """(name, kind, title, figure) of each figure of an arm, within `style`."""
    for kind, panels in charts(arm).items():
        title = kind.replace("_", " ").replace("axis", arm.axis)
        yield kind, kind, title, figure_of(arm, kind, panels)
    files = [_file_name(benchmark) for benchmark in arm.benchmarks]
    for benchmark, task, maps in heat_maps.tables(arm):
        place = arm.benchmarks.index(benchmark)
        file = files[place] + f"_{place}" * (files.count(files[place]) > 1)
        name = f"{file}_{_file_name(task)}_score_by_depth"
        title = f"{benchmark}: {task}, accuracy by length and depth"
        yield name, "score_by_depth", title, heat_maps.figure_of(maps)


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def charts(arm: Arm) -> dict[str, dict[str, Lines]]:
    """{kind: {label of y: lines}}, of the kinds with points at two places or more."""
    panels: dict[str, dict[str, Lines]] = {kind: {} for kind in KINDS}
    name = arm.label(arm.baseline) if arm.baseline else ""
    difference = f"difference to {name if 0 < len(name) < 15 else 'the baseline'} (nats)"
    for rank, cell in enumerate(arm.cells):
        x = cell.overrides[arm.keys[0]] if arm.scale == view.NUMBER else rank
        for kind, label, place, value in _points(arm, cell, x):
            if value is not None:
                lines = panels[kind].setdefault(label or difference, {})
                lines.setdefault(cell.name, []).append((place, value))
    return {kind: each for kind, each in panels.items() if len(_places(each)) > 1}


def _points(arm: Arm, cell: CellSummary, x: float) -> Iterator[tuple[str, str, float, Any]]:
    """(kind, label of y or "" for differences, x, estimate) of a cell, in order of x."""
    contexts = sorted(cell.by_context, key=lambda entry: entry.context_length)
    if arm.task == TEXT:
        yield "loss_by_axis", _LOSS, x, cell.loss
        yield "loss_by_axis", "", x, cell.difference
        yield "loss_by_cache", _LOSS, cell.kv_cache_bytes or 0, cell.loss
        for context in contexts:
            yield "loss_by_context", _LOSS, context.context_length, context.loss
    else:
        yield "accuracy_by_axis", _ACCURACY, x, cell.accuracy
        for distance, share in sorted(cell.by_distance.items()):
            yield "accuracy_by_distance", _ACCURACY, distance, share
        for num_pairs, share in sorted(cell.by_num_pairs.items()):
            yield "accuracy_by_pairs", _ACCURACY, num_pairs, share
        for context in contexts:
            yield "loss_by_context", _ACCURACY, context.context_length, context.accuracy
    for benchmark in cell.benchmarks:
        for each in benchmark.by_length:
            yield "score_by_length", f"{benchmark.name}, {_SCORE}", each.length, each.score
    for kind, field in (("loss_by_position", "by_position"), ("repeats_by_distance", "repeats")):
        is_paired = any(each.difference for other in arm.cells for each in getattr(other, field))
        for bucket in getattr(cell, field):
            middle = math.sqrt(bucket.start * (bucket.end - 1))
            label, value = ("", bucket.difference) if is_paired else (_LOSS, bucket.loss)
            yield kind, label, middle, value
    if cell.tokens_per_second:
        yield "tokens_per_second", _SPEED, x, Estimate(cell.tokens_per_second, None, None)


def _places(panels: Mapping[str, Lines]) -> list[float]:
    lines = [line for panel in panels.values() for line in panel.values()]
    return sorted({x for line in lines for x, _ in line})


def figure_of(arm: Arm, kind: str, panels: Mapping[str, Lines]) -> Figure:
    """A figure of `charts`, within `style`: a panel above the other, a line or point a cell."""
    figure, rows = canvas(1.5 + 2.0 * len(panels), len(panels), sharex=True, squeeze=False)
    styles, places, is_by_cell = cell_styles(arm), _places(panels), not KINDS[kind][0]
    is_ordered = is_by_cell and arm.scale in (view.NUMBER, view.SHARE)
    joined = list(arm.cells) if is_ordered else []
    if kind == "loss_by_cache":
        joined = [cell for cell in arm.cells if cell.on_front]
        joined.sort(key=lambda cell: cell.kv_cache_bytes or 0)
    for axes, (label, lines) in zip(rows[:, 0], panels.items(), strict=True):
        points = [lines[cell.name][0] for cell in joined if cell.name in lines]
        axes.plot([x for x, _ in points], [each.mean for _, each in points], ":", color=FAINT)
        for name, line in lines.items():
            _draw_line(axes, line, **styles[name])
        for cell in arm.cells if kind == "accuracy_by_distance" else ():
            if cell.reach and places[0] < cell.reach < places[-1]:
                axes.axvline(cell.reach, color=styles[cell.name]["color"], linestyle=(0, (1, 2)))
        _set_y_axis(axes, label, arm.chance)
        if not is_by_cell:
            legend(axes)
    _set_x_axis(figure.axes[-1], arm, kind, places)
    return figure


def _set_x_axis(axes: Axes, arm: Arm, kind: str, places: Sequence[float]) -> None:
    """Names of ranks; a log2 axis where numbers span a factor of four; else the numbers."""
    known = {view.SHARE: "from most to least local", "window_size": "window_size (tokens)"}
    axes.set_xlabel(KINDS[kind][0] or known.get(arm.scale) or known.get(arm.axis, arm.axis))
    if not KINDS[kind][0] and arm.scale != view.NUMBER:
        names = [arm.label(cell, 24) for cell in arm.cells]
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", rotation=30 * (sum(map(len, names)) > 40))
    elif kind == "loss_by_cache":
        log2_axis(axes, places)
        axes.xaxis.set_major_formatter(lambda x, _: notation.binary(float(x)))
    elif places[-1] >= 4 * max(places[0], 1) and (places[0] == 0 or places[0] >= 1):
        log2_axis(axes, places)
    else:
        axes.set_xticks(places)


def _draw_line(axes: Axes, points: Sequence[tuple[float, Estimate]], **style: Any) -> None:
    """A point with its interval as a bar, or a line with its intervals as a band."""
    xs = [x for x, _ in points]
    low, high = zip(*(estimate.ends for _, estimate in points), strict=True)
    axes.plot(xs, [estimate.mean for _, estimate in points], **style)
    if len(points) == 1:
        axes.vlines(xs, low, high, color=style["color"], zorder=1.5)
    else:
        axes.fill_between(xs, low, high, color=style["color"], alpha=0.13, linewidth=0)


def _set_y_axis(axes: Axes, label: str, chance: float | None) -> None:
    axes.set_ylabel(label)
    if label == _ACCURACY:
        axes.set_ylim(-0.03, 1.04)
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
        if chance:
            axes.axhline(chance, color=FAINT, linewidth=1, linestyle=":")
            axes.text(0.01, chance + 0.01, "chance", transform=axes.get_yaxis_transform(), size=8)
    elif label.endswith(_SCORE):
        axes.set_ylim(-3, 104)
    elif label == _SPEED:
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        axes.yaxis.set_major_formatter(lambda y, _: notation.decimal(float(y)))
    elif label.startswith("difference"):
        axes.axhline(0, color=INK, linewidth=1, linestyle=":")


def cell_styles(arm: Arm) -> dict[str, dict[str, Any]]:
    """{cell's name: label, colour, dashes, marker}; shades of cells alike go along the axis."""
    styles: dict[str, dict[str, Any]] = {}
    for rank, cell in enumerate(arm.cells):
        look = view.look(cell)
        alike = [other for other in arm.cells if view.look(other) == look]
        shades = LinearSegmentedColormap.from_list("alike", list(look.ramp))
        place = alike.index(cell) / max(1, len(alike) - 1)
        shade = to_hex(shades(place)) if len(alike) > 1 else look.colour
        styles[cell.name] = {
            "label": arm.label(cell, 24) + " (baseline)" * cell.is_baseline,
            "color": shade,
            "linestyle": look.line_style,
            "marker": _MARKERS[rank % len(_MARKERS)],
            "markerfacecolor": "white" if cell.is_baseline else shade,
        }
    return styles


def log2_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log2 x axis with a tick a power of two, as plain numbers; 0 has a place of its own."""
    low, high = min(values), max(values)
    if low > 0:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xlim(left=-0.4)
    powers = [2.0**power for power in range(64) if low / 1.5 <= 2**power <= high * 1.5]
    ticks = powers[:: 1 + len(powers) // 11] if len(powers) > 2 else sorted(set(values))
    axes.set_xticks([0.0, *ticks] if low == 0 else ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: notation.plain(float(x)))


def legend(axes: Axes) -> None:
    """Names beside the axes, in the order in which lines end."""
    lines: list[Any] = [line for line in axes.get_lines() if str(line.get_label())[0] != "_"]
    lines.sort(key=lambda line: -line.get_ydata()[-1])
    axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1, 0.5))

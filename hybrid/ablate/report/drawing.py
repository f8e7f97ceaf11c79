"""What all figures share: style, colours, axes, intervals, legends and saving.

All-local cells are blue and dashed, all-global ones orange and solid, in every figure; hybrids
between them are green. Shades go along the axis. Figures of equal results are equal bytes: no
dates, no random ids. Loads matplotlib, so import this module late.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hybrid.ablate.report import notation, view
from hybrid.ablate.report.view import Arm
from hybrid.ablate.statistics.intervals import Estimate

INK, FAINT = "#1f2430", "#667085"
_DASHES = {"local": (0, (4, 1.5))}
_MARKERS = "osD^vPX*<>"
# First and last cell of a family with several.
_RAMPS = {
    "local": ("#6f9df0", "#12357c"),
    "global": ("#f0a04b", "#7d3f06"),
    "hybrid": ("#8fae2c", "#0c4254"),
}
_STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 10.5,
    "axes.edgecolor": "#b6bccb",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e3e6ee",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.hashsalt": "hybrid.ablate",
    "svg.fonttype": "none",
}
# What the text of an SVG falls back to where DejaVu isn't installed; all narrower.
_FONTS = "'DejaVu Sans', Verdana, 'Segoe UI', Helvetica, Arial, sans-serif"


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for the figures drawn and saved inside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def canvas(rows: int = 1, height: float = 3.7, **options: Any) -> tuple[Figure, Any]:
    """A figure of that many inches with `rows` axes above each other."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(5.8, height), layout=layout)
    return figure, figure.subplots(rows, 1, **options)


def cell_styles(arm: Arm) -> dict[str, dict[str, Any]]:
    """{cell's name: colour, dashes and marker}; a family's shades go along the axis."""
    styles: dict[str, dict[str, Any]] = {}
    for family, colour in view.FAMILIES.items():
        cells = [cell for cell in arm.cells if view.family(cell) == family]
        shades = LinearSegmentedColormap.from_list(family, _RAMPS[family])
        for index, cell in enumerate(cells):
            shade = to_hex(shades(index / (len(cells) - 1))) if len(cells) > 1 else colour
            styles[cell.name] = {"color": shade, "linestyle": _DASHES.get(family, "-")}
    for index, cell in enumerate(arm.cells):
        styles[cell.name]["marker"] = _MARKERS[index % len(_MARKERS)]
    return styles


def log2_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log2 x axis with a tick a power of two, as plain numbers; 0 has a place of its own."""
    if min(values) > 0:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", base=2, linthresh=1)
    powers = [each for each in (2.0**power for power in range(-10, 40)) if each <= max(values)]
    inside = [each for each in powers if each >= min(values) or each >= 1 > min(values)]
    ticks = inside[:: 1 + len(inside) // 11] if len(inside) > 2 else sorted(set(values))
    axes.set_xticks([0.0, *ticks] if min(values) == 0 else ticks)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda x, _: notation.plain(round(float(x), 3)))


def point(axes: Axes, x: float, estimate: Estimate, **options: Any) -> None:
    """A point with its interval as a bar, or without a bar where none is known."""
    low, high = estimate.ends
    # Rounding may leave an end of equal values on the wrong side of their mean.
    bar = [[max(0.0, estimate.mean - low)], [max(0.0, high - estimate.mean)]]
    settings = {"capsize": 3, "elinewidth": 1.4, "markersize": 6, "linestyle": "", **options}
    axes.errorbar([x], [estimate.mean], yerr=bar if estimate.sign is not None else None, **settings)


def line(axes: Axes, points: Sequence[tuple[float, Estimate]], label: str, **style: Any) -> None:
    """A line through the means with its intervals as a band, where they are known."""
    xs = [x for x, _ in points]
    axes.plot(xs, [each.mean for _, each in points], label=label, markersize=4.5, **style)
    low, high = zip(*(each.ends for _, each in points), strict=True)
    axes.fill_between(xs, low, high, color=style["color"], alpha=0.13, linewidth=0)


def legend(axes: Axes) -> None:
    """Names beside the axes, in the order in which lines end."""
    lines = [each for each in axes.get_lines() if not str(each.get_label()).startswith("_")]
    lines.sort(key=lambda each: -np.asarray(each.get_ydata())[-1])
    axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1, 0.5))


def accuracy_axis(axes: Axes, chance: float | None) -> None:
    """A y axis of accuracies with a line at chance, where it is known."""
    axes.set_ylim(-0.03, 1.04)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    axes.set_ylabel("accuracy")
    if chance:
        axes.axhline(chance, color=FAINT, linewidth=1, linestyle=":")
        axes.text(0.01, chance + 0.01, "chance", transform=axes.get_yaxis_transform(), fontsize=8)


def clipped(text: str, most: int = 28) -> str:
    """The text, cut at `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def caption(figure: Figure, text: str) -> None:
    """What the bars mean and which machine, small, under the figure."""
    figure.supxlabel(text, fontsize=8, color=FAINT, x=0.01, ha="left")


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, without a date or a version."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()


def to_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG document with a title, ids prefixed by `name`, and no metadata."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r"^<\?xml.*?(?=<svg)", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub("'DejaVu Sans'(, sans-serif)?", _FONTS, text)
    head = f'<svg role="img" aria-labelledby="{name}-title" '
    opening, rest = text.replace("<svg ", head, 1).split(">", 1)
    return f'{opening}><title id="{name}-title">{escape(title)}</title>{rest}'

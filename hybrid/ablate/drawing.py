"""The hand that draws: colours of cells, log2 ticks, labels at the ends of lines, saving.

All-local cells are blue and dashed, all-global ones orange and solid, in every figure; hybrids
between them are green. Shades go along the axis. Figures of equal results are equal bytes: no
dates, no random ids. matplotlib is loaded here and nowhere else; import this module late.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from hybrid.ablate import notation, view
from hybrid.ablate.view import Arm
from hybrid.model.mixers import MIXERS

INK, FAINT, GRID = "#1f2430", "#667085", "#e3e6ee"
FAMILIES = {**{row.kind: row.look.colour for row in MIXERS.values()}, "hybrid": "#12805c"}
DASHES = {"local": (0, (4, 1.5)), "global": "-", "hybrid": "-"}
MARKERS = "osD^vPX*<>"
LINES = 7  # more cells than these, or two axes, become a heat map
SIZE = (5.8, 3.7)  # inches
# First and last cell of a family with several.
_RAMPS = {
    "local": ("#6f9df0", "#12357c"),
    "global": ("#f0a04b", "#7d3f06"),
    "hybrid": ("#8fae2c", "#0c4254"),
}
_LEGIBLE = 4.5  # contrast of text on white, as WCAG AA asks
_PAD = 0.08  # inches around what is drawn
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 10.5,
    "axes.edgecolor": "#b6bccb",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
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


def canvas(rows: int = 1, height: float = SIZE[1], **options: Any) -> tuple[Figure, Any]:
    """A figure with `rows` axes above each other."""
    figure = Figure(
        figsize=(SIZE[0], height), layout=ConstrainedLayoutEngine(w_pad=_PAD, h_pad=_PAD)
    )
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, **options)


def colours(arm: Arm) -> dict[str, str]:
    """{cell's name: colour}: its family's, shaded along the axis where the family has several."""
    found = {}
    for kind, colour in FAMILIES.items():
        cells = [cell for cell in arm.cells if view.family(cell) == kind]
        for index, cell in enumerate(cells):
            part = index / (len(cells) - 1) if len(cells) > 1 else None
            found[cell["name"]] = colour if part is None else _mixed(*_RAMPS[kind], part)
    return found


def _mixed(first: str, last: str, part: float) -> str:
    pairs = zip(_parts(first), _parts(last), strict=True)
    return "#" + "".join(f"{round(255 * (a + (b - a) * part)):02x}" for a, b in pairs)


def _parts(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def legible(colour: str) -> str:
    """The colour, darkened until text of it can be read on white."""
    while 1.05 / (_luminance(colour) + 0.05) < _LEGIBLE:
        colour = _mixed(colour, "#000000", 0.08)
    return colour


def _luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in _parts(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def line_style(arm: Arm, index: int) -> dict[str, Any]:
    """Colour, dashes and marker of a cell's line."""
    cell = arm.cells[index]
    return {
        "color": colours(arm)[cell["name"]],
        "linestyle": DASHES[view.family(cell)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def log2(axes: Axes, values: Sequence[float], zero: float | None = None) -> None:
    """A log2 x axis with a tick a power of two, as plain numbers; `zero` is where 0 stands."""
    axes.set_xscale("log", base=2)
    powers = [2.0**power for power in range(-10, 40)]
    inside = [each for each in powers if min(values) * 0.99 <= each <= max(values) * 1.01]
    while len(inside) > 10:
        inside = inside[::2]
    ticks = inside if len(inside) > 2 else sorted(set(values))
    ticks = [*([zero] if zero else []), *[each for each in ticks if each != zero]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: "0" if x == zero else notation.plain(round(x, 3)))
    )


def error_bar(axes: Axes, x: float, interval: Mapping[str, Any], **options: Any) -> None:
    """A point with its interval as a bar, or without a bar where none is known."""
    mean, known = interval["mean"], notation.has_interval(interval)
    # Rounding may leave an end of equal values on the wrong side of their mean.
    spans = [mean - interval["low"], interval["high"] - mean] if known else []
    ends = [[max(0.0, span)] for span in spans] or None
    settings = {"fmt": "o", "capsize": 3, "elinewidth": 1.4, "markersize": 6, **options}
    axes.errorbar([x], [mean], yerr=ends, **settings)


def band(axes: Axes, x: Sequence[float], intervals: Sequence[Mapping[str, Any]], colour) -> None:
    """The intervals of a line as a band, where they are known."""
    known = [(at, each) for at, each in zip(x, intervals, strict=True) if _known(each)]
    if known:
        low, high = [each["low"] for _, each in known], [each["high"] for _, each in known]
        axes.fill_between([at for at, _ in known], low, high, color=colour, alpha=0.13, lw=0)


def _known(interval: Mapping[str, Any]) -> bool:
    return notation.has_interval(interval)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names lines at the right edge: (y of the last point, text, colour) each, kept apart."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda end: end[0])
    least = min(0.062, 0.96 / max(1, len(order) - 1))
    places = spread([(y - low) / (high - low) for y, _, _ in order], least)
    for (_, text, colour), place in zip(order, places, strict=True):
        axes.annotate(
            text,
            (1.0, place),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            color=legible(colour),
            va="center",
            fontsize=9,
            fontweight="bold",
            annotation_clip=False,
        )


Named = tuple[float, Mapping[str, Any], str, str]  # x, interval, name, colour


def label_points(figure: Figure, axes: Axes, points: Sequence[Named]) -> None:
    """Names points of `error_bar` where there is room; a name without any is left out."""
    figure.draw_without_rendering()  # settles the layout, so extents hold
    taken = [_bar_extent(axes, x, interval) for x, interval, _, _ in points]
    for x, interval, text, colour in points:
        for y, offset, align in _spots(interval):
            label = axes.annotate(text, (x, y), offset, textcoords="offset points", ha=align)
            label.set(color=legible(colour), fontsize=9, fontweight="bold")
            extent = label.get_window_extent()
            inside = axes.bbox.containsx(extent.x0) and axes.bbox.containsx(extent.x1)
            inside &= axes.bbox.containsy(extent.y0) and axes.bbox.containsy(extent.y1)
            if inside and not any(extent.overlaps(other) for other in taken):
                taken.append(extent)
                break
            label.remove()


def _spots(interval: Mapping[str, Any]) -> Iterator[tuple[float, tuple[int, int], str]]:
    """Where a name may stand, the best first: (y, offset in points, alignment)."""
    mean, known = interval["mean"], notation.has_interval(interval)
    yield from [(mean, (7, 6), "left"), (mean, (7, -13), "left")]
    yield from [(mean, (-7, -13), "right"), (mean, (-7, 6), "right")]
    yield interval["high"] if known else mean, (0, 6), "center"
    yield interval["low"] if known else mean, (0, -14), "center"


def _bar_extent(axes: Axes, x: float, interval: Mapping[str, Any]) -> Bbox:
    """The pixels that a point and its bar take."""
    known = notation.has_interval(interval)
    ends = [interval["low"], interval["high"]] if known else [interval["mean"]] * 2
    corners = axes.transData.transform([(x, end) for end in ends])
    return Bbox(corners).padded(3)


def spread(places: Sequence[float], least: float) -> list[float]:
    """Rising places in 0 to 1 moved apart to `least`, each group around its own middle."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _bottom(groups[-1], least) - _top(groups[-2], least) < least:
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [_bottom(each, least) + i * least for each in groups for i in range(len(each))]
    # Inside the axes where they fit: down from the top, then up from the bottom.
    moved = [min(at, 0.98 - least * (len(moved) - 1 - i)) for i, at in enumerate(moved)]
    return [max(at, 0.02 + least * i) for i, at in enumerate(moved)]


def _bottom(group: Sequence[float], least: float) -> float:
    return sum(group) / len(group) - least * (len(group) - 1) / 2


def _top(group: Sequence[float], least: float) -> float:
    return sum(group) / len(group) + least * (len(group) - 1) / 2


def accuracy_axis(axes, arm: Arm) -> None:
    axes.set_ylim(-0.03, 1.04)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    axes.set_ylabel("accuracy")
    if arm.chance:
        axes.axhline(arm.chance, color=FAINT, linewidth=1, linestyle=":")
        axes.annotate(
            "chance",
            (0.01, arm.chance),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=FAINT,
            fontsize=8,
        )


def against(arm: Arm) -> str:
    """What differences are to, short enough for the label of an axis."""
    name = arm.label(arm.baseline) if arm.baseline else ""
    return name if 0 < len(name) <= 14 else "the baseline"


def clipped(text: str, most: int = 28) -> str:
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
    text = text.replace("<svg ", head, 1)
    opening, rest = text.split(">", 1)
    return f'{opening}><title id="{name}-title">{escape(title)}</title>{rest}'

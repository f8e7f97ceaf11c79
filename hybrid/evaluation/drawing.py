"""How the figures of evaluations and sweeps look, and how they are saved.

Figures of equal results are equal bytes: no dates, no random ids. Loads matplotlib, so import this
file late.
"""

import functools
import io
import re
from contextlib import AbstractContextManager
from typing import Any
from xml.sax.saxutils import escape

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hybrid.process.files import write_whole
from hybrid.process.remote import AnyPath

INK, FAINT = "#1f2430", "#667085"
_STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 10.5,
    "axes.edgecolor": "#b6bccb",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e3e6ee",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 5,
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.hashsalt": "hybrid.ablate",
    "svg.fonttype": "none",
}
# What the text of an SVG falls back to where DejaVu isn't installed; all narrower.
_FONTS = "'DejaVu Sans', Verdana, 'Segoe UI', Helvetica, Arial, sans-serif"


def style() -> AbstractContextManager[None]:
    """Matplotlib's settings for the figures drawn and saved inside."""
    return matplotlib.style.context(_STYLE, after_reset=True)


def canvas(height: float, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of that many inches with `rows` axes above each other."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(5.8, height), layout=layout)
    return figure, figure.subplots(rows, 1, **options)


def save(figure: Figure, path: AnyPath, title: str, caption: str) -> str:
    """Writes `path`.svg and `path`.png, within `style`; returns the SVG."""
    svg = to_svg(figure, path.name, title, caption)
    png = functools.partial(figure.savefig, dpi=160, metadata={"Software": None})
    write_whole(path.with_name(f"{path.name}.png"), png)
    write_whole(path.with_name(f"{path.name}.svg"), svg)
    return svg


def to_svg(figure: Figure, name: str, title: str, caption: str) -> str:
    """The figure as an SVG document with a title, ids prefixed by `name`, and no metadata.

    The caption stays under the figure: what the intervals are and which machine.
    """
    figure.supxlabel(caption, fontsize=8, color=FAINT, x=0.01, ha="left")
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = re.sub(r"^<\?xml.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub("'DejaVu Sans'(, sans-serif)?", _FONTS, text)
    head = f'<svg role="img" aria-labelledby="{name}-title" '
    opening, rest = text.replace("<svg ", head, 1).split(">", 1)
    return f'{opening}><title id="{name}-title">{escape(title)}</title>{rest}'

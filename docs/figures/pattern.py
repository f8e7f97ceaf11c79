"""Draws docs/figures/pattern.svg, the README's picture: the pattern of configs/tiny.py.

python docs/figures/pattern.py

Above, the stack from embedding to head: a cell a layer, its mask inside, and a bracket under each
segment with its repetitions. Below, a card for each kind: who sees whom, and what that costs.
All is drawn from the plan and from the band itself, for a short row, so the picture can't disagree
with the attention.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

import numpy as np

from hybrid import experiment, model
from hybrid.model.pattern import LayerPlan, LayerSpec, Segment

OUTPUT = pathlib.Path(__file__).with_suffix(".svg")
TITLE = "Five local layers, then one global: the stack of configs/tiny.py"
_INK, _FAINT, _PAPER = "#1f2430", "#7a8194", "#ffffff"
_WIDTH, _MARGIN = 880, 36
_STRIP_TOP, _CELL_HEIGHT = 84, 92
_CARD_TOP, _CARD_HEIGHT, _MASK = 268, 236, 180
_HEIGHT = _CARD_TOP + _CARD_HEIGHT + 40
# Masks are drawn for a short row; windows are shortened with it.
_TOKENS, _WINDOW = 24, 6
_ICON_TOKENS, _ICON_WINDOW = 12, 4


def draw() -> str:
    """The picture as SVG text."""
    config = experiment.load("configs/tiny.py").model
    return render(model.layer_plan(config), TITLE)


def render(plan: LayerPlan, title: str) -> str:
    """The SVG document.  Pure: equal plans give equal text."""
    parts = [
        _rect(0.5, 0.5, _WIDTH - 1, _HEIGHT - 1, _PAPER, radius=14, stroke="#e3e6ee"),
        _text(_MARGIN, 46, title, size=19, weight=600),
        *_stack(plan),
        *_cards(plan),
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        'font-family="Inter, Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>\n"
    )


# --- The stack -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Row:
    """Where the cells of the stack stand: their pitch, and the left edge of each segment."""

    pitch: float
    starts: tuple[float, ...]
    end: float

    @classmethod
    def of(cls, segments: Iterable[Segment], left: float, right: float) -> "_Row":
        counts = [len(segment.specs) for segment in segments]
        gap = 0.45  # between segments, in cells
        cells = sum(counts) + gap * (len(counts) - 1)
        pitch = min(88, (right - left) / cells)
        x, starts = left + ((right - left) - cells * pitch) / 2, []
        for count in counts:
            starts.append(x)
            x += (count + gap) * pitch
        return cls(pitch, tuple(starts), x - gap * pitch)


def _stack(plan: LayerPlan) -> Iterator[str]:
    """Embedding, the cells of each segment, and the head, threaded on the residual stream."""
    left, right = _MARGIN + 84, _WIDTH - _MARGIN - 84
    row = _Row.of(plan.segments, left + 22, right - 22)
    middle = _STRIP_TOP + _CELL_HEIGHT / 2
    yield _line(left, middle, right - 6, middle, "#b6bccb", 2.5)
    tip = f"{right},{middle} {right - 9},{middle - 5} {right - 9},{middle + 5}"
    yield f'<polygon points="{tip}" fill="#b6bccb"/>'
    yield from _end(_MARGIN, middle, "embed")
    yield from _end(right, middle, "head")
    for segment, x in zip(plan.segments, row.starts, strict=True):
        for slot, spec in enumerate(segment.specs):
            yield from _cell(spec, x + slot * row.pitch, row.pitch)
        yield from _bracket(segment, x, len(segment.specs) * row.pitch)


def _end(x: float, middle: float, label: str) -> Iterator[str]:
    yield _rect(x, middle - 19, 84, 38, "#f1f3f8", radius=9, stroke="#d5d9e4")
    yield _text(x + 42, middle + 5, label, size=14, anchor="middle")


def _cell(spec: LayerSpec, x: float, pitch: float) -> Iterator[str]:
    look, width = spec.about.look, pitch - max(4, 0.12 * pitch)
    x += (pitch - width) / 2
    yield _rect(x, _STRIP_TOP, width, _CELL_HEIGHT, look.tint, radius=9, stroke=look.colour)
    size = min(width - 14, _CELL_HEIGHT - 40)
    yield from _mask(spec, x + (width - size) / 2, _STRIP_TOP + 11, size, icon=True)
    base = _STRIP_TOP + _CELL_HEIGHT - 11
    yield _text(x + width / 2, base, spec.letter, 16, look.colour, weight=700, anchor="middle")


def _bracket(segment: Segment, x: float, width: float) -> Iterator[str]:
    top, left, right = _STRIP_TOP + _CELL_HEIGHT + 12, x + 6, x + width - 6
    path = f"M{left:.1f} {top} v9 H{right:.1f} v-9"
    yield f'<path d="{path}" fill="none" stroke="{_FAINT}" stroke-width="1.5"/>'
    middle, last = x + width / 2, segment.first_layer + segment.num_layers - 1
    label = f"{segment.letters} × {segment.repetitions}"
    yield _text(middle, top + 29, label, size=15, weight=600, anchor="middle")
    span = f"layers {segment.first_layer} to {last}" if last else "layer 0"
    yield _text(middle, top + 47, span, size=12, colour=_FAINT, anchor="middle")


# --- The cards -------------------------------------------------------------------------------


def _cards(plan: LayerPlan) -> Iterator[str]:
    """A card for each kind of layer in the plan, side by side."""
    kinds = list(dict.fromkeys(spec.kind for spec in plan.layers()))
    gap = 20
    width = (_WIDTH - 2 * _MARGIN - gap * (len(kinds) - 1)) / len(kinds)
    for index, kind in enumerate(kinds):
        specs = [spec for spec in plan.layers() if spec.kind == kind]
        yield from _card(specs, plan.num_layers, _MARGIN + index * (width + gap), width)
    note = f"Masks drawn for t = {_TOKENS} tokens"
    windowed = any(spec.mixer.reach for spec in plan.layers())
    note += f" and a window of w = {_WINDOW}." if windowed else "."
    yield _text(_MARGIN, _HEIGHT - 16, note, size=12, colour=_FAINT)


def _card(specs: list[LayerSpec], num_layers: int, x: float, width: float) -> Iterator[str]:
    spec = specs[0]
    colour = spec.about.look.colour
    yield _rect(x, _CARD_TOP, width, _CARD_HEIGHT, "#fafbfd", radius=12, stroke="#e3e6ee")
    left, top = x + 34, _CARD_TOP + 34
    yield from _mask(spec, left, top, _MASK)
    yield _text(left + _MASK / 2, top - 11, "keys →", size=12, colour=_FAINT, anchor="middle")
    turned = f'transform="rotate(-90 {left - 11:.1f} {top + _MASK / 2:.1f})"'
    yield _text(left - 11, top + _MASK / 2, "← queries", 12, _FAINT, anchor="middle", extra=turned)
    text_x, y = left + _MASK + 22, top + 16
    yield _text(text_x, y, spec.kind, size=20, colour=colour, weight=700)
    for line in _facts(specs, num_layers):
        y += 25
        yield _text(text_x, y, line, size=13.5)


def _facts(specs: list[LayerSpec], num_layers: int) -> Iterator[str]:
    yield f"{len(specs)} of {num_layers} layers"
    several = {spec.mixer.reach for spec in specs if spec.mixer.reach}
    windows = f"sees {' or '.join(map(str, sorted(several)))} tokens"
    for fact in specs[0].mixer.facts():
        yield windows if len(several) > 1 and fact.startswith("sees ") else fact


# --- Drawing ---------------------------------------------------------------------------------


def _mask(spec: LayerSpec, x: float, y: float, size: float, icon: bool = False) -> Iterator[str]:
    """The band as a square of tokens, a bar for each run of a query's visible keys."""
    tokens, shown = (_ICON_TOKENS, _ICON_WINDOW) if icon else (_TOKENS, _WINDOW)
    seen = spec.mixer.picture(tokens, shown)
    step, colour = size / tokens, spec.about.look.colour
    yield _rect(x, y, size, size, _PAPER, radius=3, stroke="#d5d9e4")
    gap = 0 if icon else 1
    for query, keys in enumerate(seen):
        edges = np.flatnonzero(np.diff(keys, prepend=False, append=False))
        bar_y, side = y + query * step, step - gap
        for first, end in edges.reshape(-1, 2):
            length = (end - 1 - first) * step
            yield _rect(x + first * step, bar_y, length + side, side, colour, opacity=0.45)
        yield _rect(x + first * step + length, bar_y, side, side, colour)  # the token itself


def _rect(x, y, width, height, fill, radius=0, stroke=None, opacity=None) -> str:
    extra = f' rx="{radius}"' if radius else ""
    extra += f' stroke="{stroke}"' if stroke else ""
    extra += f' fill-opacity="{opacity}"' if opacity else ""
    box = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect {box} fill="{fill}"{extra}/>'


def _line(x1, y1, x2, y2, colour, width) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x, y, text, size=13, colour=_INK, weight=400, anchor="start", extra="") -> str:
    style = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style} {extra}>{escape(text)}</text>'


if __name__ == "__main__":
    OUTPUT.write_text(draw())
    print(OUTPUT)

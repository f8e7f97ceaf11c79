"""Draws docs/figures/layout.svg: the rooms of `hybrid/` on their floors, from the imports.

python docs/figures/layout.py

A room is a folder of `hybrid/` or one file; the `config.py` of all folders are one, `sections`.
A room stands one floor above the highest room that it imports from, so no import can run up.
"""

import ast
import graphlib
import pathlib
import textwrap
from collections.abc import Iterator
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hybrid"
OUTPUT = pathlib.Path(__file__).with_suffix(".svg")
SECTIONS = "sections"
SECTIONS_TEXT = "FOLDER/config.py: the keys of each folder, read by the schema alone"
_OWN_SECTION = ("ablate",)  # whose keys hold a whole run's, so it is no room below the others
_WIDTH, _GAP, _LINE = 900, 12, 14


def room_of(path: pathlib.Path) -> str:
    """The room of a file of the package; "" for the package's own `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if len(parts) == 2 and parts[1] == "config" and parts[0] not in _OWN_SECTION:
        return SECTIONS
    return "" if parts == ("__init__",) else parts[0]


def imports(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files of the package that a file imports, late imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from filter(None, map(_file_named, names))


def _file_named(name: str) -> pathlib.Path | None:
    """The file of a module, or of the module that has a name; None for what is not ours."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        stem = ROOT.joinpath(*parts[:end])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if parts[0] == PACKAGE.name and path.is_file():
                return path
    return None  # or a public name of the package


def graph() -> dict[str, set[str]]:
    """{room: rooms that its files import from, but for itself}."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room:
            found.setdefault(room, set()).update(set(map(room_of, imports(path))) - {room})
    return found


def floors() -> list[list[str]]:
    """The rooms of each floor, the lowest first.  Raises: graphlib.CycleError for a circle."""
    edges, level = graph(), {}
    for room in graphlib.TopologicalSorter(edges).static_order():
        level[room] = 1 + max((level[below] for below in edges.get(room, ())), default=-1)
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for room in sorted(level):
        rows[level[room]].append(room)
    return rows


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    if room == SECTIONS:
        return SECTIONS_TEXT
    path = PACKAGE / f"{room}.py"
    path = path if path.is_file() else PACKAGE / room / "__init__.py"
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return " ".join(first.replace("`", "").split()).rstrip(".")


def draw() -> str:
    """The picture as SVG text."""
    y, parts = _GAP, []
    for row in floors()[::-1]:
        width = (_WIDTH - _GAP) / len(row)
        wrapped = {room: textwrap.wrap(purpose(room), int((width - 30) / 5.9)) for room in row}
        height = 38 + _LINE * max(map(len, wrapped.values()))
        for index, (room, lines) in enumerate(wrapped.items()):
            parts += _box(room, lines, _GAP + index * width, y, width - _GAP, height)
        y += height + _GAP
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" '
        f'width="{_WIDTH}" height="{y}" role="img" '
        'font-family="Inter, Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif">\n'
        "<title>The rooms of hybrid/ on their floors; imports run down</title>\n"
        f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _box(room: str, lines: list[str], x: float, y: int, width: float, height: int) -> Iterator[str]:
    size = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}"'
    yield f'<rect {size} rx="9" fill="#e9f0fd" stroke="#2f6fde"/>'
    name = f"{room}/" if (PACKAGE / room).is_dir() else room
    yield f'<text x="{x + 12:.1f}" y="{y + 22}" font-size="15" font-weight="700">{name}</text>'
    for number, line in enumerate(lines):
        place = f'x="{x + 12:.1f}" y="{y + 40 + _LINE * number}"'
        yield f'<text {place} font-size="11.5" fill="#1f2430">{escape(line)}</text>'


if __name__ == "__main__":
    OUTPUT.write_text(draw())
    print(OUTPUT)

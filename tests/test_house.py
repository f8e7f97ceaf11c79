"""The house stands: imports never run up a floor, files stay short, no layer kind leaks."""

import ast
import graphlib
import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hybrid"

LONG_ALLOWED = {"ops"}
_spec = importlib.util.spec_from_file_location("layout", ROOT / "docs" / "figures" / "layout.py")
layout = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layout)


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, ".".join(part for part in parts if part != "__init__")


def test_no_import_runs_up_a_floor():
    """Rooms that import each other would have no floors: the sorter names the circle."""
    rows = layout.floors()
    floor = {room: level for level, row in enumerate(rows) for room in row}
    for room, below in layout.graph().items():
        assert all(floor[other] < floor[room] for other in below)


def test_sections_of_keys_stand_below_the_folders_that_they_belong_to():
    assert layout.graph()["sections"] == {"config"}


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    assert layout.OUTPUT.read_text() == layout.draw()


def test_imports_have_no_circles():
    known = {module for _, module in modules()}
    graph = {module: set(imported(path, known)) - {module} for path, module in modules() if module}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def imported(path: pathlib.Path, known: set[str]):
    """Modules of ours that a file imports, late imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.removeprefix("hybrid.").split(".")
            prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            yield from [prefix for prefix in prefixes if prefix in known][:1]


def test_no_file_grows_past_400_lines():
    long = {
        module: len(path.read_text().splitlines())
        for path, module in modules()
        if module.split(".")[0] not in LONG_ALLOWED and len(path.read_text().splitlines()) > 400
    }
    assert not long


def test_layer_letters_are_compared_only_in_the_pattern_and_the_mixers():
    compares = re.compile(r"""letter\s*[!=]=|==\s*(LOCAL|GLOBAL)\b|["'][LG]["']\s*[!=]=""")
    found = [
        module
        for path, module in modules()
        if not module.startswith(("model.pattern", "model.mixers", "model.config"))
        and compares.search(path.read_text())
    ]
    assert not found

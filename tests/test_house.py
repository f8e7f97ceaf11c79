"""The house stands: imports never run up a floor, files stay short, no layer kind leaks."""

import graphlib
import re

import scripts

layout = scripts.load("figures/layout")
FILES = sorted(layout.PACKAGE.rglob("*.py"))


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
    graph = {path: set(layout.imports(path)) - {path} for path in FILES}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_no_file_grows_past_400_lines():
    assert not [path for path in FILES if len(path.read_text().splitlines()) > 400]


def test_layer_letters_are_compared_only_in_the_pattern_and_the_mixers():
    compares = re.compile(r"""letter\s*[!=]=|==\s*(LOCAL|GLOBAL)\b|["'][LG]["']\s*[!=]=""")
    allowed = ("model/pattern", "model/mixers", "model/config")
    found = [
        path
        for path in FILES
        if not path.relative_to(layout.PACKAGE).as_posix().startswith(allowed)
        and compares.search(path.read_text())
    ]
    assert not found

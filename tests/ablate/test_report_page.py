"""The report says what the summary says: in words, in its table, in its figures, on one page."""

import copy
import html.parser
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import example_results
import numpy as np
import pytest

from hybrid.ablate import along_axis, drawing, figures, lines, notation, report, view, words
from hybrid.ablate.notation import fixed, percent, signed

HOSTILE = '<script>alert("1")</script> & $\\frac{'
_FIGURES = {
    "window": {
        *("text_loss_by_axis", "text_loss_by_cache", "text_loss_by_position"),
        *("text_repeats_by_distance", "text_tokens_per_second"),
        *("needle_accuracy_by_distance", "needle_accuracy_by_axis", "needle_tokens_per_second"),
    },
    "rope": {
        *("loss_by_axis", "loss_by_context", "loss_by_position", "repeats_by_distance"),
        "tokens_per_second",
    },
    "mqar": {"accuracy_by_pairs", "accuracy_by_axis", "tokens_per_second"},
    "two_axes": {"accuracy_heat_map", "heat_map", "tokens_per_second"},
    "pending": set(),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A rendered report of each of the sweeps whose figures are listed above."""
    found = {}
    for name in _FIGURES:
        found[name] = tmp_path_factory.mktemp(name)
        report.write(example_results.SWEEPS[name](), found[name])
    return found


@pytest.fixture(scope="module")
def hostile():
    """The page of a sweep whose names and errors are written to break out of it."""
    results = example_results.mqar()
    arm = results["summary"]["arms"][0]
    arm["arm"] = results["name"] = results["machine"] = HOSTILE
    for entry in [arm["cells"][0], results["cells"][0]]:
        entry["name"] = HOSTILE
    results["cells"][0] |= {"status": "failed", "error": HOSTILE, "arm": HOSTILE}
    return report.render(results, figures.draw(results))


def read_table(page: str, index: int) -> list[list[str]]:
    """The rows of the page's table at `index`, as text."""
    reader = _Tables()
    reader.feed(page)
    return reader.tables[index]


class _Tables(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tables, self._inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.tables[-1][-1][-1] += data


# --- Page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _FIGURES)
def test_every_figure_is_there_as_svg_and_as_png_and_on_the_page(name, folders):
    folder = folders[name] / "figures"
    assert {path.stem for path in folder.glob("*.svg")} == _FIGURES[name]
    assert {path.stem for path in folder.glob("*.png")} == _FIGURES[name]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.glob("*.png"))
    page = (folders[name] / "report.html").read_text()
    for path in folder.glob("*.svg"):
        assert ET.fromstring(path.read_text()).tag.endswith("svg")
        assert path.read_text() in page
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", _FIGURES)
def test_the_page_needs_nothing_from_outside(name, folders):
    page = (folders[name] / "report.html").read_text()
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|//\w+\.\w+/", without_namespaces)
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|src=", page)
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert set(re.findall(r'href="(.)', page)) <= {"#"}


@pytest.mark.parametrize("name", _FIGURES)
def test_ids_are_unique_and_references_find_them(name, folders):
    page = (folders[name] / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    references = re.findall(r'(?:url\(#|href="#|labelledby=")([^")]*)', page)
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)


def test_the_table_holds_the_summarys_numbers_and_marks_the_baseline(folders):
    head, *rows = read_table((folders["window"] / "report.html").read_text(), 0)
    cells = example_results.window()["summary"]["arms"][0]["cells"]
    assert head[:4] == [
        "window_size",
        "loss (nats a token)",
        "difference to the baseline",
        "parameters",
    ]
    for row, cell in zip(rows, cells, strict=True):
        loss, difference = cell["loss"], cell["difference"]
        assert row[1].split()[0] == fixed(loss["mean"])
        assert f"{fixed(loss['low'])} to {fixed(loss['high'])}" in row[1]
        if difference:
            assert row[2].startswith(signed(difference["mean"]))
            assert f"{signed(difference['low'])} to {signed(difference['high'])}" in row[2]
            assert ("worse" in row[2]) == (difference["low"] > 0)
        assert row[3] == "310 k"
        assert row[5] == notation.binary(cell["kv_cache_bytes"])
        assert row[0].split()[0] == str(cell["overrides"]["model.window_size"])
        assert ("baseline" in row[0]) == cell["is_baseline"]


def test_the_table_of_a_task_holds_accuracies(folders):
    head, *rows = read_table((folders["window"] / "report.html").read_text(), 1)
    cells = example_results.window()["summary"]["arms"][1]["cells"]
    assert head[1] == "accuracy"
    for row, cell in zip(rows, cells, strict=True):
        share = cell["accuracy"]
        assert row[1].startswith(percent(share["mean"]))
        assert f"{percent(share['low'])} to {percent(share['high'])}" in row[1]


def test_what_match_changed_stands_in_the_table():
    _, *rows = read_table(report.render(example_results.ratio()), 0)
    assert rows[0][-1] == "–"
    assert rows[1][-1] == "num_steps 300 → 290"


def test_steps_are_those_of_the_runs():
    results = example_results.window()
    for run in results["cells"]:
        run["num_steps"] = 600 if run["arm"] == "needle" else 150
    assert "· 150 and 600 steps ·" in report.render(results)


def test_all_learning_rates_are_shown_and_the_best_is_marked():
    results = example_results.mqar()
    cell = results["summary"]["arms"][0]["cells"][0]
    cell["learning_rates"] = [
        {"learning_rate": 0.01, "loss": 1.25, "num_seeds": 3},
        {"learning_rate": 0.03, "loss": 1.5, "num_seeds": 3},
    ]
    head, row, *_ = read_table(report.render(results), 1)
    assert head == ["cell", "0.01", "0.03"]
    assert row[1:] == ["1.2500 best", "1.5000"]


def test_a_sweep_with_nothing_finished_says_so(folders):
    page = (folders["pending"] / "report.html").read_text()
    assert "0 of 30 runs are finished, 30 still to run." in page
    assert "Settings" in page


def test_a_failed_run_is_reported_with_its_error():
    page = report.render(example_results.failed())
    assert "29 of 30 runs are finished, 1 failed" in page
    assert "out of memory &lt;b&gt;4 &amp; 5&lt;/b&gt;" in page
    assert "<b>" not in page


def test_hostile_names_stay_text(hostile):
    assert "<script" not in hostile
    assert hostile.count("&lt;script&gt;alert") > 5
    assert "<h1>&lt;script&gt;" in hostile


def test_an_arms_name_cannot_leave_the_folder(tmp_path):
    results = example_results.mqar()
    results["summary"]["arms"][0]["arm"] = "../../up"
    report.write(results, tmp_path / "inside")
    assert {path.name for path in tmp_path.iterdir()} == {"inside"}


def test_equal_results_give_equal_bytes(folders, tmp_path):
    report.write(example_results.rope(), tmp_path)
    first, second = folders["rope"], tmp_path
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(files) == 2 * len(_FIGURES["rope"]) + 1
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_drawing_leaves_the_results_alone():
    results = example_results.two_axes()
    before = copy.deepcopy(results)
    report.render(results, figures.draw(results))
    assert results == before


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, hybrid.ablate.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# --- Figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "scale"),
    [("window", "number"), ("ratio", "share"), ("rope", "number"), ("two_axes", "grid")],
)
def test_the_axis_is_found_from_the_overrides(sweep, scale):
    assert view.arms(example_results.SWEEPS[sweep]())[0].scale == scale


def test_cells_go_from_most_to_least_local():
    results = example_results.ratio()
    results["summary"]["arms"][0]["cells"].reverse()
    names = [cell["name"] for cell in view.arms(results)[0].cells]
    assert names == ["all-local", "7:1", "5:1", "3:1", "1:1", "all-global"]


def test_kinds_keep_their_colour():
    found = drawing.colours(view.arms(example_results.ratio())[0])
    assert found["all-local"] == drawing.COLOURS["local"]
    assert found["all-global"] == drawing.COLOURS["global"]
    assert len(set(found.values())) == 6


def test_figures_show_the_summarys_numbers():
    arm = view.arms(example_results.window())[0]
    with drawing.style():
        axes = along_axis.loss_by_axis(arm).axes
        curves = lines.loss_by_position(arm).axes[0].lines
    means = [cell["difference"]["mean"] for cell in arm.others]
    assert any(np.array_equal(line.get_ydata(), means) for line in axes[1].lines)
    for cell in arm.others:
        expected = [bucket["difference"]["mean"] for bucket in cell["by_position"]]
        assert any(np.array_equal(line.get_ydata(), expected) for line in curves)


def test_labels_are_moved_apart_and_stay_inside():
    places = drawing.spread([0.5, 0.5, 0.51, 0.97, 0.99], least=0.06)
    assert all(b - a >= 0.06 - 1e-9 for a, b in itertools.pairwise(places))
    assert places[0] >= 0
    assert places[-1] <= 1
    assert abs(np.mean(places[:3]) - 0.503) < 0.01


def test_names_of_crowded_points_do_not_overlap():
    results = example_results.ratio()
    for index, cell in enumerate(results["summary"]["arms"][0]["cells"]):
        cell["kv_cache_bytes"] = 100_000 + 3000 * index
        cell["loss"] |= {"mean": 1.92, "low": 1.91, "high": 1.93}
    with drawing.style():
        figure = along_axis.loss_by_cache(view.arms(results)[0])
        figure.draw_without_rendering()
    names = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert len(names) >= 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_each_cell_may_have_a_baseline_of_its_own():
    results = example_results.window()
    arm = results["summary"]["arms"][0]
    arm["cells"][0] |= {"is_baseline": True, "difference": None}
    told = words.answer(results)["text"]
    assert told[0].startswith("Against the baseline of each, window_size 16 (")
    rows = read_table(report.render(results, figures.draw(results)), 0)
    assert ["baseline" in row[0] for row in rows[1:]] == [True, False, False, False, True]


def test_labels_can_be_read_on_white():
    for colours in (drawing._RAMPS, {"all": tuple(drawing.FAMILIES.values())}):
        for colour in [each for pair in colours.values() for each in pair]:
            assert 1.05 / (drawing._luminance(drawing.legible(colour)) + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (notation.binary(90112), "88 KiB"),
        (notation.binary(1536 * 1024), "1.5 MiB"),
        (notation.decimal(999_700), "1 M"),
        (notation.decimal(34_712), "34.7 k"),
        (notation.signed(-0.00042), "−0.0004"),
        (notation.listed(["a"]), "a"),
        (notation.listed(list("abcde"), most=3), "a, b, c and 2 more"),
        (notation.plain(0.25), "0.25"),
    ],
)
def test_numbers_are_written_as_people_do(written, expected):
    assert written == expected


def test_figures_of_earlier_results_go_and_nothing_else(tmp_path):
    there = tmp_path / "figures"
    there.mkdir()
    for name in ("old_arm_loss_by_axis.svg", "old_arm_loss_by_axis.png", "mine.svg", "notes.txt"):
        (there / name).write_text("")
    drawn = figures.write(example_results.window(), tmp_path)
    kept = {path.name for path in there.iterdir()}
    assert kept == {f"{each.name}.{kind}" for each in drawn for kind in ("svg", "png")} | {
        "mine.svg",
        "notes.txt",
    }

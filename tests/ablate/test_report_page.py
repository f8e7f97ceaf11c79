"""The report says what the summary says: in statements, tables and figures, on one page."""

import html.parser
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import example_results
import numpy as np
import pytest
from from_json import sweep_results

from hybrid.ablate.report import figures, notation, page, sentences, view
from hybrid.ablate.report.notation import fixed, percent, signed
from hybrid.model.mixers import MIXERS

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
    "two_axes": {"accuracy_by_distance", "accuracy_by_axis", "tokens_per_second"},
    "pending": set(),
}


def example(name):
    return sweep_results(example_results.SWEEPS[name]())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A rendered report of each of the sweeps whose figures are listed above."""
    written = {}
    for name in _FIGURES:
        written[name] = tmp_path_factory.mktemp(name)
        page.write(example(name), written[name])
    return written


@pytest.fixture(scope="module")
def pages(folders):
    return {name: (folder / "report.html").read_text() for name, folder in folders.items()}


def read_table(text: str, index: int) -> list[list[str]]:
    """The rows of the page's table at `index`, as text with single spaces."""
    reader = _Tables()
    reader.feed(text)
    return [[" ".join(cell.split()) for cell in row] for row in reader.tables[index]]


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
def test_every_figure_is_there_as_svg_and_as_png_and_on_the_page(name, folders, pages):
    folder = folders[name] / "figures"
    assert {path.stem for path in folder.glob("*.svg")} == _FIGURES[name]
    assert {path.stem for path in folder.glob("*.png")} == _FIGURES[name]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.glob("*.png"))
    for path in folder.glob("*.svg"):
        root = ET.fromstring(path.read_text())
        assert root.tag.endswith("svg")
        assert root[0].tag.endswith("title")
        assert path.read_text() in pages[name]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", _FIGURES)
def test_the_page_needs_nothing_from_outside(name, pages):
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", pages[name])
    assert not re.search(r"https?://|//\w+\.\w+/", without_namespaces)
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|src=", pages[name])
    assert set(re.findall(r"url\((.)", pages[name])) <= {"#"}
    assert set(re.findall(r'href="(.)', pages[name])) <= {"#"}
    assert "prefers-color-scheme: dark" in pages[name]


@pytest.mark.parametrize("name", _FIGURES)
def test_ids_are_unique_and_references_find_them(name, pages):
    ids = re.findall(r'\bid="([^"]*)"', pages[name])
    references = re.findall(r'(?:url\(#|href="#|labelledby=")([^")]*)', pages[name])
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)


def test_the_table_holds_the_summarys_numbers_and_marks_the_baseline(pages):
    head, *rows = read_table(pages["window"], 0)
    assert head[:3] == ["window_size", "loss (nats a token)", "difference to the baseline"]
    for row, cell in zip(rows, example("window").arms[0].cells, strict=True):
        found = dict(zip(head, row, strict=True))
        loss, difference = cell.loss, cell.difference
        ends = f"{fixed(loss.low)} to {fixed(loss.high)}"
        assert found["loss (nats a token)"] == f"{fixed(loss.mean)} {ends}"
        if difference:
            shown = found["difference to the baseline"]
            assert shown.startswith(signed(difference.mean))
            assert shown.endswith(f"{signed(difference.low)} to {signed(difference.high)}")
            assert ("worse" in shown) == (difference.low > 0)
        assert found["parameters"] == "310 k"
        assert found["FLOPs a token"] == notation.decimal(cell.flops_per_token)
        assert found["KV cache"] == notation.binary(cell.kv_cache_bytes)
        assert found["tokens/s"] == notation.decimal(cell.tokens_per_second)
        assert found["effective speed-up"] == notation.times(cell.effective_speedup)
        assert found["seeds"] == "3"
        assert row[0].split()[0] == str(cell.overrides["model.window_size"])
        assert ("baseline" in row[0]) == cell.is_baseline


def test_the_tables_of_a_task_hold_accuracies(pages):
    head, *rows = read_table(pages["window"], 1)
    distances, *by_distance = read_table(pages["window"], 2)
    assert head[1:3] == ["accuracy", "by seed"]
    cells = example("window").arms[1].cells
    for row, at, cell in zip(rows, by_distance, cells, strict=True):
        share = cell.accuracy
        ends = f"{percent(share.low)} to {percent(share.high)}"
        assert row[1] == f"{percent(share.mean)} {ends}"
        assert row[2] == " · ".join(percent(one.mean) for one in cell.accuracy_by_seed.values())
        assert at[1:] == [percent(cell.by_distance[int(each)].mean) for each in distances[1:]]


def test_two_axes_make_a_table_of_their_own(pages):
    head, *rows = read_table(pages["two_axes"], 2)
    cells = {cell.name: cell for cell in example("two_axes").arms[0].cells}
    assert head == ["", "2", "4", "6"]
    for size, *shares in rows:
        names = [f"window_size={size},num_layers={depth}" for depth in head[1:]]
        assert shares == [percent(cells[name].accuracy.mean) for name in names]


def test_what_match_changed_stands_in_the_table():
    _, *rows = read_table(page.render(example("ratio")), 0)
    assert rows[0][-1] == "–"
    assert rows[1][-1] == "num_steps 300 → 290"


def test_steps_are_those_of_the_runs():
    results = example_results.window()
    for run in results["cells"]:
        run["num_steps"] = 600 if run["arm"] == "needle" else 150
    assert "150, 600 steps" in page.render(sweep_results(results))


def test_all_learning_rates_are_shown_and_the_best_is_marked():
    results = example_results.mqar()
    cell = results["summary"]["arms"][0]["cells"][0]
    cell["learning_rates"] = [
        {"learning_rate": 0.01, "loss": 1.25, "num_seeds": 3},
        {"learning_rate": 0.03, "loss": 1.5, "num_seeds": 3},
    ]
    head, row, *_ = read_table(page.render(sweep_results(results)), 1)
    assert head == ["cell", "0.01", "0.03"]
    assert row[1:] == ["1.2500 best", "1.5000"]


def test_a_sweep_with_nothing_finished_says_so(pages):
    assert "0 of 30 runs are finished, 30 still to run" in pages["pending"]


def test_a_failed_run_is_reported_with_its_error():
    text = page.render(example("failed"))
    assert "29 of 30 runs are finished, 1 failed" in text
    assert "out of memory &lt;b&gt;4 &amp; 5&lt;/b&gt;" in text
    assert "<b>" not in text


def test_hostile_names_stay_text(tmp_path):
    results = example_results.mqar()
    arm = results["summary"]["arms"][0]
    arm["arm"] = results["name"] = results["machine"] = HOSTILE
    for entry in [arm["cells"][0], results["cells"][0]]:
        entry["name"] = HOSTILE
    results["cells"][0] |= {"status": "failed", "error": HOSTILE, "arm": HOSTILE}
    page.write(sweep_results(results), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert") > 5
    assert "<h1>&lt;script&gt;" in text


def test_an_arms_name_cannot_leave_the_folder(tmp_path):
    results = example_results.mqar()
    results["summary"]["arms"][0]["arm"] = "../../up"
    page.write(sweep_results(results), tmp_path / "inside")
    assert {path.name for path in tmp_path.iterdir()} == {"inside"}


def test_equal_results_give_equal_bytes(folders, tmp_path):
    page.write(example("rope"), tmp_path)
    first, second = folders["rope"], tmp_path
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(files) == 2 * len(_FIGURES["rope"]) + 1
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_only_a_report_loads_what_draws_it():
    late = "{'matplotlib', 'scipy.stats', 'jinja2'} & set(sys.modules)"
    code = f"import sys, hybrid.ablate.command; sys.exit(bool({late}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_figures_of_earlier_results_go_and_nothing_else(folders):
    folder = folders["mqar"]
    for name in ("old_arm_loss_by_axis.svg", "old_arm_loss_by_axis.png", "mine.svg", "notes.txt"):
        (folder / "figures" / name).write_text("")
    figures.write(example("mqar"), folder)
    kept = {path.name for path in (folder / "figures").iterdir()}
    own = {f"{name}.{kind}" for name in _FIGURES["mqar"] for kind in ("svg", "png")}
    assert kept == own | {"mine.svg", "notes.txt"}
    for name in ("mine.svg", "notes.txt"):
        (folder / "figures" / name).unlink()


# --- Figures and arms ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "scale"),
    [("window", "number"), ("ratio", "share"), ("rope", "number"), ("two_axes", "grid")],
)
def test_the_axis_is_found_from_the_overrides(sweep, scale):
    assert view.arms(example(sweep))[0].scale == scale


def test_cells_go_from_most_to_least_local():
    results = example_results.ratio()
    results["summary"]["arms"][0]["cells"].reverse()
    names = [cell.name for cell in view.arms(sweep_results(results))[0].cells]
    assert names == ["all-local", "7:1", "5:1", "3:1", "1:1", "all-global"]


def test_families_keep_their_colour_and_line_style():
    styles = figures.cell_styles(view.arms(example("ratio"))[0])
    assert styles["all-local"]["color"] == MIXERS["L"].look.colour
    assert styles["all-global"]["color"] == MIXERS["G"].look.colour
    assert len({style["color"] for style in styles.values()}) == 6
    assert styles["all-local"]["linestyle"] != styles["all-global"]["linestyle"] == "-"


def test_figures_show_the_summarys_numbers():
    arm = view.arms(example("window"))[0]
    drawn = {}
    for kind, panels in figures.charts(arm).items():
        with figures.style():
            drawn[kind] = figures.figure_of(arm, kind, panels).axes

    def heights(axes):
        return [np.asarray(line.get_ydata()).tolist() for line in axes.lines]

    for cell in arm.others:
        assert [cell.loss.mean] in heights(drawn["loss_by_axis"][0])
        assert [cell.difference.mean] in heights(drawn["loss_by_axis"][1])
        positions = [bucket.difference.mean for bucket in cell.by_position]
        assert positions in heights(drawn["loss_by_position"][0])
    ticks = [tick.get_text() for tick in drawn["loss_by_axis"][1].get_xticklabels()]
    assert ticks == ["8", "16", "32", "64", "128", "256"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (notation.binary(90112), "88 KiB"),
        (notation.binary(1536 * 1024), "1.5 MiB"),
        (notation.decimal(999_700), "1 M"),
        (notation.decimal(34_712), "34.7 k"),
        (notation.signed(-0.00042), "−0.0004"),
        (notation.plain(0.25), "0.25"),
        (notation.plain([8, True, "LG"]), "8, True, LG"),
    ],
)
def test_numbers_are_written_as_people_do(written, expected):
    assert written == expected


# --- Statements ------------------------------------------------------------------------------


def statements(results, arm=""):
    """{what: what is said of it} of an arm."""
    return dict(line.split(": ", 1) for line in sentences.by_arm(sweep_results(results))[arm])


def said(results, arm, word):
    """The one statement that begins with a word; "" without one."""
    found = [text for what, text in statements(results, arm).items() if what.startswith(word)]
    assert len(found) < 2
    return found[0] if found else ""


def test_cells_are_worse_better_or_not_told_apart_by_their_intervals():
    results = example_results.window()
    difference = {"mean": -0.02, "low": -0.03, "high": -0.01, "num": 3}
    results["summary"]["arms"][0]["cells"][2]["difference"] = difference
    assert said(results, "text", "Worse than").startswith("8 (+0.0800, +0.0768 to +0.0832), 16 (")
    assert said(results, "text", "Better than") == "32 (−0.0200, −0.0300 to −0.0100)."
    same = said(results, "text", "Not told apart")
    assert same.startswith("64 (−0.0004, ")
    assert "a difference below 0.0048 would not show" in same


def test_the_cheapest_cache_that_is_not_worse_is_named_with_what_it_saves():
    results = example_results.window()
    cheapest = said(results, "text", "Least cache")
    assert cheapest.startswith("32 (88 KiB in place of 256 KiB at 256 tokens, 2.91 × less")
    cells = results["summary"]["arms"][0]["cells"]
    cells[0]["difference"] |= {"low": -0.5}  # the smallest window is merely uncertain
    assert said(results, "text", "Least cache").startswith("32 (")
    for cell in cells[2:4]:
        cell["difference"] |= {"mean": 0.01, "low": 0.005, "high": 0.015}
    assert not said(results, "text", "Least cache")


def test_differences_are_told_at_each_context_length():
    told = statements(example_results.rope())
    assert any(what.startswith("At 256 tokens, not told apart") for what in told)
    assert any(what.startswith("At 512 tokens, better") for what in told)


def test_far_repeats_are_told():
    assert said(example_results.window(), "text", "Worse on repeats 128 to 255").startswith("8 (")


def test_one_seed_makes_no_verdicts():
    results = example_results.one_seed()
    told = statements(results, "text")
    assert not [what for what in told if re.match("Worse|Better|Not told|Least", what)]
    assert said(results, "text", "No interval").startswith("8 (+0.0800), ")
    assert said(results, "text", "With these very parameters").startswith("8 (+0.0800, ")
    assert "not told apart" not in page.render(sweep_results(results))


def test_without_a_baseline_losses_are_told():
    losses = said(example_results.no_baseline(), "text", "No paired differences")
    assert losses.startswith("64 (1.9196, 1.8955 to 1.9437), 256 (")


def test_each_cell_may_have_a_baseline_of_its_own():
    results = example_results.window()
    results["summary"]["arms"][0]["cells"][0] |= {"is_baseline": True, "difference": None}
    assert said(results, "text", "Worse than its own baseline").startswith("16 (")
    rows = read_table(page.render(sweep_results(results)), 0)
    assert ["baseline" in row[0] for row in rows[1:]] == [True, False, False, False, True]


def test_accuracies_beyond_the_reach_are_held_against_chance():
    results = example_results.window()
    assert said(results, "needle", "Accuracy above").startswith("256 (98.8 %, ")
    assert "8 (38.2 %, " in said(results, "needle", "Accuracy not above")
    beyond = said(results, "needle", "Beyond the reach, at chance (6.2 %)")
    assert re.match(r"8 \(reach 29: 6\.\d %, .*within one window 98.8 %\)", beyond)
    arm = results["summary"]["arms"][1]
    arm["chance"] = 0.02
    assert said(results, "needle", "Beyond the reach, not at chance (2.0 %)")
    arm["chance"] = None
    assert "chance" not in " ".join(statements(results, "needle"))


def test_seeds_that_disagree_and_the_most_pairs_are_told():
    results = example_results.mqar()
    assert said(results, "", "Seeds disagree") == "all-local (55.5 %, 59.5 %, 63.5 %)."
    assert said(results, "", "At 16 pairs").startswith("all-local (39.5 %, ")
    assert not said(example_results.window(), "needle", "Seeds disagree")

"""Benchmarks of retrieval as evaluations of a sweep: asked once, gone on with, pooled, reported."""

import csv
import dataclasses
import json
import re
import shutil

import example_results
import pytest
import sweep_page
from from_json import sweep_results
from sweep_page import results

from hybrid import config as config_lib
from hybrid.ablate.__main__ import main
from hybrid.ablate.report import figures
from hybrid.ablate.report import page as page_lib
from hybrid.ablate.statistics.benchmarks import (
    BenchmarkScore,
    GroupScore,
    LengthScore,
    pooled,
    scored,
)
from hybrid.evaluation import intervals
from hybrid.evaluation.__main__ import main as evaluate
from hybrid.evaluation.intervals import Estimate
from hybrid.evaluation.retrieval import command
from hybrid.evaluation.retrieval.sample_log import Scored
from hybrid.pages import load_page
from hybrid.training import loop

SMALL = {
    "base.model.num_layers": 2,
    "base.model.d_model": 16,
    "base.model.num_heads": 2,
    "base.model.num_kv_heads": 2,
    "base.model.head_dim": 8,
    "base.model.ffn_dim": 32,
    "base.model.pattern": "LG",
    "base.model.window_size": 8,
    "base.model.vocab_size": 16,
    "base.data.needle.num_keys": 2,
    "base.data.needle.num_values": 2,  # a guess is often right
    "base.data.needle.num_eval_examples": 20,
    "base.training.context_length": 16,
    "base.training.batch_size": 4,
    "base.training.num_steps": 12,
    "base.training.tensorboard": False,
    "base.eval.batch_size": 3,
}
NEEDLES = {
    "page": "configs/needles.py:keys",
    "eval.retrieval.lengths": [12, 16],
    "eval.retrieval.depths": [0, 100],
    "eval.retrieval.num_samples": 3,
}
FEW = {**NEEDLES, "eval.retrieval.lengths": [16], "eval.retrieval.depths": [50]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def page(folder):
    """Writes a small form of configs/ablate_needles.py, changed by keys; returns its flag."""

    def write(name="page", **keys):
        own = {
            "cells": [{"name": "8"}, {"name": "2", "model.window_size": 2}],
            "baseline": {"name": "8"},
            "seeds": [0, 1],
            "evaluations": [["needles, all", NEEDLES]],
        }
        values = config_lib.updated(load_page("configs/ablate_needles.py"), SMALL)
        values |= {**own, "baseline": {"model.window_size": 8}, **keys}
        values["cells"] = keys.get("cells", [{"model.window_size": 8}, {"model.window_size": 2}])
        return sweep_page.write(folder, name, values)

    return write


def benchmarks_of(sweep):
    return [cell["benchmarks"] for cell in results(sweep)["summary"]["arms"][0]["cells"]]


FILE = "evaluations/needles,_all.json"


def test_every_run_is_asked_what_eval_py_would_ask(whole, folder):
    for cell in results(whole)["cells"]:
        run = whole / cell["workdir"]
        held = json.loads((run / FILE).read_text())
        assert [(each["length"], each["depth"]) for each in held["groups"]] == [
            (12, 0), (12, 100), (16, 0), (16, 100)
        ]  # fmt: skip
        assert cell["benchmarks"] == {"needles, all/score": held["score"]}
    output = folder / "alone.json"
    flags = ["--config=configs/needles.py:keys", "--config.eval.batch_size=3"]
    flags += [
        f"--config.{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in NEEDLES.items()
        if key != "page"
    ]
    assert evaluate([f"--workdir={run}", f"--output={output}", *flags]) == 0
    assert json.loads(output.read_text())["groups"] == held["groups"]
    own, alone = (run / FILE).with_suffix(".samples.jsonl"), folder / "alone.samples.jsonl"
    assert own.read_text().splitlines()[1:] == alone.read_text().splitlines()[1:]


def test_answers_of_all_seeds_are_pooled(whole):
    for cell, (benchmark,) in zip((8, 2), benchmarks_of(whole), strict=True):
        runs = [
            run for run in results(whole)["cells"] if run["overrides"]["model.window_size"] == cell
        ]
        held = [json.loads((whole / run["workdir"] / FILE).read_text()) for run in runs]
        mean = sum(each["score"] for each in held) / 2
        assert benchmark["score"]["mean"] == pytest.approx(mean)
        assert (benchmark["difference"] is None) == (cell == 8)
        for place, group in enumerate(benchmark["groups"]):
            right = sum(each["groups"][place]["score"] for each in held) / 200
            found = intervals.wilson(6 * right, 6)
            ends = [group["score"][name] for name in ("mean", "low", "high")]
            assert ends == pytest.approx([100 * found.mean, 100 * found.low, 100 * found.high])
            assert group["num_samples"] == 3
        assert [each["length"] for each in benchmark["by_length"]] == [12, 16]


def test_the_answers_are_neither_all_right_nor_all_wrong(whole):
    """Or the tests above could not fail."""
    scores = {
        group["score"]["mean"] for (each,) in benchmarks_of(whole) for group in each["groups"]
    }
    assert any(0 < score < 100 for score in scores)


def test_tables_and_figures_show_them(whole):
    with open(whole / "benchmarks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4
    assert list(rows[0]) == [
        *("arm", "name", "benchmark", "task", "length", "depth", "score", "low", "high"),
        *("seeds", "samples"),
    ]
    assert [rows[0][name] for name in ("benchmark", "task", "length", "depth", "seeds")] == [
        "needles, all", "needle_keys", "12", "0.0", "2"
    ]  # fmt: skip
    head = (whole / "results.csv").read_text().partition("\n")[0]
    assert '"needles, all/score"' in head
    shown = (whole / "report.html").read_text()
    for text in ("<h2>needles, all</h2>", "mean over seeds", "eedles, all, mean score of 100"):
        assert text in shown
    for name in ("score_by_length", "needles_all_needle_keys_score_by_depth"):
        svg = (whole / "figures" / f"{name}.svg").read_text()
        assert svg in shown
    assert svg.count(">depth of the needle<") == 2  # a map a cell


def test_a_finished_sweep_asks_nothing_again(whole, page, monkeypatch):
    before = results(whole)
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained again"))
    assert main([page(), f"--workdir={whole}"]) == 0
    assert results(whole) == before


def test_a_stopped_benchmark_goes_on_by_sample(whole, folder, page, monkeypatch):
    stopped = folder / "elsewhere" / "stopped"
    shutil.copytree(whole, stopped)  # another place: the samples are of the same model
    run = stopped / results(whole)["cells"][1]["workdir"]
    (run / FILE).unlink()
    log = (run / FILE).with_suffix(".samples.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:8]))  # seven samples of twelve: two groups and a part
    asked, reply = [], command.Replier.__call__

    def count(self, prompts):
        asked.append(len(prompts))
        return reply(self, prompts)

    monkeypatch.setattr(command.Replier, "__call__", count)
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained again"))
    assert main([page(), f"--workdir={stopped}"]) == 0
    assert asked == [3, 3]
    assert benchmarks_of(stopped) == benchmarks_of(whole)


def test_a_benchmark_may_be_added_and_its_failure_is_tried_again(
    whole, folder, page, monkeypatch, capsys
):
    grown = folder / "grown"
    shutil.copytree(whole, grown)
    added = page("added", evaluations=[["needles, all", NEEDLES], ["few", FEW]])
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained again"))
    with monkeypatch.context() as patch:
        patch.setattr(command, "measure", lambda *_: 1 / 0)
        assert main([added, f"--workdir={grown}"]) == 1
    assert {cell["status"] for cell in results(grown)["cells"]} == {"failed"}
    assert main([added, f"--workdir={grown}"]) == 0
    assert [[each["name"] for each in cell] for cell in benchmarks_of(grown)] == [
        ["needles, all", "few"]
    ] * 2
    assert benchmarks_of(grown)[1][0] == benchmarks_of(whole)[1][0]
    changed = page("changed", evaluations=[["needles, all", FEW]])
    assert main([changed, f"--workdir={grown}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: evaluations: differs")


def test_a_trained_run_is_asked_under_its_cells(whole, folder, page):
    trained = str(whole / results(whole)["cells"][0]["workdir"])
    target = folder / "trained"
    assert main([page("trained", trained=trained), f"--workdir={target}"]) == 0
    own = json.loads((whole / results(whole)["cells"][0]["workdir"] / FILE).read_text())
    cells = results(target)["cells"]
    held = [json.loads((target / cell["workdir"] / FILE).read_text()) for cell in cells]
    assert held[0]["groups"] == own["groups"]
    assert [cell["seed"] for cell in cells] == [0, 0]


# --- Refusals ----------------------------------------------------------------------------------

REFUSED = {
    "unknown key eval.retrieval.length": [["a", {"eval.retrieval.length": [8]}]],
    "a can't change model.window_size": [["a", {"model.window_size": 8}]],
    "must hold overrides": [["a", 3]],
    "must hold pairs": ["a"],
    "name one twice": [["a", NEEDLES], ["a", FEW]],
    "a: --config: no such file": [["a", "nowhere.py"]],
    "a: --config: has no variant": [["a", "configs/ruler.py:niah_single_9"]],
    "a does not fit cell window_size=8: eval.retrieval.tasks names no task": [
        ["a", {"eval.retrieval.num_samples": 3}]
    ],
    "eval.retrieval.tasks is not a known value": [
        ["a", {"eval.retrieval.tasks": ["niah_single_9"]}]
    ],
    "model.vocab_size is too small for the tokenizer's id": [
        ["a", {"eval.retrieval.tasks": ["niah_single_1"], "eval.retrieval.lengths": [4096]}]
    ],
    "eval.retrieval.squad_path is empty": [["a", {"eval.retrieval.tasks": ["qa_1"]}]],
    "eval.retrieval.chat_template is the template": [
        ["a", {**FEW, "eval.retrieval.chat_template": True}]
    ],
    "eval.long_perplexity.judge is set although": [
        ["a", {**FEW, "eval.long_perplexity.judge": "folder"}]
    ],
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_trains(folder, page, capsys, said):
    target = folder / "refused"
    assert main([page("refused", evaluations=REFUSED[said]), f"--workdir={target}"]) == 2
    shown, log = capsys.readouterr()
    assert log.startswith("error: evaluations")
    assert said in log
    assert (log.count("\n"), shown) == (1, "")
    assert not target.exists()


@pytest.mark.parametrize(
    ("cell", "lengths", "said"),
    [
        ({"model.learned_positions": 64}, [100], "eval.retrieval.lengths is longer than the table"),
        ({"model.vocab_size": 264}, [300], "eval.retrieval.lengths is too short for niah_single_1"),
    ],
)
def test_a_length_that_does_not_fit_one_cell_names_it(folder, page, capsys, cell, lengths, said):
    asked = {"eval.retrieval.tasks": ["niah_single_1"], "eval.retrieval.lengths": lengths}
    keys = {"cells": [{"name": "odd", **cell}], "baseline": None, "evaluations": [["a", asked]]}
    target = folder / "unfit"
    assert main([page("unfit", **keys), f"--workdir={target}"]) == 2
    log = capsys.readouterr().err
    assert log.startswith(f"error: evaluations: a does not fit cell odd: {said}")
    assert not target.exists()


def test_a_dry_run_says_what_they_cost(page, capsys):
    assert main([page("dry"), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    # 4 runs of 2 lengths, 2 depths and 3 samples; (12 + 16) tokens at 2 depths and 3 samples
    assert "needles, all (needle_keys): 48 samples of at most 672 tokens in all, 4 runs" in shown


# --- Report ------------------------------------------------------------------------------------


def with_benchmarks(*benchmarks):
    """Invented results whose cells were all asked these."""
    held = sweep_results(example_results.SWEEPS["ratio"]())
    arms = tuple(
        dataclasses.replace(
            arm,
            cells=tuple(dataclasses.replace(cell, benchmarks=benchmarks) for cell in arm.cells),
        )
        for arm in held.arms
    )
    return dataclasses.replace(held, arms=arms)


def benchmark(name, *groups):
    score, difference = Estimate(40.0, 30.0, 50.0), Estimate(-3.0, -5.0, -1.0)
    found = tuple(GroupScore(*group[:3], score, 9, group[3]) for group in groups)
    lengths = tuple(LengthScore(length, score) for length in sorted({each[1] for each in groups}))
    return BenchmarkScore(name, score, difference, lengths, found)


def test_tasks_and_floors_have_rows():
    floors = {"random": 21.0}
    groups = [(f"mrcr_{num}needle", 8192, None, floors) for num in (2, 4)]
    results_ = with_benchmarks(benchmark("mrcr", *groups))
    text = " ".join(re.sub("<[^>]+>", " ", page_lib.render(results_)).split())
    assert "mrcr by task; a floor is" in text
    assert text.count("mrcr_4needle 40.0 30.0 to 50.0 random reply 21.0") == len(
        results_.arms[0].cells
    )
    assert "−3.0 worse −5.0 to −1.0" in text
    assert "40.0, 30.0 to 50.0; worse than its baseline" in text
    plain = with_benchmarks(benchmark("vt", ("vt", 64, None, {}), ("vt", 128, None, {})))
    assert "by task" not in page_lib.render(plain)  # the table by length says it all


def test_results_with_benchmarks_are_read_back():
    results_ = with_benchmarks(benchmark("vt", ("vt", 64, None, {"random": 1.0})))
    again = sweep_results(json.loads(json.dumps(results_.to_dict())))
    assert again.arms == results_.arms


def test_names_alike_have_figures_of_their_own(tmp_path):
    table = [("needle_keys", 64, depth, {}) for depth in (0.0, 100.0)]
    drawn = figures.write(
        with_benchmarks(benchmark("a b", *table), benchmark("a,b", *table)), tmp_path
    )
    names = [each.name for each in drawn if each.kind == "score_by_depth"]
    assert names == ["a_b_0_needle_keys_score_by_depth", "a_b_1_needle_keys_score_by_depth"]


# --- Statistics --------------------------------------------------------------------------------


def samples(**scores):
    """Samples by task: scores by index, or a list of such by depth."""
    found = {}
    for task, by_depth in scores.items():
        for depth, row in enumerate(by_depth):
            key = task, 64, float(depth) if len(by_depth) > 1 else None
            found[key] = {i: Scored(i, score, "", (), 9) for i, score in enumerate(row)}
    return found


def test_right_or_wrong_answers_have_wilsons_interval():
    runs = [samples(vt=[[1, 0, 1, 1]]), samples(vt=[[1, 1, 1, 0]])]
    found, wilson = pooled(runs, [("vt", 64, None)]), intervals.wilson(6, 8)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (75, 100 * wilson.low, 100 * wilson.high)
    )


def test_graded_answers_are_clustered_by_sample():
    runs = [samples(mrcr=[[0.75, 0.5, 1.0]]), samples(mrcr=[[0.75, 1.0, 1.0]])]
    found = pooled(runs, [("mrcr", 64, None)])
    over_samples = intervals.mean_over_seeds([0.75, 0.75, 1.0])  # a mean a sample
    assert found.mean == pytest.approx(100 * over_samples.mean)
    assert found.low == pytest.approx(100 * over_samples.low)
    assert found.high == 100  # cut at the end of the scale
    alone = pooled([samples(mrcr=[[0.5]])], [("mrcr", 64, None)])
    assert (alone.mean, alone.low, alone.high) == (50, None, None)


def test_depths_of_one_sample_are_one_cluster():
    """Equal answers at every depth say no more than those at one."""
    row = [1, 0, 1, 0, 1, 1]
    table = samples(needle_keys=[row, row, row])
    found = pooled([table], list(table))
    once = intervals.mean_over_seeds(row)
    assert found.low == pytest.approx(100 * once.low)
    perfect = samples(needle_keys=[[1] * 6] * 3)
    assert pooled([perfect], list(perfect)).low == pytest.approx(100 * intervals.wilson(6, 6).low)


def test_scores_are_paired_over_seeds_and_are_of_all_runs():
    own = {0: {"a": samples(vt=[[1, 1]]), "b": {}}, 1: {"a": samples(vt=[[1, 0]])}}
    partner = {0: {"a": samples(vt=[[1, 0]])}, 1: {"a": samples(vt=[[0, 0]])}}
    (benchmark,) = scored(own, partner)  # not every run was asked b
    assert benchmark.name == "a"
    assert (benchmark.score.mean, benchmark.difference.mean) == (75, 50)
    assert (benchmark.difference.low, benchmark.difference.high) == pytest.approx((50, 50))
    assert scored(own, {})[0].difference is None
    assert scored({}, {}) == ()

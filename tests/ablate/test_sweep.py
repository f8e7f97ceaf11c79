"""A sweep runs what is left of it, survives stops and failures, and never mixes with another."""

import json
import shutil

import numpy as np
import pytest
import small_run
import sweep_page
from sweep_page import results
from training.tiny_run import experiment_of, snapshot

from hybrid import config as config_lib
from hybrid.ablate.__main__ import main
from hybrid.ablate.run.sweep import EVALUATION
from hybrid.data import pipeline
from hybrid.evaluation.target import evaluate_target, of_pretrained
from hybrid.evaluation.token_records import load_records
from hybrid.loading import api
from hybrid.process import signals
from hybrid.process.lock import WriterLock
from hybrid.training import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


def base_of(folder):
    return config_lib.to_dict(experiment_of(folder, training__num_steps=4, eval__every_steps=2))


@pytest.fixture(scope="module")
def page(folder):
    """Writes a sweep's page; keys are put over a sweep of two windows and two seeds."""
    base = base_of(folder)

    def write(name="page", **keys):
        values = {
            "base": base,
            "axes": [["model.window_size", [2, 32]]],
            "baseline": {"model.window_size": 32},
            "seeds": [0, 1],
            **keys,
        }
        return sweep_page.write(folder, name, values)

    return write


def without_times(sweep):
    """What must not depend on when and how fast a sweep ran."""
    return small_run.without_times((sweep / "results.json").read_text())


def test_every_run_is_a_workdir_with_its_raw_rows(whole):
    found = results(whole)["cells"]
    assert [(cell["name"], cell["seed"]) for cell in found] == [
        ("window_size=2", 0),
        ("window_size=2", 1),
        ("window_size=32", 0),
        ("window_size=32", 1),
    ]
    for cell in found:
        run = whole / cell["workdir"]
        assert cell["status"] == "finished"
        assert (run / "config.json").is_file()
        assert (run / "checkpoints" / "4").is_dir()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert cell["metrics"] == rows[-1]
        scores = load_records(run / "scores.npz")[32]
        assert len(scores.nll) == 200
        assert np.mean(scores.nll) == pytest.approx(cell["metrics"]["eval/loss"], rel=1e-6)
        assert cell["tokens"] == rows[-2]["tokens_seen"]
        assert [point[0] for point in cell["curve"]] == [2, 4]


def test_a_cells_numbers_are_those_of_train_py_alone(whole, folder):
    alone = experiment_of(
        folder, training__num_steps=4, eval__every_steps=2, model__window_size=2, training__seed=1
    )
    loop.run(alone, folder / "alone")
    rows = [json.loads(row) for row in (folder / "alone/metrics.jsonl").read_text().splitlines()]
    cell = results(whole)["cells"][1]
    assert cell["metrics"] == rows[-1]


def test_seeds_share_the_order_of_rows_across_cells(whole):
    """As far as counts tell: rows hold unequal numbers of predicted tokens."""
    first = {}
    for cell in results(whole)["cells"]:
        text = (whole / cell["workdir"] / "metrics.jsonl").read_text()
        first[cell["name"], cell["seed"]] = json.loads(text.splitlines()[0])["tokens_seen"]
    assert first["window_size=2", 0] == first["window_size=32", 0]
    assert first["window_size=2", 1] == first["window_size=32", 1]


def test_a_finished_sweep_runs_nothing_again(whole, page, monkeypatch):
    before = results(whole)
    times = {path: path.stat().st_mtime_ns for path in whole.rglob(EVALUATION)}
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("a finished run was trained again"))
    assert main([page(), f"--workdir={whole}"]) == 0
    assert results(whole) == before
    assert {path: path.stat().st_mtime_ns for path in whole.rglob(EVALUATION)} == times


def test_a_stopped_sweep_ends_with_the_same_results(whole, folder, page, monkeypatch):
    stopped = folder / "stopped"
    train, num = loop.Run.flush_metrics, iter(range(1000))

    def flush_metrics(self, newest=None):
        if newest and next(num) in (7, 16):  # in the second run, and later again
            raise signals.Preempted("SIGTERM: in a test")
        train(self, newest)

    monkeypatch.setattr(loop.Run, "flush_metrics", flush_metrics)
    assert main([page(), f"--workdir={stopped}"]) == 143
    assert not (stopped / "report.html").exists()
    assert main([page(), f"--workdir={stopped}"]) == 143
    assert main([page(), f"--workdir={stopped}"]) == 0
    assert without_times(stopped) == without_times(whole)


def test_a_failed_cell_is_reported_and_tried_again(whole, folder, page, monkeypatch, capsys):
    broken = folder / "broken"
    train = loop.run

    def fail(experiment, workdir, progress):
        if experiment.model.window_size == 2 and experiment.training.seed == 1:
            raise RuntimeError("out of luck\nand memory")
        train(experiment, workdir, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", fail)
        assert main([page(), f"--workdir={broken}"]) == 1
    found = results(broken)
    assert [cell["status"] for cell in found["cells"]] == ["finished", "failed", *["finished"] * 2]
    assert found["cells"][1]["error"] == "RuntimeError: out of luck and memory"
    assert found["cells"][1]["metrics"] is None
    assert "out of luck" in (broken / "report.html").read_text()
    assert "failed: window_size=2, seed 1" in capsys.readouterr().err
    assert main([page(), f"--workdir={broken}"]) == 0
    assert without_times(broken) == without_times(whole)


def test_seeds_may_be_added(whole, folder, page):
    grown = folder / "grown"
    shutil.copytree(whole, grown)
    assert main([page("grown_page", seeds=[0, 1, 2]), f"--workdir={grown}"]) == 0
    assert len(results(grown)["cells"]) == 6


@pytest.fixture
def edited(folder):
    """The texts of all sweeps with one of them edited, for one test."""
    text = folder / "texts" / "0.txt"
    was = text.read_text()
    text.write_text(was + " edited")
    yield
    text.write_text(was)


@pytest.mark.parametrize("keys", [{}, {"seeds": [0, 1, 2]}])
def test_cells_of_another_text_are_refused(whole, page, edited, capsys, keys):
    before = snapshot(whole)
    assert main([page("edited_page", **keys), f"--workdir={whole}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: base.data.paths: the ")
    held = json.loads((whole / "sweep.json").read_text())["texts"]["runs/window_size=2"]
    assert any(fingerprint in line for fingerprint in held.values())
    assert snapshot(whole) == before


def test_a_text_that_changes_while_a_sweep_runs_fails_the_cells_behind(folder, page, monkeypatch):
    """As an edit between the first cell and the second."""
    mixed, train, num = folder / "mixed", loop.run, iter(range(9))
    texts = folder / "texts_mixed"
    shutil.copytree(folder / "texts", texts)
    keys = {"base.data.paths": [str(texts / "*.txt")], "seeds": [0]}

    def run(experiment, workdir, progress):
        if next(num) == 1:
            (texts / "0.txt").write_text("alpha beta gamma")
        train(experiment, workdir, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", run)
        base = config_lib.updated({"base": base_of(folder)}, keys)
        assert main([page("mixed_page", **base), f"--workdir={mixed}"]) == 1
    first, second = results(mixed)["cells"]
    assert (first["status"], second["status"]) == ("finished", "failed")
    assert "is another than that of the sweep's cells" in second["error"]


def test_a_moved_text_is_the_same_text(whole, folder, page):
    shutil.copytree(folder / "texts", folder / "texts_moved")
    keys = {"base.data.paths": [str(folder / "texts_moved" / "*.txt")]}
    base = config_lib.updated({"base": base_of(folder)}, keys)["base"]
    assert main([page("moved_page", base=base), f"--workdir={whole}"]) == 0
    assert main([page(), f"--workdir={whole}"]) == 0


def test_a_sweep_in_use_is_refused(whole, page, capsys):
    with WriterLock(whole):
        assert main([page(), f"--workdir={whole}"]) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_cells_are_scored_at_the_step_of_the_first_start(whole, folder, page, capsys):
    run = folder / "goes_on"
    shutil.copytree(whole / "runs" / "window_size=32" / "seed=1", run)
    words = page("pinned_page", trained=str(run), axes=[["model.window_size", [1, 32]]])
    pinned = folder / "pinned"
    assert main([words, f"--workdir={pinned}"]) == 0
    expected = results(pinned)["cells"]
    keys = {"training__num_steps": 6, "eval__every_steps": 2, "training__seed": 1}
    loop.run(experiment_of(folder, model__window_size=32, **keys), run)
    shutil.rmtree(pinned / "runs" / "window_size=1")
    assert main([words, f"--workdir={pinned}"]) == 0
    assert [cell["metrics"] for cell in results(pinned)["cells"]] == [
        cell["metrics"] for cell in expected
    ]
    shutil.rmtree(run / "checkpoints" / "4")
    assert main([words, f"--workdir={pinned}"]) == 2
    assert "lacks the checkpoint that the cells of --workdir are scored at" in (
        capsys.readouterr().err
    )


def test_report_only_draws_what_is_there(whole, folder, monkeypatch):
    partial = folder / "partial"
    shutil.copytree(whole, partial)
    shutil.rmtree(partial / "runs" / "window_size=32" / "seed=1")
    (partial / "report.html").unlink()
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained in a report"))
    monkeypatch.setattr(pipeline, "open_held_out", lambda *_, **__: pytest.fail("read a text"))
    assert main(["--report_only", f"--workdir={partial}"]) == 0
    assert (partial / "report.html").is_file()
    found = results(partial)["cells"]
    assert [cell["status"] for cell in found] == [*["finished"] * 3, "pending"]


def test_dry_run_prints_the_cells_and_creates_nothing(folder, page, capsys):
    assert main([page(), "--dry_run", f"--workdir={folder / 'dry'}"]) == 0
    table = capsys.readouterr().out
    assert "2 cells × 2 seeds = 4 runs" in table
    assert "window_size=32" in table
    assert not (folder / "dry").exists()


def test_a_trained_run_is_evaluated_under_other_windows(whole, folder, page):
    run = whole / "runs" / "window_size=32" / "seed=1"
    words = page("trained_page", trained=str(run), axes=[["model.window_size", [1, 32]]])
    assert main([words, f"--workdir={folder / 'trained'}"]) == 0
    narrow, same = results(folder / "trained")["cells"]
    assert same["seed"] == 1
    own = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert same["metrics"]["eval/loss"] == own["eval/loss"]
    assert narrow["metrics"]["eval/loss"] > own["eval/loss"]
    assert not list((folder / "trained").rglob("checkpoints"))


def test_a_pretrained_folder_is_evaluated_under_other_windows(whole, folder, page):
    run = whole / "runs" / "window_size=32" / "seed=1"
    api.save_pretrained(api.load(run), folder / "exported")
    narrow = {"axes": [["model.window_size", [1, 32]]], "baseline": None}
    words = page("pretrained_page", trained=str(folder / "exported"), **narrow)
    assert main([words, f"--workdir={folder / 'pretrained'}"]) == 0
    cells = results(folder / "pretrained")["cells"]
    target = of_pretrained(str(folder / "exported"), None, _text_of(run))
    assert [cell["num_steps"] for cell in cells] == [None, None]
    assert cells[1]["metrics"]["eval/loss"] == pytest.approx(evaluate_target(target).loss, abs=1e-6)
    assert cells[0]["metrics"]["eval/loss"] > cells[1]["metrics"]["eval/loss"]


def _text_of(run):
    """The overrides under which a Hugging Face folder is scored on a run's text."""
    config = json.loads((run / "config.json").read_text())
    keys = {"data.source": "text", "data.paths": ",".join(config["data"]["paths"])}
    length = str(config["training"]["context_length"])
    return keys | {"eval.context_length": length, "eval.max_tokens": "200"}


REFUSALS = [
    ("base.training.num_stps", ["--config.base.training.num_stps=3"]),
    ("base.training.num_steps", ["--config.base.training.num_steps=0"]),
    ("seeds", ["--config.seeds=1,1"]),
    ("match", ["--config.match=time"]),
    ("trained", ["--config.trained=nowhere"]),
]


@pytest.mark.parametrize(("key", "words"), REFUSALS)
def test_a_bad_sweep_is_refused_before_anything_is_made(folder, page, capsys, key, words):
    new = folder / "refused"
    assert main([page(), f"--workdir={new}", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {key}: ")
    assert line.count("\n") == 1
    assert not new.exists()


CELLS = [
    ("data.source", {"axes": [["data.source", ["text", "web"]]]}),
    ("data.paths", {"axes": [["data.paths", [["nowhere/*.txt"]]]]}),
    ("model.vocab_size", {"axes": [["model.vocab_size", [264, 100]]]}),
    ("training.batch_size", {"axes": [["mesh.data", [1]], ["training.batch_size", [4, 0]]]}),
    ("mesh", {"axes": [["mesh.data", [1, 3]]]}),
]


@pytest.mark.parametrize(("key", "keys"), CELLS)
def test_a_cell_that_cannot_be_built_stops_the_sweep_at_once(folder, page, capsys, key, keys):
    new = folder / "refused"
    words = page("refused_page", baseline=None, **keys)
    assert main([words, f"--workdir={new}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {key}: ")
    assert not new.exists()


def test_the_folder_of_another_sweep_is_refused(whole, page, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    other = page("other_page", axes=[["model.window_size", [4, 32]]])
    assert main([other, f"--workdir={whole}"]) == 2
    assert capsys.readouterr().err.startswith("error: axes: differs from the sweep in --workdir")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_the_folder_of_something_else_is_refused(whole, page, capsys):
    run = whole / "runs" / "window_size=32" / "seed=0"
    assert main([page(), f"--workdir={run}"]) == 2
    assert capsys.readouterr().err.startswith("error: --workdir: holds something else")
    assert main(["--report_only", f"--workdir={run}"]) == 2
    assert capsys.readouterr().err.startswith("error: --workdir: holds no sweep.json")

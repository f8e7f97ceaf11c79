"""The summary of a sweep: recomputed from raw rows by an independent script, and its rules."""

import csv
import dataclasses
import json
import pathlib

import from_json
import numpy as np
import pytest
import recompute
import synthetic_sweep

from hybrid.ablate.run.run_result import RunResult
from hybrid.ablate.statistics import summary
from hybrid.evaluation.result import to_json
from hybrid.evaluation.token_records import TokenRecords


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """(folder, results.json's dict) of the synthetic sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, synthetic_sweep.make(folder).to_dict()


def cells_of(results, arm=""):
    found = next(entry for entry in results["summary"]["arms"] if entry["arm"] == arm)
    return {cell["name"]: cell for cell in found["cells"]}


# --- Recomputed --------------------------------------------------------------------------------


def test_every_figure_agrees_with_the_raw_rows(sweep):
    assert recompute.check(sweep[0]) == []


def test_the_recomputed_summary_is_full(sweep):
    """What is compared is there: nothing agrees by being absent."""
    text, needle = sweep[1]["summary"]["arms"]
    assert (text["context_lengths"], needle["context_lengths"]) == ([32, 64, 16], [32, 64])
    cell = text["cells"][0]
    full = ("loss", "difference", "difference_documents", "by_context", "by_position", "repeats")
    assert all(cell[name] for name in (*full, "effective_speedup"))
    assert all(bucket["difference"]["low"] is not None for bucket in cell["by_position"][:6])
    assert all(needle["cells"][0][name] for name in ("accuracy", "by_distance", "by_num_pairs"))


def test_the_script_imports_nothing_of_the_package():
    code = pathlib.Path(recompute.__file__).read_text()
    assert "import hybrid" not in code
    assert "from hybrid" not in code


# --- Rules ---------------------------------------------------------------------------------------


def run(window, seed=0, loss=1.0, rate=None, **fields) -> RunResult:
    values = {
        "name": f"window_size={window}",
        "arm": "",
        "overrides": {"model.window_size": window},
        "seed": seed,
        "learning_rate": rate,
        "status": "finished",
        "metrics": {"step": 8, "eval/loss": loss},
        "train_flops": 100.0,
        "kv_cache_bytes": window,
    }
    return RunResult(**{**values, **fields})


def summarized(runs, baseline=None, records_of=lambda run: {}):
    (arm,) = to_json(summary.summarize(runs, records_of, baseline))
    return arm, {cell["name"]: cell for cell in arm["cells"]}


def test_the_best_learning_rate_has_the_lowest_mean_and_all_are_listed():
    losses = {0.1: (1.0, 3.0), 0.2: (1.5, 1.5), 0.3: (1.6, 1.6)}
    runs = [run(8, s, loss, rate) for rate, pair in losses.items() for s, loss in enumerate(pair)]
    cell = summarized(runs)[1]["window_size=8"]
    assert (cell["learning_rate"], cell["num_seeds"], cell["loss"]["mean"]) == (0.2, 2, 1.5)
    assert [rate["loss"] for rate in cell["learning_rates"]] == [2.0, 1.5, 1.6]


def test_a_learning_rate_that_diverges_for_a_seed_is_not_chosen_for_its_other():
    runs = [run(8, 0, 1.0, 0.3), run(8, 1, None, 0.3), run(8, 0, 2.0, 0.1), run(8, 1, 2.0, 0.1)]
    cell = summarized(runs)[1]["window_size=8"]
    assert cell["learning_rate"] == 0.1
    assert [rate["num_seeds"] for rate in cell["learning_rates"]] == [1, 2]


def test_pairing_uses_the_seeds_that_both_have():
    runs = [run(64, 0, 1.0), run(64, 2, 3.0), run(64, 5, 0.0)]
    runs += [run(8, 1, 9.0), run(8, 2, 3.5), run(8, 0, 1.5)]
    difference = summarized(runs)[1]["window_size=8"]["difference"]
    assert difference == {"mean": 0.5, "low": 0.5, "high": 0.5, "num": 2}


def test_one_seed_gives_means_without_intervals():
    cell = summarized([run(64), run(8, loss=1.5)])[1]["window_size=8"]
    assert cell["loss"] == {"mean": 1.5, "low": None, "high": None, "std": None}
    assert cell["difference"] == {"mean": 0.5, "low": None, "high": None, "num": 1}


def test_the_baseline_is_the_first_cell_unless_named():
    runs = [run(64), run(8, loss=2.0)]
    assert summarized(runs)[0]["baseline"] == "window_size=64"
    arm, cells = summarized(runs, {"model.window_size": 8})
    assert arm["baseline"] == "window_size=8"
    assert cells["window_size=64"]["difference"]["mean"] == -1
    assert cells["window_size=8"]["is_baseline"]
    assert cells["window_size=8"]["difference"] is None


def grid(keys):
    """Cells of two axes: window by distance."""
    return [
        dataclasses.replace(
            run(window, loss=window / distance),
            name=f"window_size={window},distance={distance}",
            overrides={"model.window_size": window, "data.distance": (distance,)},
        )
        for window, distance in keys
    ]


def test_on_two_axes_a_cell_is_paired_with_the_baseline_of_its_own_row():
    runs = grid([(8, 1), (64, 1), (8, 2), (64, 2)])
    arm, cells = summarized(runs, {"model.window_size": 64})
    assert arm["baseline"] is None
    assert cells["window_size=8,distance=2"]["partner"] == "window_size=64,distance=2"
    assert cells["window_size=8,distance=2"]["difference"]["mean"] == 4 - 32


def test_a_cell_with_just_the_baselines_overrides_is_everyones_partner():
    runs = grid([(8, 1), (64, 1), (8, 2), (64, 2)])
    arm, cells = summarized(runs, {"data.distance": [1], "model.window_size": 64.0})
    assert arm["baseline"] == "window_size=64,distance=1"
    assert {cell["partner"] for cell in cells.values()} == {arm["baseline"]}


def test_a_named_baseline_that_is_a_cell_needs_no_other_of_its_kind():
    """In a list of cells the others may set keys that the baseline doesn't."""
    runs = [
        dataclasses.replace(run(8), overrides={"model.pattern": "G"}, name="global"),
        dataclasses.replace(run(8), overrides={"model.pattern": "L", "model.window_size": 8}),
    ]
    arm, cells = summarized(runs, {"model.pattern": "G"})
    assert arm["baseline"] == "global"
    assert cells["window_size=8"]["difference"]["mean"] == 0


def test_without_a_finished_baseline_there_are_no_differences():
    failed = run(64, status="failed", metrics=None, error="no memory")
    _, cells = summarized([failed, run(8)], {"model.window_size": 64})
    assert list(cells) == ["window_size=8"]
    cell = cells["window_size=8"]
    assert (cell["difference"], cell["effective_speedup"]) == (None, None)
    assert summarized([run(8)], {"model.window_size": 3})[1]["window_size=8"]["partner"] is None


def test_an_arm_without_a_finished_run_is_left_out():
    assert summary.summarize([run(8, status="pending", metrics=None)], dict, None) == ()


def test_effective_speedup_is_the_baselines_compute_over_the_cells():
    curve = [[1, 10.0, 4.0], [2, 100.0, 2.0], [3, 1000.0, 1.0]]
    runs = [run(64, seed, 1.0, curve=curve, train_flops=1000.0) for seed in (0, 1)]
    runs += [run(8, seed, 3.0, train_flops=50.0) for seed in (0, 1)]
    runs += [run(4, seed, 0.5, train_flops=50.0) for seed in (0, 1)]
    cells = summarized(runs)[1]
    assert cells["window_size=8"]["effective_speedup"] == pytest.approx(10**1.5 / 50)
    assert cells["window_size=64"]["effective_speedup"] == 1
    assert cells["window_size=4"]["effective_speedup"] is None


def test_the_mean_curve_keeps_the_steps_that_all_seeds_have():
    runs = [
        run(8, 0, curve=[[1, 10, 4.0], [2, 20, None], [3, 30, 1.0]]),
        run(8, 1, curve=[[0, 0, 9.0], [1, 10, 2.0], [2, 20, 1.0], [3, 30, 1.0]]),
    ]
    assert summary.mean_curve(tuple(runs)) == ([10, 30], [3.0, 1.0])


def test_the_front_holds_cells_that_none_beats_in_both():
    runs = [run(8, loss=3.0), run(16, loss=3.5), run(32, loss=2.0), run(64, loss=2.0)]
    runs.append(run(31, loss=2.5, kv_cache_bytes=32))
    cells = summarized(runs)[1]
    on_front = [name for name, cell in cells.items() if cell["on_front"]]
    assert on_front == ["window_size=8", "window_size=32", "window_size=64", "window_size=31"]


def test_speed_is_the_median_over_seeds():
    runs = [run(8, seed, tokens_per_second=speed) for seed, speed in enumerate((5.0, 1.0, 9.0))]
    assert summarized([*runs, run(8, 3)])[1]["window_size=8"]["tokens_per_second"] == 5


# --- Token figures -------------------------------------------------------------------------------


def scores(nll, document, position=None, **columns) -> TokenRecords:
    position = np.zeros(len(nll)) if position is None else position
    return TokenRecords(
        nll=np.asarray(nll, np.float32),
        position=np.asarray(position, np.int32),
        document=np.asarray(document, np.int32),
        **columns,
    )


def test_document_differences_average_over_the_common_seeds_first():
    by_run = {
        (64, 0): scores([1, 1, 1], [0, 0, 1]),
        (64, 1): scores([1, 1, 1], [0, 0, 1]),
        (8, 0): scores([2, 2, 4], [0, 0, 1]),
        (8, 1): scores([0, 2, 2], [0, 0, 1]),
        (8, 2): scores([90, 90, 90], [0, 0, 1]),
    }
    runs = [run(window, seed) for window, seed in by_run]
    found = summarized(
        runs, records_of=lambda one: {32: by_run[one.overrides["model.window_size"], one.seed]}
    )[1]["window_size=8"]["difference_documents"]
    # Differences a token 0, 1, 2: mean 1; centred sums of documents -1 and 1.
    half = 12.706204736174698 * np.sqrt(2 / 1 * 2 / 9)
    assert (found["mean"], found["num_documents"]) == (1, 2)
    np.testing.assert_allclose([found["low"], found["high"]], [1 - half, 1 + half], rtol=1e-9)


def test_cells_that_scored_different_tokens_are_not_paired_by_token():
    by_window = {64: scores([1, 1], [0, 0]), 8: scores([1, 1], [0, 1])}
    cell = summarized(
        [run(64), run(8)],
        records_of=lambda one: {32: by_window[one.overrides["model.window_size"]]},
    )[1]["window_size=8"]
    assert cell["difference_documents"] is None
    assert cell["by_position"][0]["difference"] is None
    assert cell["difference"]["mean"] == 0


def test_seeds_of_a_cell_that_scored_different_tokens_are_an_error():
    by_seed = [scores([1, 1], [0, 0]), scores([1, 1], [0, 1])]
    with pytest.raises(ValueError, match="different tokens"):
        summarized([run(8, 0), run(8, 1)], records_of=lambda one: {32: by_seed[one.seed]})


def test_position_buckets_double_and_repeats_leave_out_tokens_that_repeat_nothing():
    one = scores(
        [1, 2, 3, 4, 5, 6],
        [0] * 6,
        [0, 1, 2, 3, 4, 5],
        repeat_distance=np.array([0, 0, 1, 2, 0, 3]),
    )
    cell = summarized([run(8)], records_of=lambda run: {8: one})[1]["window_size=8"]

    def rows(entries):
        return [(e["start"], e["end"], e["loss"]["mean"], e["num_tokens"]) for e in entries]

    assert rows(cell["by_position"]) == [(0, 1, 1, 1), (1, 2, 2, 1), (2, 4, 3.5, 2), (4, 8, 5.5, 2)]
    assert rows(cell["repeats"]) == [(1, 2, 3, 1), (2, 4, 5, 2)]


def test_losses_are_of_the_first_length_and_positions_of_the_longest(sweep):
    cell = cells_of(sweep[1])["window_size=4"]
    first = cell["by_context"][0]
    assert first["context_length"] == 32
    assert first["loss"]["mean"] == pytest.approx(cell["loss"]["mean"], abs=1e-6)
    assert cell["by_position"][-1]["end"] == 64


def test_tasks_have_accuracies_and_no_position_buckets(sweep):
    cell = cells_of(sweep[1], "needle")["window_size=4"]
    assert (cell["by_position"], cell["repeats"]) == ([], [])
    assert [entry["distance"] for entry in cell["by_distance"]] == [2, 8, 20, 30]
    near, far = cell["by_distance"][0], cell["by_distance"][-1]
    assert near["low"] > far["high"]
    assert cell["accuracy"]["num"] == 3 * 40


def test_scores_are_read_cell_by_cell_and_the_baselines_once():
    order = []

    def records_of(one):
        order.append((one.overrides["model.window_size"], one.seed))
        return {}

    runs = [run(window, seed) for window in (8, 16, 64, 32) for seed in (0, 1)]
    summarized(runs, {"model.window_size": 64}, records_of)
    assert order == [(window, seed) for window in (64, 8, 16, 32) for seed in (0, 1)]


# --- Files ---------------------------------------------------------------------------------------


def test_results_json_holds_runs_and_no_nan(sweep):
    text = (sweep[0] / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    told = json.loads(text)
    assert told == sweep[1]
    assert from_json.sweep_results(told).to_dict() == told
    assert to_json({"a": (1, float("nan"))}) == {"a": [1, None]}


def test_results_csv_has_a_line_a_run_and_a_column_an_override(sweep):
    with open(sweep[0] / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = sweep[1]["cells"]
    assert len(rows) == len(cells)
    assert list(rows[0])[:6] == [
        *("name", "arm", "seed", "learning_rate", "status"),
        "model.window_size",
    ]
    for row, cell in zip(rows, cells, strict=True):
        assert row["model.window_size"] == str(cell["overrides"]["model.window_size"])
        loss = cell["metrics"]["eval/loss"] if cell["metrics"] else ""
        assert row["eval/loss"] == str(loss)
    assert {row["error"] for row in rows} == {"", "out of memory"}

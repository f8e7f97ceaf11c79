"""results.json and results.csv: all runs of a sweep and their summary, for programs.

benchmarks.csv, of sweeps that ask benchmarks, has a line a cell and group, over seeds.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.ablate.run.evaluations import evaluations
from hybrid.ablate.run.run_result import RunResult, read_run
from hybrid.ablate.run.sweep import SCORES, Sweep
from hybrid.ablate.statistics.benchmarks import Asked
from hybrid.ablate.statistics.cell_summary import ArmSummary
from hybrid.ablate.statistics.summary import summarize
from hybrid.evaluation.result import to_json
from hybrid.evaluation.retrieval import sample_log
from hybrid.evaluation.token_records import TokenRecords, load_records
from hybrid.process.files import write_json, write_whole
from hybrid.workdir import provenance

RESULTS_JSON, RESULTS_CSV = "results.json", "results.csv"
BENCHMARKS_CSV = "benchmarks.csv"
_BENCHMARK_COLUMNS = (
    *("arm", "name", "benchmark", "task", "length", "depth"),
    *("score", "low", "high", "seeds", "samples"),
)
_FIRST = ("name", "arm", "seed", "learning_rate", "status")
_LAST = (
    *("task", "num_params", "flops_per_token", "num_steps", "tokens", "train_flops"),
    *("kv_cache_bytes", "cache_context", "reach", "letters", "tokens_per_second"),
    *("changed", "workdir", "error"),
)


@dataclasses.dataclass(frozen=True)
class SweepResults:
    """What results.json holds.

    Attributes:
      settings: name, match, baseline, axes, seeds, learning_rates, trained and machine.
      runs: its `cells`, finished or not.  arms: its `summary`.
    """

    settings: Mapping[str, Any]
    runs: tuple[RunResult, ...]
    arms: tuple[ArmSummary, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return to_json({**self.settings, "cells": self.runs, "summary": {"arms": self.arms}})


def collect(sweep: Sweep) -> SweepResults:
    """The results of a sweep as its folder stands."""
    runs = tuple(read_run(sweep, run) for run in sweep.runs)
    config = sweep.config

    def records_of(run: RunResult) -> Mapping[int, TokenRecords]:
        path = sweep.folder / run.workdir / SCORES
        return load_records(path) if path.is_file() else {}

    def asked_of(run: RunResult) -> Asked:
        folder = sweep.folder / run.workdir
        return {each.name: sample_log.read(each.samples(folder)) for each in evaluations(config)}

    settings = {
        "name": sweep.name,
        "match": config.match,
        "baseline": config.baseline or None,
        "axes": config.axes,
        "seeds": config.seeds,
        "learning_rates": config.learning_rates,
        "trained": config.trained or None,
        "machine": _machine(sweep),
    }
    arms = summarize(runs, records_of, config.baseline or None, asked_of)
    return SweepResults(settings, runs, arms)


def _machine(sweep: Sweep) -> str:
    """The machine of the first run: it may differ from that which draws the report."""
    for run in sweep.runs:
        held = provenance.read_json(sweep.folder / run.folder / provenance.PROVENANCE)
        if held:
            return f"{held['device_count']} × {held['device_kind']}, {held['thread_count']} threads"
    return ""


def write(results: SweepResults, folder: pathlib.Path) -> None:
    """Writes results.json, results.csv and benchmarks.csv, each whole or not at all."""
    values = results.to_dict()
    write_json(folder / RESULTS_JSON, values, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / RESULTS_CSV, to_csv(results.runs))
    if any(cell.benchmarks for arm in results.arms for cell in arm.cells):
        write_whole(folder / BENCHMARKS_CSV, benchmarks_csv(results.arms))


def to_csv(runs: Sequence[RunResult]) -> str:
    """A line a run: what it is, each override as a column, metrics, costs; unknown is empty."""
    rows, columns = [], dict.fromkeys(_FIRST)
    for part in ("overrides", "metrics", "benchmarks"):
        columns |= dict.fromkeys(key for run in runs for key in getattr(run, part) or {})
    for run in runs:
        row = to_json(run)
        row |= row["overrides"] | (row["metrics"] or {}) | row["benchmarks"]
        rows.append([_csv_value(row.get(name)) for name in (*columns, *_LAST)])
    return _csv([[*columns, *_LAST], *rows])


def benchmarks_csv(arms: Sequence[ArmSummary]) -> str:
    """A line a cell, benchmark, task, length and depth: the score of all seeds, its interval."""
    rows = [
        [
            *(arm.arm, cell.name, benchmark.name, group.task, group.length, group.depth),
            *(group.score.mean, group.score.low, group.score.high),
            *(cell.num_seeds, group.num_samples),
        ]
        for arm in arms
        for cell in arm.cells
        for benchmark in cell.benchmarks
        for group in benchmark.groups
    ]
    return _csv([_BENCHMARK_COLUMNS, *([_csv_value(value) for value in row] for row in rows)])


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _csv_value(value: Any) -> Any:
    if value is None or value == {}:
        return ""
    return json.dumps(value) if isinstance(value, bool | list | dict) else value

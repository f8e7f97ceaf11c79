"""results.json and results.csv: all runs of a sweep and their summary, for programs."""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid.ablate.run.run_result import RunResult, read_run
from hybrid.ablate.run.sweep import SCORES, Sweep
from hybrid.ablate.statistics.cell_summary import ArmSummary
from hybrid.ablate.statistics.summary import summarize
from hybrid.evaluation.scores import Scores, load_scores
from hybrid.process.files import write_whole
from hybrid.workdir import provenance

RESULTS_JSON, RESULTS_CSV = "results.json", "results.csv"
# Mappings that are lists in the file: the name that their keys have in each entry.
KEYS = {"accuracy_by_seed": "seed", "by_distance": "distance", "by_num_pairs": "num_pairs"}
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

    def scores_of(run: RunResult) -> Mapping[int, Scores]:
        path = sweep.folder / run.workdir / SCORES
        return load_scores(path) if path.is_file() else {}

    return SweepResults(_settings(sweep), runs, summarize(runs, scores_of, sweep.config.baseline))


def _settings(sweep: Sweep) -> dict[str, Any]:
    config = sweep.config
    return {
        "name": sweep.name,
        "match": config.match,
        "baseline": config.baseline or None,
        "axes": config.axes,
        "seeds": config.seeds,
        "learning_rates": config.learning_rates,
        "trained": config.trained or None,
        "machine": _machine(sweep),
    }


def _machine(sweep: Sweep) -> str:
    """The machine of the first run: it may differ from that which draws the report."""
    for run in sweep.runs:
        held = provenance.read_json(sweep.folder / run.folder / provenance.PROVENANCE)
        if held:
            return f"{held['device_count']} × {held['device_kind']}, {held['thread_count']} threads"
    return ""


def write(results: SweepResults, folder: pathlib.Path) -> None:
    """Writes results.json and results.csv into `folder`, each whole or not at all."""
    text = json.dumps(results.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / RESULTS_JSON, text)
    write_whole(folder / RESULTS_CSV, to_csv(results.runs))


def to_json(value: Any) -> Any:
    """Plain Python of dataclasses: lists for tuples, None for numbers that JSON can't write."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _field(name, getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _field(name: str, value: Any) -> Any:
    if name not in KEYS:
        return to_json(value)
    return [{KEYS[name]: key, **to_json(entry)} for key, entry in value.items()]


def to_csv(runs: Sequence[RunResult]) -> str:
    """A line a run: what it is, each override as a column, metrics, costs; unknown is empty."""
    entries = [to_json(run) for run in runs]
    columns: dict[str, None] = dict.fromkeys(_FIRST)
    for part in ("overrides", "metrics"):
        columns |= dict.fromkeys(key for entry in entries for key in entry[part] or {})
    text = io.StringIO()
    names = [*columns, *_LAST]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        row = {**entry, **entry["overrides"], **(entry["metrics"] or {})}
        writer.writerow({name: _csv_value(row.get(name)) for name in names})
    return text.getvalue()


def _csv_value(value: Any) -> Any:
    if value is None or value == {}:
        return ""
    return json.dumps(value) if isinstance(value, bool | list | dict) else value

"""What a sweep leaves: a Run for each of its runs, results.json and results.csv.

`Run` is an entry of results.json's `cells`; `write` puts both files down whole or not at all.
The summary beside the cells comes from `summary.py`, the report reads the JSON alone.
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid.process.files import write_whole

RESULTS_JSON, RESULTS_CSV = "results.json", "results.csv"
FINISHED, FAILED, PENDING = "finished", "failed", "pending"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: a cell at one seed and learning rate. Unknown figures are None.

    Attributes:
      name: the cell's, the same for all its seeds and learning rates.
      arm: the part of the sweep it is compared within ("" where there is only one).
      overrides: {dotted key: value} against the base config, without seed and learning rate.
      status: finished, failed (then `error` says why) or pending.
      metrics: the last evaluation row of metrics.jsonl.
      workdir: relative to the sweep's.  task: text, mqar or needle.
      chance: of a task, the share of right answers of a model that sees no value.
      flops_per_token: forward, at the training length.  tokens: predicted tokens trained on.
      train_flops: of the whole run.  kv_cache_bytes: in all, at `cache_context` tokens.
      reach: tokens back that the stack can see; None with any global layer.
      changed: {dotted key: (from, to)}, what `match` changed.
      letters: one a layer.  tokens_per_second: the median while training.
      curve: (step, train FLOPs so far, eval loss) of each evaluation.
    """

    name: str
    arm: str
    overrides: Mapping[str, Any]
    seed: int
    learning_rate: float | None
    status: str
    error: str | None = None
    metrics: Mapping[str, Any] | None = None
    workdir: str = ""
    task: str = "text"
    chance: float | None = None
    num_params: int | None = None
    flops_per_token: float | None = None
    num_steps: int | None = None
    tokens: int | None = None
    train_flops: float | None = None
    kv_cache_bytes: int | None = None
    cache_context: int | None = None
    reach: int | None = None
    changed: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    letters: str = ""
    tokens_per_second: float | None = None
    curve: Sequence[Sequence[Any]] = ()

    @property
    def loss(self) -> float | None:
        """Its final evaluation loss; None unless it finished with a finite one."""
        if self.status != FINISHED or not self.metrics:
            return None
        loss = self.metrics.get("eval/loss")
        return loss if loss is not None and math.isfinite(loss) else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            field.name: for_json(getattr(self, field.name)) for field in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Run":
        """The Run of an entry of `cells`. Raises: TypeError for a key that a Run hasn't."""
        return cls(**entry)


def write(
    folder: pathlib.Path,
    about: Mapping[str, Any],
    runs: Sequence[Run],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes results.json and results.csv into `folder` and returns the JSON's dict.

    Args:
      about: what stands before the cells: name, match, baseline, axes, seeds, …
    """
    results = for_json({**about, "cells": [run.to_dict() for run in runs], "summary": summary})
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / RESULTS_JSON, text)
    write_whole(folder / RESULTS_CSV, to_csv(runs))
    return results


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The dict of `folder`'s results.json; its runs: `Run.from_dict` of each of its cells."""
    return json.loads((folder / RESULTS_JSON).read_text(encoding="utf-8"))


def for_json(value: Any) -> Any:
    """Plain Python of what results hold: lists for tuples, null for numbers JSON can't write."""
    if isinstance(value, Mapping):
        return {str(key): for_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(entry) for entry in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return for_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- results.csv -----------------------------------------------------------------------------

_FIRST = ("name", "arm", "seed", "learning_rate", "status")
_COSTS = (
    *("task", "num_params", "flops_per_token", "num_steps", "tokens", "train_flops"),
    *("kv_cache_bytes", "cache_context", "reach", "letters", "tokens_per_second"),
    *("changed", "workdir", "error"),
)


def to_csv(runs: Sequence[Run]) -> str:
    """A line a run: what it is, each override as a column, metrics, costs; unknown is empty."""
    overrides = _keys([run.overrides for run in runs])
    metrics = _keys([run.metrics or {} for run in runs])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIRST, *overrides, *metrics, *_COSTS])
    for run in runs:
        entry = run.to_dict()
        values = [entry[name] for name in _FIRST]
        values += [entry["overrides"].get(name) for name in overrides]
        values += [(entry["metrics"] or {}).get(name) for name in metrics]
        values += [entry[name] for name in _COSTS]
        writer.writerow([_as_cell(value) for value in values])
    return text.getvalue()


def _keys(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys, each where it is first seen."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _as_cell(value: Any) -> Any:
    if value is None or value == {}:
        return ""
    return json.dumps(value) if isinstance(value, (bool, list, dict)) else value

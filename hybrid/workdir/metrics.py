"""The rows of a run: metrics.jsonl, and the same scalars as TensorBoard events.

`metrics.jsonl` is the record: one JSON object a line, appended, on disk before the checkpoint of
the same step is, and cut back to the checkpoint when a run resumes. TensorBoard gets the same
scalars for looking at.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from hybrid.process.files import write_whole

METRICS = "metrics.jsonl"
EXTRA_LOSSES = ("z_loss", "load_balance_loss", "router_z_loss")

Row = dict[str, Any]


# --- metrics.jsonl ---------------------------------------------------------------------------


class MetricsFile:
    """The rows of a run, appended one by one."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def append(self, rows: Iterable[Row]) -> None:
        """Adds rows in one write; `sync` puts them on the disk."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)

    def sync(self) -> None:
        """Returns when all rows so far are on the disk."""
        with open(self.path, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def cut(self, last_step: int) -> None:
        """Drops rows beyond `last_step` and a torn line, by writing a new file in its place."""
        kept = [row for row in read_rows(self.path) if row["step"] <= last_step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_whole(self.path, text)


def read_rows(path: pathlib.Path, holding: str = "") -> list[Row]:
    """The rows of a metrics file whose text holds `holding`; none if there is no file.

    A line torn by a kill is left out.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    return [json.loads(line) for line in lines if line and holding.encode() in line]


def training_row(
    step: int, metrics: Mapping[str, Any], tokens_seen: int, seconds: float, mfu: Any
) -> Row:
    """The row of one training step; numbers that are not finite become null."""
    extra = [name for name in metrics if name in EXTRA_LOSSES or name.startswith("router/")]
    names = ("loss", *extra, "grad_norm", "learning_rate")
    return {
        "step": step,
        **{name: number(metrics[name]) for name in names},
        "tokens_per_second": int(metrics["num_tokens"]) / seconds,
        "mfu": mfu,
        "tokens_seen": tokens_seen,
        "skipped_steps": int(metrics["skipped_steps"]),
    }


def evaluation_row(step: int, result: Any) -> Row:
    """The row of one evaluation; `eval/accuracy` only where a task was evaluated."""
    names = ["loss", "perplexity", "bits_per_byte"]
    names += [] if result.accuracy is None else ["accuracy"]
    return {"step": step} | {f"eval/{name}": number(getattr(result, name)) for name in names}


def number(value: Any) -> float | None:
    """A Python float; None for None, and where it is not finite (JSON has no NaN)."""
    return float(value) if value is not None and math.isfinite(value) else None


# --- TensorBoard -----------------------------------------------------------------------------


class TensorBoard:
    """Event files of the rows' scalars; rows beyond `first_step` of an earlier try are dropped."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        from tensorboardX import SummaryWriter  # half a second that only writers pay

        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=10)

    def add(self, row: Row) -> None:
        """Adds the row's numbers at its step."""
        for name, value in row.items():
            if name != "step" and value is not None:
                tag = name if "/" in name else f"train/{name}"
                self._writer.add_scalar(tag, value, row["step"])

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

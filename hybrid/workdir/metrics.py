"""The rows of a run: metrics.jsonl, and the same scalars as TensorBoard events.

`metrics.jsonl` is the record: one JSON object a line, appended, on disk before the checkpoint of
the same step is, and cut back to the checkpoint when a run resumes. TensorBoard gets the same
scalars for looking at. In an object store "on disk" means put there (`process/remote.py`).
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from hybrid.config import ConfigError
from hybrid.process.files import log_of
from hybrid.process.remote import AnyPath, EventFiles, RemotePath

METRICS = "metrics.jsonl"
EXTRA_LOSSES = ("z_loss", "load_balance_loss", "router_z_loss")

Row = dict[str, Any]


# --- metrics.jsonl ---------------------------------------------------------------------------


class MetricsFile:
    """The rows of a run, appended one by one."""

    def __init__(self, path: AnyPath):
        self.path, self._log = path, log_of(path)

    def append(self, rows: Iterable[Row]) -> None:
        """Adds rows in one write; `sync` puts them on the disk."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self._log.append(text.encode())

    def sync(self) -> None:
        """Returns when all rows so far are on the disk."""
        self._log.sync()

    def count(self) -> int:
        """How many lines the file holds."""
        return self._log.read().count(b"\n")

    def cut(self, rows: Iterable[Row]) -> None:
        """Keeps `rows` alone, by writing a new file in the place of the old one."""
        self._log.replace("".join(json.dumps(row) + "\n" for row in rows).encode())


def read_rows(path: AnyPath, holding: str = "") -> list[Row]:
    """The rows of a metrics file whose text holds `holding`; none if there is no file.

    Broken lines at its end, as a kill or a full disk leaves them, are left out.
    Raises: ConfigError naming a broken line with a row behind it, or a file that can't be read.
    """
    lines = _lines(path)
    last = next((i for i in range(len(lines) - 1, -1, -1) if _row(lines[i])), -1)
    found = []
    for number, line in enumerate(lines[: last + 1], 1):
        if holding.encode() in line:
            found.append(_row(line) or _raise_broken(path, number))
    return found


def rows_until(path: AnyPath, step: int, num_rows: int | None = None) -> list[Row]:
    """The rows that belong to the checkpoint of `step`; what is behind them, broken or not, goes.

    Args:
      num_rows: lines of the file when the checkpoint was saved; None where that isn't known. Its
        evaluation may stand behind them.
    Raises: ConfigError naming a line among them that is broken, or a file that can't be read.
    """
    lines = _lines(path)
    rows = [_row(line) for line in lines]
    belong = [index for index, row in enumerate(rows) if row and row["step"] <= step]
    end = max(belong, default=-1) + 1
    if num_rows is not None and len(lines) < num_rows:
        problem = f"{path.name} has lost rows: the checkpoint of step {step} had {num_rows}"
        raise ConfigError("--workdir", problem, f"{len(lines)} lines")
    for index in range(max(end, num_rows or 0)):
        if rows[index] is None:
            _raise_broken(path, index + 1)
    return [row for row in rows[:end] if row and row["step"] <= step]


def _lines(path: AnyPath) -> list[bytes]:
    """The whole lines of a file; what follows the last newline is torn."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError("--workdir", f"can't be read ({error.strerror})", str(path)) from None


def _row(line: bytes) -> Row | None:
    """The row in a line; None for what is none."""
    try:
        row = json.loads(line)
    except ValueError:  # of JSON and of UTF-8
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _raise_broken(path: AnyPath, number: int) -> NoReturn:
    problem = f"line {number} of {path.name} is broken"
    raise ConfigError("--workdir", problem, accepted="the file as it was written")


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
    """The row of one evaluation; `eval/accuracy` of a task, `eval/loss/NAME` of a mixture."""
    names = ["loss", "perplexity", "bits_per_byte"]
    names += [] if result.accuracy is None else ["accuracy"]
    row = {"step": step} | {f"eval/{name}": number(getattr(result, name)) for name in names}
    of_sources = result.by_source.items()
    return row | {f"eval/loss/{name}": number(one.loss) for name, one in of_sources}


def number(value: Any) -> float | None:
    """A Python float; None for None, and where it is not finite (JSON has no NaN)."""
    return float(value) if value is not None and math.isfinite(value) else None


# --- TensorBoard -----------------------------------------------------------------------------


class TensorBoard:
    """Event files of the rows' scalars; rows beyond `first_step` of an earlier try are dropped."""

    def __init__(self, folder: AnyPath, first_step: int):
        from tensorboardX import SummaryWriter, record_writer  # half a second that only writers pay

        if isinstance(folder, RemotePath):  # its own writer needs one more client of the store
            record_writer.register_writer_factory("gs", EventFiles)
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

"""metrics.jsonl: whole rows or none, cut in one move; TensorBoard has the same; peaks are known."""

import io
import json
import os
from unittest import mock

import jax
import numpy as np
import pytest

from hybrid.config import ConfigError
from hybrid.costs import peaks
from hybrid.process.clock import clock
from hybrid.training.progress import Progress
from hybrid.workdir import metrics
from hybrid.workdir.metrics import MetricsFile


@pytest.fixture
def file(tmp_path):
    return MetricsFile(tmp_path / "metrics.jsonl")


def row(step, **more):
    return {"step": step, "loss": step / 10, **more}


def test_rows_are_appended_and_read_back(file):
    assert metrics.read_rows(file.path) == []
    file.append([row(1)])
    file.append([row(2), row(2, **{"eval/loss": 1.5})])
    file.sync()
    assert metrics.read_rows(file.path) == [row(1), row(2), row(2, **{"eval/loss": 1.5})]
    assert metrics.read_rows(file.path, "eval/loss") == [row(2, **{"eval/loss": 1.5})]


def test_what_is_behind_a_checkpoint_goes_whole_or_torn(file):
    file.append([row(1), row(2), row(3)])
    with open(file.path, "a") as torn:
        torn.write('{"step": 4, "lo')
    file.cut(metrics.rows_until(file.path, 2, num_rows=2))
    assert file.path.read_text() == "".join(json.dumps(row(step)) + "\n" for step in (1, 2))
    file.append([row(3)])
    assert [r["step"] for r in metrics.read_rows(file.path)] == [1, 2, 3]
    assert file.count() == 3


BROKEN = (b"\0" * 40, b'{"step": 3, "lo', b"\xff\xfe", b"[3]", b"{}", b'{"step": "3"}', b"")


@pytest.mark.parametrize("line", BROKEN)
@pytest.mark.parametrize("num_rows", [2, None])
def test_a_broken_row_goes_behind_the_checkpoint_and_is_named_before_it(file, line, num_rows):
    rows = [json.dumps(row(step)).encode() for step in (1, 2, 3)]
    file.path.write_bytes(b"\n".join([*rows[:2], line, rows[2], b""]))
    assert metrics.rows_until(file.path, 2, num_rows) == [row(1), row(2)]
    with pytest.raises(ConfigError, match=r"line 3 of metrics.jsonl is broken"):
        metrics.rows_until(file.path, 3, num_rows and 4)
    with pytest.raises(ConfigError, match=r"line 3 of metrics.jsonl is broken"):
        metrics.read_rows(file.path)
    file.path.write_bytes(b"\n".join([*rows, line, b""]))
    assert metrics.read_rows(file.path) == [row(1), row(2), row(3)]


def test_the_evaluation_of_a_checkpoint_may_stand_behind_its_rows(file):
    file.append([row(1), row(2)])
    file.append([{"step": 2, "eval/loss": 1.5}, row(3)])
    assert len(metrics.rows_until(file.path, 2, num_rows=2)) == 3


def test_rows_that_are_gone_are_named(file):
    file.append([row(1), row(2)])
    with pytest.raises(ConfigError, match="lost rows: the checkpoint of step 3 had 3"):
        metrics.rows_until(file.path, 3, num_rows=3)


def test_a_kill_while_cutting_leaves_the_old_file(file, monkeypatch):
    file.append([row(1), row(2)])

    def killed(*paths):
        raise InterruptedError

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(InterruptedError):
        file.cut([row(1)])
    assert [r["step"] for r in metrics.read_rows(file.path)] == [1, 2]


def test_numbers_that_are_not_finite_become_null(file):
    values = {"loss": np.nan, "grad_norm": np.inf, "learning_rate": 0.1}
    values |= {"num_tokens": 10, "skipped_steps": 1, "z_loss": np.float32(0.5)}
    made = metrics.training_row(3, values, 30, 2.0, None)
    file.append([made])
    (found,) = metrics.read_rows(file.path)
    assert found["loss"] is found["grad_norm"] is found["mfu"] is None
    assert found["tokens_per_second"] == 5
    assert found["z_loss"] == 0.5
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.append([row(1, bad=float("nan"))])


def test_tensorboard_holds_the_same_scalars(tmp_path):
    from tensorboardX.proto import event_pb2

    board = metrics.TensorBoard(tmp_path, 1)
    board.add(row(1, mfu=None))
    board.add({"step": 1, "eval/loss": 2.5})
    board.close()
    (path,) = tmp_path.iterdir()
    data, found = path.read_bytes(), {}
    while data:  # records: length (8 bytes), its checksum (4), the event, its checksum (4)
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + size :]
    assert found == {"train/loss": (1, pytest.approx(0.1)), "eval/loss": (1, 2.5)}


def test_peaks_are_configured_known_or_measured():
    def chips(kind, count):
        return [
            mock.Mock(spec=jax.Device, device_kind=kind, platform="tpu", process_index=0)
        ] * count

    assert peaks.peak_flops(-1.0, "float32", jax.devices()) is None
    assert peaks.peak_flops(3e12, "float32", chips("x", 4)) == 12e12
    assert peaks.peak_flops(0.0, "bfloat16", chips("TPU v5p", 2)) == 2 * 459e12
    assert 1e8 < peaks.peak_flops(0.0, "float32", jax.devices()) < 1e14


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def shown(terminal):
    stream = Stream(terminal)
    progress = Progress(stream)
    for step in range(1, 101):
        made = row(step, tokens_per_second=1234.5, mfu=0.25)
        progress.step(0.5 * step, 100, made, 100.0 - step)
    progress.say("done")
    return stream.getvalue()


def test_elsewhere_progress_is_a_line_now_and_then():
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "step 1/100  loss 0.1000  1,234 tokens/s  25 % MFU  1:39 left"
    assert 5 <= len(lines) <= 8
    assert lines[-2].startswith("step 100/100")
    assert lines[-1] == "done"


def test_on_a_terminal_progress_is_one_moving_line():
    text = shown(terminal=True)
    assert text.count("\r") == 100
    assert text.count("\n") == 2
    assert text.endswith("\ndone\n")


def test_times_are_told_in_minutes_and_hours():
    assert [clock(s) for s in (0, 9.6, 61, 3_725)] == ["0:00", "0:10", "1:01", "1:02:05"]

"""What a run says: one moving line on a terminal, plain lines elsewhere."""

import errno
import io

import pytest

from hybrid.process.clock import clock
from hybrid.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(step: int, **keys) -> dict:
    return {"step": step, "loss": 2.5, "tokens_per_second": 1234.5, "mfu": None} | keys


def test_steps_move_on_one_line_of_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    progress = Progress(terminal)
    for step in (1, 2, 3):
        progress.step(float(step), 100, row(step), 90.0)
    progress.say("step 3: eval/loss 2.0")
    progress.step(4.0, 100, row(4), 90.0)
    text = terminal.getvalue()
    moving, said, again = text.split("\n")
    assert moving.count("\r") == 3
    assert said == "step 3: eval/loss 2.0"
    assert again.startswith("\rstep 4/100  loss 2.5000  1,234 tokens/s  1:30 left")
    assert {len(line) for line in moving.split("\r")[1:]} == {59}  # the old line is covered


def test_a_terminal_hears_ten_times_a_second_at_most():
    terminal = Terminal()
    progress = Progress(terminal)
    for step in range(1, 1000):
        progress.step(step / 1000, 1000, row(step), 1.0)
    assert 9 <= terminal.getvalue().count("\r") <= 11


def test_elsewhere_there_is_a_plain_line_now_and_then_and_at_both_ends():
    log = io.StringIO()
    progress = Progress(log)
    for step in range(1, 31):
        progress.step(float(step), 30, row(step), 1.0)
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/30", "11/30", "21/30", "30/30"]
    assert "\r" not in log.getvalue()


def test_a_loss_that_is_not_finite_and_the_utilisation_are_told():
    log = io.StringIO()
    Progress(log).step(0.0, 5, row(1, loss=None, mfu=0.413), 1.0)
    assert log.getvalue() == "step 1/5  loss not finite  1,234 tokens/s  41 % MFU  0:01 left\n"


def test_a_terminal_that_is_gone_stops_no_run():
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    progress = Progress(Gone())
    progress.step(0.0, 5, row(1), 1.0)
    progress.say("step 1 is saved")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (90, "1:30"), (3661, "1:01:01")]
)
def test_times_are_minutes_and_seconds(seconds, shown):
    assert clock(seconds) == shown

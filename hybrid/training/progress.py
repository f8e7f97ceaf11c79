"""The progress of a run on standard error: one moving line on a terminal, plain lines elsewhere."""

import contextlib
import io
import shutil
import sys

from hybrid.process.clock import clock
from hybrid.workdir.metrics import Row

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_MOVES = 0.1


class Progress:
    """Writes lines, and the state of the run in between; times are arguments, it has no clock."""

    def __init__(self, stream: io.TextIOBase | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._moves = self._stream.isatty()
        self._moving = False
        self._last = float("-inf")
        self._tenths = 0

    def say(self, line: str) -> None:
        """Writes a line of its own."""
        self._end_moving()
        self._write(line + "\n")

    def tokenizing(self, done: int, total: int) -> None:
        """Shows bytes tokenized, in tenths of the whole."""
        tenths = 10 * done // max(total, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            self._move(f"tokenizing: {done / 1e6:.1f} of {total / 1e6:.1f} MB")

    def step(self, now: float, num_steps: int, row: Row, seconds_left: float) -> None:
        """Shows a finished step if the last one shown is long enough ago; times in seconds."""
        at_end = row["step"] in (1, num_steps)
        pause = SECONDS_BETWEEN_MOVES if self._moves else SECONDS_BETWEEN_LINES
        if now - self._last < pause and not at_end:
            return
        self._last = now
        self._move(step_line(num_steps, row, seconds_left))

    def _move(self, line: str) -> None:
        if not self._moves:
            self.say(line)
            return
        width = shutil.get_terminal_size().columns - 1
        self._write("\r" + line[:width].ljust(width))
        self._moving = True

    def _end_moving(self) -> None:
        if self._moving:
            self._write("\n")
        self._moving = False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone; the run is not
            self._stream.write(text)
            self._stream.flush()


def step_line(num_steps: int, row: Row, seconds_left: float) -> str:
    """`step 20/400  loss 2.345  12,345 tokens/s  40 % MFU  1:30 left`."""
    loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
    parts = [f"step {row['step']}/{num_steps}", f"loss {loss}"]
    parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    if row["mfu"] is not None:
        parts.append(f"{100 * row['mfu']:.0f} % MFU")
    parts.append(f"{clock(seconds_left)} left")
    return "  ".join(parts)

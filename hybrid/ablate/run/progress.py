"""A sweep's lines on standard error: runs done, time left, and the run in progress.

Of a run's own lines only warnings are shown; on a terminal its moving line stays, with the
sweep's state before it. The time left is estimated from FLOPs, as runs differ in cost.
"""

import io
import time

from hybrid.process.clock import clock
from hybrid.training.progress import Progress
from hybrid.workdir.metrics import Row


class SweepProgress(Progress):
    """The progress of a whole sweep, and the `Progress` of each of its runs."""

    def __init__(self, stream: io.TextIOBase | None = None):
        super().__init__(stream)
        self._costs: list[float] = []
        self._num_runs = self._index = self._num_failed = 0
        self._start = self._run_start = time.monotonic()

    def begin(self, costs: list[float], num_runs: int) -> None:
        """Starts with the costs of the unfinished runs, of `num_runs` in all."""
        self._costs, self._num_runs = costs, num_runs
        done = num_runs - len(costs)
        super().say(f"{num_runs} runs" + (f", {done} finished before" if done else ""))

    def next_run(self, label: str) -> None:
        """Names the run that begins."""
        self._label, self._run_start = label, time.monotonic()
        self._index += 1

    def end_run(self, outcome: str, failed: bool = False) -> None:
        """Reports the outcome of the current run."""
        self._num_failed += failed
        now = time.monotonic()
        done, left = sum(self._costs[: self._index]), sum(self._costs[self._index :])
        parts = [f"{self._place()}: {outcome} in {clock(now - self._run_start)}"]
        if left and done:
            parts.append(f"about {clock((now - self._start) / done * left)} left")
        if self._num_failed:
            parts.append(f"{self._num_failed} failed")
        super().say("; ".join(parts))

    def say(self, line: str) -> None:
        """Shows a run's line if it is a warning."""
        if line.startswith("warning"):
            super().say(f"{self._label}: {line}")

    def tokenizing(self, done: int, total: int) -> None:
        """Shows nothing: tokenizing takes a moment, once."""

    def asking(self, name: str, done: int, total: int) -> None:
        """Shows how far a benchmark is, on a terminal only."""
        if self._moves:
            self._move(f"{name}: {100 * done // total} %")

    def step(self, now: float, num_steps: int, row: Row, seconds_left: float) -> None:
        """Shows the moving line, on a terminal only."""
        if self._moves:
            super().step(now, num_steps, row, seconds_left)

    def _move(self, line: str) -> None:
        super()._move(f"{self._place()}: {line}")

    def _place(self) -> str:
        before = self._num_runs - len(self._costs)
        return f"[{before + self._index}/{self._num_runs}] {self._label}"

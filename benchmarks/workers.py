"""Workers: processes that stay alive and are asked in turn, one line of JSON each way.

jax and torch each keep a pool of threads and an allocator; in one process they would disturb each
other. Here every side has a process of its own, gets the same allocator setting, and only one of
them works at a time. The child's end is `serve`, the parent's end is `Worker`.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hybrid.process.host import keep_freed_memory

BUSY = 0.1  # from this share of the machine on, others disturb a reading


class WorkerError(RuntimeError):
    """A worker failed; the text is its traceback."""


class Worker:
    """The parent's end of one worker process, by the name of its module.

    checkout: the version of this repository that it runs, and leaves as it is; None for the
      parent's own.
    xla_flags: its XLA_FLAGS besides those of the environment.
    """

    def __init__(
        self, module: str, *arguments: str, checkout: Path | None = None, xla_flags: str = ""
    ):
        other = {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"} if checkout else {}
        flags = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}".strip()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=checkout,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | other,
            text=True,
        )

    def ask(self, method: str, **arguments: Any) -> Any:
        """The result of the worker's `method`.  Raises: WorkerError if it failed or died."""
        self.process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.process.args} ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Ends the process by closing its input."""
        self.process.stdin.close()
        self.process.wait()


def serve(worker: Any) -> None:
    """Answers the parent's lines with `worker`'s methods until the input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    keep_freed_memory()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = getattr(worker, request["method"])(**request["arguments"])
            answer = {"result": result}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Reading:
    """Wall time of a block, and which share of the machine others used meanwhile.

    Attributes: seconds; others (of all cores' time, what processes besides this one used).
    """

    def __enter__(self) -> "Reading":
        self._busy, self._own, self._start = _busy(), time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.seconds = time.perf_counter() - self._start
        others = _busy() - self._busy - (time.process_time() - self._own)
        self.others = max(0.0, others / (self.seconds * (os.cpu_count() or 1)))


def _busy() -> float:
    """Seconds of CPU time spent by the whole machine or stolen from it; 0 without /proc."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _, _, irq, softirq, stolen, *_ = map(
                int, stat.readline().split()[1:]
            )
    except OSError:
        return 0.0
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def readings(function: Any, count: int) -> list[tuple[float, float]]:
    """(seconds, others' share) of `count` calls of `function`."""
    out = []
    for _ in range(count):
        with Reading() as reading:
            function()
        out.append((reading.seconds, reading.others))
    return out


def quiet(readings: list[tuple[float, float]]) -> list[float]:
    """The seconds of the readings that no other process disturbed."""
    return [seconds for seconds, others in readings if others < BUSY]

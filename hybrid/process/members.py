"""Signs of life of the processes of a run, and how they come to stop at the same place.

Each process keeps one record in the coordinator's key-value store (jax's own, on process 0) and
reads those of all: a thread exchanges them, about twice a second. In a record stand

    beat    counts exchanges: one that no longer changes is a process that died or hangs
    stop    the first signal that the process received
    at      the last unit of work that it had entered when it learnt of a signal
    ended   its exit status, with the line that told why
    gone    that it really leaves now

A second thread judges. Where a beat has not changed for `stall_seconds`, or a process has ended in
a way that the others can't go on from, it says so in one line and ends this process too: the main
thread may be inside a collective operation that never returns.

A signal stops all at the same unit. The processes run the same units of work (a train step, a
batch of an evaluation) in the same order, and call `is_last` before each. Once a process learns
of a signal it writes down the last unit that it has entered, and goes on only up to the largest
that any has written down. Nobody waits before that, no unit is left half entered, and a step costs
no message. A flag summed on the devices would cost one, and a collective operation, in each step.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from typing import Protocol, runtime_checkable

from hybrid.process import signals

_FOLDER = "hybrid/members/"
_SECONDS = 0.5  # between two exchanges
_AT_ONCE = 128  # processes, from which on exchanges are rarer: the coordinator serves them all
_SUSPECT_BEATS = 8  # without a sign make a dead process, where an operation has failed already
TOGETHER = (0, 130, 143)  # statuses that all processes come to by themselves
_LINGER = 10.0  # seconds that process 0, whose store serves the others, waits for them to leave


@runtime_checkable
class Store(Protocol):
    """The calls of jax's coordination client that are used; values are text."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


@dataclasses.dataclass
class Record:
    """What a process tells the others of itself; the module's docstring has the fields."""

    host: str = "?"
    pid: int = 0
    beat: int = 0
    stop: str = ""
    at: int | None = None
    ended: int | None = None
    line: str = ""
    gone: bool = False


class Members:
    """The records of `count` processes; this one is `index`."""

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        stall_seconds: float,
        interrupts: signals.Interrupts,
        own: Record,
    ):
        self.index, self.count = index, count
        self._store, self._interrupts, self._own = store, interrupts, own
        self._limit = stall_seconds
        self._seconds = min(_SECONDS * max(1.0, count / _AT_ONCE), stall_seconds / 8)
        self._records = {number: Record() for number in range(count)}
        self._changed = dict.fromkeys(range(count), time.monotonic())
        self._answered = time.monotonic()
        self._entered = 0
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._leaving, self._left, self._closed = False, threading.Event(), threading.Event()
        works = (self._exchange, self._judge)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads: one that is within the store when Python ends would abort it."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()

    # --- Stopping together -------------------------------------------------------------------

    def is_last(self) -> bool:
        """Whether no further unit of work is to be entered; all processes say so at the same."""
        if self._interrupts and not self._own.stop:
            self._wake.set()
        with self._lock:
            self._entered += 1
            if self._own.at is None:
                return False
        while True:
            entered = [record.at for record in self._all()]
            known = [at for at in entered if at is not None]
            if len(known) == self.count:
                return self._entered > max(known)
            time.sleep(0.01)

    def _note_signals(self) -> None:
        if self._interrupts.requested and not self._own.stop:
            self._own.stop = self._interrupts.requested.name
        names = [record.stop for record in self._all() if record.stop]
        if names and self._own.at is None:
            with self._lock:
                self._own.at = self._entered
            self._interrupts.request(signal.Signals[names[0]])
            self._wake.set()

    # --- Exchanging --------------------------------------------------------------------------

    def _all(self) -> list[Record]:
        return [*(self._records | {self.index: self._own}).values()]

    def _exchange(self) -> None:
        while not self._closed.is_set():
            self._wake.clear()
            self._note_signals()
            self._own.beat += 1
            final = self._own.gone
            try:
                text = json.dumps(dataclasses.asdict(self._own))
                self._store.key_value_set(f"{_FOLDER}{self.index}", text, allow_overwrite=True)
                if final:
                    self._left.set()
                self._read(self._store.key_value_dir_get(_FOLDER))
                self._answered = time.monotonic()
            except Exception:  # of the connection: `_judge` sees that no answer came
                pass
            self._wake.wait(self._seconds)

    def _read(self, entries: list[tuple[str, str]]) -> None:
        for key, text in entries:
            number, record = int(key.rpartition("/")[2]), Record(**json.loads(text))
            if record.beat != self._records[number].beat:
                self._changed[number] = time.monotonic()
            self._records[number] = record

    # --- Judging -----------------------------------------------------------------------------

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(self._seconds):
            now = time.monotonic()
            if now - last > 4 * self._seconds:  # this process itself was stopped for a while
                self._answered = now
                self._changed = dict.fromkeys(range(self.count), now)
            last = now
            verdict = self._verdict(now)
            if verdict and not self._leaving:
                self.end(*verdict)

    def _verdict(self, now: float) -> tuple[int, str] | None:
        """Status and line to end with; None while all are well."""
        if now - self._answered > self._limit:
            return 1, f"{self._name(0)}, the coordinator, has not answered for {self._limit:.0f} s"
        for number, record in self._records.items():
            if number == self.index:
                continue
            if record.gone or record.ended not in (None, *TOGETHER):
                return record.ended or 1, f"{self._name(number)} has ended: {record.line}"
            if now - self._changed[number] > self._limit:
                line = f"has given no sign of life for {self._limit:.0f} s"
                return 1, f"{self._name(number)} {line}"
        return None

    def _name(self, number: int) -> str:
        record = self._records[number]
        return f"process {number} of {self.count} (pid {record.pid} on {record.host})"

    def end(self, status: int, line: str) -> None:
        """Ends this process because of another one, from the judging thread."""
        print(f"stopped: {line}", file=sys.stderr, flush=True)
        self.tell_end(status, line)
        self._interrupts.end(status)
        time.sleep(signals.GRACE_SECONDS)
        self.exit(status)

    def wait_for_verdict(self) -> None:
        """Waits as long as it takes to see that another process has died.

        Called when an operation across processes has failed: often another's death is the cause.
        """
        self._limit = min(self._limit, _SUSPECT_BEATS * self._seconds)
        time.sleep(self._limit + 4 * self._seconds)

    # --- Leaving -----------------------------------------------------------------------------

    def tell_end(self, status: int, line: str) -> None:
        """Tells the others that this process is about to end."""
        if self._own.ended is None:
            self._own.ended, self._own.line = status, line
        self._wake.set()

    def wait_for_ends(self, seconds: float) -> bool:
        """Waits until all have told that they end as this one does; False where they don't."""
        self._leaving, until = True, time.monotonic() + seconds
        while time.monotonic() < until:
            if all(record.ended == self._own.ended for record in self._all()):
                return True
            if any(record.ended not in (None, self._own.ended) for record in self._all()):
                return False
            time.sleep(0.02)
        return False

    def exit(self, status: int) -> None:
        """Ends the process at once, process 0 after the others."""
        self._leaving = True
        self._own.gone = True
        self._wake.set()
        self._left.wait(2 * self._seconds)
        until = time.monotonic() + (_LINGER if self.index == 0 else 0)
        while time.monotonic() < until and not all(record.gone for record in self._all()):
            time.sleep(0.02)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    @property
    def host(self) -> str:
        """The name of this process's host."""
        return self._own.host

    @property
    def ended(self) -> int | None:
        """The status that this process has told it ends with."""
        return self._own.ended

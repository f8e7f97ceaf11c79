"""Signals to stop: at a good moment, or at once where there is nothing to save.

SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (what schedulers send before a time limit) are
alike; SIGINT has a status of its own. Where a signal was ignored before, as under nohup, SIGHUP
stays so.

Outside `deferred()` (reading data, tokenizing, compiling) a signal stops at once: the handler
raises, and since the main thread may be deep inside a compiler, where Python runs no handler, a
watcher thread ends the process if it still runs after `GRACE_SECONDS`. Inside `deferred()` (the
loop, evaluation) the first signal only sets `requested`; the loop reads it, saves and raises
`stop(...)`. A second SIGINT stops at once everywhere.

This module imports nothing heavy, so that commands catch signals before jax is loaded.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

GRACE_SECONDS = 3.0
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Preempted(BaseException):
    """The end after any signal but SIGINT, when all that had to be saved is. Commands exit 143.

    No `Exception`, so that a broad `except` around a user's code does not take it for a mistake.
    """


class Ended(BaseException):
    """The end with `status` because another process of the run has ended; all is said already."""

    def __init__(self, status: int):
        self.status = status


def stop_behind(error: BaseException | None) -> BaseException | None:
    """The stop that an exception was made of, or None.

    A handler that raises below a C extension that looks for no exception (numpy hashing a dtype)
    comes out of it as a SystemError whose cause is what was raised.
    """
    while error is not None and not isinstance(error, (Preempted, KeyboardInterrupt, Ended)):
        error = error.__cause__
    return error


class Interrupts:
    """The signals that this process has received so far.

    Attributes:
      requested: the first signal received, or None.
    """

    def __init__(self):
        self.requested: signal.Signals | None = None
        self._deferred = False
        self._ending: Ended | None = None
        self._left = threading.Event()
        self._hook_before = sys.unraisablehook

    def __bool__(self) -> bool:
        return self.requested is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal only sets `requested`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def request(self, number: signal.Signals) -> None:
        """Does, from any thread, what the signal itself would do if it came as the first one."""
        if self._deferred:
            self.requested = self.requested or number
        elif not self:
            os.kill(os.getpid(), number)

    def end(self, status: int) -> None:
        """Raises Ended in the main thread, from another one, as soon as Python runs there."""
        self._ending = Ended(status)
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self, message: str) -> BaseException:
        """The exception that ends the command: Preempted, or KeyboardInterrupt after SIGINT."""
        name = self.requested.name if self.requested else "stop"
        kind = KeyboardInterrupt if self.requested == signal.SIGINT else Preempted
        return kind(f"{name}: {message}")

    def _handle(self, number: int, frame: object) -> None:
        del frame
        if self._ending:
            raise self._ending
        again = number == signal.SIGINT and self.requested == signal.SIGINT
        self.requested = self.requested or signal.Signals(number)
        if again or not self._deferred:
            raise self.stop("stopped at once")

    def _watch(self, stream: socket.socket) -> None:
        """Ends the process when a signal that stops at once has not done so.

        Where a library has dropped the exception and the loop has begun since, the loop will stop.
        """
        num_sigints = 0
        while number := stream.recv(1):
            num_sigints += number[0] == signal.SIGINT
            if number[0] not in WATCHED or not self._is_at_once(num_sigints):
                continue
            if not self._left.wait(GRACE_SECONDS) and self._is_at_once(num_sigints):
                print(f"{signal.Signals(number[0]).name}: stopped at once", file=sys.stderr)
                sys.stderr.flush()
                by_user = number[0] == signal.SIGINT
                os._exit(128 + (signal.SIGINT if by_user else signal.SIGTERM))

    def _unraisable(self, unraisable: Any) -> None:
        """Sends the signal again where its exception was raised in a `__del__` or weakref callback.

        Python drops exceptions there after printing a traceback.
        """
        if self and isinstance(unraisable.exc_value, (Preempted, KeyboardInterrupt)):
            threading.Timer(0.01, self._again).start()
        else:
            self._hook_before(unraisable)

    def _again(self) -> None:
        if self.requested and not self._deferred and not self._left.is_set():
            os.kill(os.getpid(), self.requested)

    def _is_at_once(self, num_sigints: int) -> bool:
        return self._ending is None and (not self._deferred or num_sigints > 1)


_current: Interrupts | None = None


@contextlib.contextmanager
def caught() -> Iterator[Interrupts]:
    """Catches the signals inside; nested uses share the outermost one's Interrupts.

    `jax.distributed.initialize` takes SIGTERM for itself; `distributed.py` keeps it from that.
    """
    global _current
    if _current is not None:
        yield _current
        return
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    _current = interrupts = Interrupts()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    keeps_running = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
    watched = [n for n in WATCHED if n != signal.SIGHUP or not keeps_running]
    before = {number: signal.signal(number, interrupts._handle) for number in watched}
    before_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    sys.unraisablehook = interrupts._unraisable
    watcher = threading.Thread(target=interrupts._watch, args=(ours,), daemon=True)
    watcher.start()
    try:
        yield interrupts
    finally:
        interrupts._left.set()
        sys.unraisablehook = interrupts._hook_before
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        watcher.join()
        ours.close()
        _current = None

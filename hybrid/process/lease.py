"""One writer a workdir in an object store: a lease that its holder renews, by the store's clock.

An object store has no locks, but it has conditions: `.lock` is made only where there is none, and
renewed or deleted only as the generation that was seen. So of several processes one gets it, and
one whose lease was taken over finds that out before its next checkpoint. A lease that is not
renewed for `LEASE` seconds, by the watch of the one who waits, is that of a dead process.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from typing import Any

from hybrid.config import ConfigError
from hybrid.process.remote import RemotePath

FILE = ".lock"
RENEWAL = 10.0  # seconds between two renewals
LEASE = 60.0  # seconds without one after which another process may take over
_POLL = 1.0
_log = logging.getLogger("hybrid")


class LeaseLost(RuntimeError):
    """Another process has taken over the workdir."""


class Lease:
    """The right to write into a folder, given back at the end of the `with`.

    Entering waits for a lease that is there to be renewed or to run out, and changes nothing;
    `claim` comes before the first change. See `lock.WriterLock`, which is the same for files.
    """

    def __init__(self, folder: RemotePath):
        self._folder, self._path = folder, folder / FILE
        self._generation: str | None = None  # of the own lease
        self._left_behind: str | None = None  # the generation of a dead process's
        self._ended, self._renewed = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._renew_until_ended, daemon=True)

    def __enter__(self) -> "Lease":
        """Raises: ConfigError naming who holds the lease, or why it can't be read."""
        try:
            first = now = self._state()
            if first:
                line = "waiting up to %.0f s to see whether %s, which has %s, still runs"
                _log.info(line, LEASE, self._holder(), self._folder)
            until = time.monotonic() + LEASE
            while now and time.monotonic() < until:
                time.sleep(_POLL)
                now = self._state()
                if now and now != first:
                    raise self._busy()
        except OSError as error:
            problem = f"its {FILE} can't be read ({error.strerror})"
            raise ConfigError("--workdir", problem, str(self._folder)) from None
        self._left_behind = now and now[0]
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._generation is None:
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # gone, or another one's: then it isn't ours to delete
            self._path.unlink(generation=self._generation)

    def claim(self) -> bool:
        """Makes this process the writer: False, another one may have been since entry.

        Raises: ConfigError as entering does, or where nothing can be written.
        """
        holder = {"host": socket.gethostname(), "process": os.getpid()}
        content = json.dumps(holder | {"token": secrets.token_hex(8)}).encode() + b"\n"
        try:
            if self._left_behind:
                self._path.unlink(missing_ok=True, generation=self._left_behind)
            with contextlib.suppress(FileExistsError):  # also where the client had to ask twice
                self._path.write_bytes(content, mode="create")
            self._generation = self._path.about()["generation"]
            if self._path.read_bytes() != content:
                self._generation = None
                raise self._busy()
        except FileExistsError:  # what was left behind is another one by now
            raise self._busy() from None
        except OSError as error:
            problem = f"can't be written to ({error.strerror})"
            raise ConfigError("--workdir", problem, str(self._folder)) from None
        self._renewed = time.monotonic()
        self._thread.start()
        return False

    def confirm(self) -> None:
        """Returns if the lease is still this process's.  Raises: LeaseLost, OSError."""
        if time.monotonic() - self._renewed > RENEWAL / 2:  # more often than the store lets one
            self._renew()

    def _renew(self) -> None:
        assert self._generation is not None
        try:
            self._path.renew(self._generation)
        except (FileNotFoundError, FileExistsError):
            problem = f"{self._folder} was taken over by {self._holder()}; nothing more is written"
            raise LeaseLost(problem) from None
        self._renewed = time.monotonic()

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(RENEWAL):
            with contextlib.suppress(OSError):  # the next one may get through
                try:
                    self._renew()
                except LeaseLost:
                    return  # `confirm` tells it to the run

    def _state(self) -> tuple[str, str] | None:
        """What changes when a lease is renewed or taken; None where there is none."""
        try:
            about = self._path.about()
        except FileNotFoundError:
            return None
        return about["generation"], about["metageneration"]

    def _holder(self) -> str:
        try:
            holder = json.loads(self._path.read_bytes())
            return f"process {holder['process']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _busy(self) -> ConfigError:
        problem, remedy = f"is in use by {self._holder()}", "wait for it, or take another folder"
        return ConfigError("--workdir", problem, str(self._folder), remedy)

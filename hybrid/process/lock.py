"""One writer a folder: a lock that ends with its process, however that ends.

The lock is the kernel's, on the file `.lock`; what stands in the file only tells who has it. So
nothing is left to clear up after a crash, and no second writer starts beside a first, on one
machine or (by the file system's own locks, as NFS has them) on several.
"""

import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
from typing import Any

from hybrid.config import ConfigError
from hybrid.process.lease import Lease
from hybrid.process.remote import AnyPath, RemotePath

FILE = ".lock"
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_log = logging.getLogger("hybrid")


def writer_lock(folder: AnyPath) -> "WriterLock | Lease":
    """What makes a process the only writer of a folder, here or in an object store."""
    return Lease(folder) if isinstance(folder, RemotePath) else WriterLock(folder)


class WriterLock:
    """The right to write into a folder, given back at the end of the `with`.

    Entering takes the lock where the folder has been written to before, and changes nothing.
    `claim` comes before the first change: it also takes the lock of a new folder, and names its
    process as the writer.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> "WriterLock":
        """Raises: ConfigError naming who holds the lock."""
        self._take(os.O_RDWR)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def claim(self) -> bool:
        """Makes this process the writer, and says whether it has held the lock since entry.

        Raises: ConfigError as entering does.
        """
        held = self._descriptor is not None
        if not held:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._take(os.O_RDWR | os.O_CREAT)
        assert self._descriptor is not None
        holder = {"host": socket.gethostname(), "process": os.getpid()}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, (json.dumps(holder) + "\n").encode(), 0)
        return held

    def confirm(self) -> None:
        """Does nothing: what the kernel holds is not lost."""

    def _take(self, flags: int) -> None:
        path = self._folder / FILE
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise ConfigError(
                "--workdir", f"can't be locked ({error.strerror})", str(path)
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                holder = _holder(descriptor) if error.errno in _BUSY else error.strerror
                os.close(descriptor)
                problem = f"is in use by {holder}"
                remedy = "wait for it, or take another folder"
                raise ConfigError("--workdir", problem, str(self._folder), remedy) from None
            _log.warning("warning: %s can't be locked: start no second run in it", self._folder)
        self._descriptor = descriptor


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

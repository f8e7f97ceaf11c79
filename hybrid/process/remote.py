"""Paths in an object store: `gs://BUCKET/FOLDER/NAME` with the methods of pathlib.

An object is put whole or not at all, so no write is ever torn. What else a file system has is
missing: folders are no more than common beginnings of names, nothing can be renamed or appended
to, nothing locks. `files.py` has what files and objects do each in its own way.

The paths are those of etils.epath, which Orbax uses too; underneath both are fsspec and gcsfs.
What went wrong is an OSError here, as with files: FileNotFoundError says that something is not
there, any other one that it can't be read or written. (epath's own `exists` says no to both.)
"""

import contextlib
import errno
import functools
import importlib.util
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from etils.epath import gpath

from hybrid.config import ConfigError

PACKAGE, EXTRA = "gcsfs", 'pip install "hybrid-attention[gcs]"'
SECONDS_BETWEEN_PUTS = 30.0
_MOST_TIME = 0.01  # of a run, for putting a growing object again and again
_DENIED = (401, 403)
_log = logging.getLogger("hybrid")


@functools.cache
def _store() -> Any:
    """The file system of gcsfs; epath, and with it Orbax, gets the same one."""
    import fsspec

    # Every error comes as an exception; gcsfs would also log it, with a traceback.
    logging.getLogger(PACKAGE).setLevel(logging.CRITICAL + 1)
    # A listing that is kept does not show what another process has written since.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)


class RemotePath(gpath.PosixGPath):
    """A path in an object store."""

    _backend = epath.backend.fsspec_backend  # whatever else is installed

    @property
    def _name(self) -> tuple[str, str]:
        """Bucket, and the name in it."""
        _, _, bucket, *names = self.parts
        return bucket, "/".join(names)

    def _call(self, method: str, **parameters: Any) -> Any:
        """A request of the JSON interface for this object."""
        with _as_os_error(self):
            return _store().call(method, "b/{}/o/{}", *self._name, **parameters)

    # --- Reading -----------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """Size, generation and so on of an object.  Raises: FileNotFoundError without one."""
        return self._call("GET", json_out=True)

    def stat(self) -> Any:
        with _as_os_error(self):
            return super().stat()

    def read_bytes(self) -> bytes:
        with _as_os_error(self):
            return _store().cat_file(str(self))

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), fewer where the object ends."""
        with _as_os_error(self):
            return _store().cat_file(str(self), start=start, end=stop)

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode()

    def is_file(self) -> bool:
        try:
            return bool(self.about())
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        bucket, name = self._name
        try:
            with _as_os_error(self):
                keys: dict[str, Any] = {"prefix": f"{name}/", "maxResults": 1, "json_out": True}
                return bool(_store().call("GET", "b/{}/o", bucket, **keys).get("items"))
        except FileNotFoundError:
            return False

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator["RemotePath"]:
        with _as_os_error(self):
            names = _store().ls(str(self), detail=False, refresh=True)
        return (self / name.rpartition("/")[2] for name in names)

    def digests(self) -> dict[str, list[Any]]:
        """[bytes, checksum] of every object below, by name; the store has computed them."""
        with _as_os_error(self):
            found = _store().find(str(self), detail=True, update_cache=False)
        start = len("/".join(self._name)) + 1
        return {name[start:]: [about["size"], about["crc32c"]] for name, about in found.items()}

    # --- Writing -----------------------------------------------------------------------------

    def write_bytes(self, data: bytes, *, mode: str = "overwrite") -> int:
        """Puts the object; with the mode `create` FileExistsError where there is one."""
        with _as_os_error(self):
            _store().pipe_file(str(self), data, mode=mode)
        return len(data)

    def renew(self, generation: str) -> None:
        """Counts up the object's metageneration, if it still is the generation that is named.

        Raises: FileNotFoundError, FileExistsError where it is gone, or another one.
        """
        self._call("PATCH", ifGenerationMatch=generation, json={"metadata": {"renewed": "yes"}})

    def unlink(self, missing_ok: bool = False, generation: str | None = None) -> None:
        """Deletes the object; where a generation is named, only that one (see `renew`)."""
        try:
            self._call("DELETE", ifGenerationMatch=generation)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        try:
            with _as_os_error(self):
                _store().rm(str(self), recursive=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: epath's would make a bucket that is missing."""

    def rmdir(self) -> None:
        """Does nothing: without objects there is no folder."""

    # --- Names -------------------------------------------------------------------------------

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def check_reachable(self, key: str) -> None:
        """Raises: ConfigError under `key` where the package or the bucket isn't there, or the
        bucket may not be listed."""
        if importlib.util.find_spec(PACKAGE) is None:
            raise ConfigError(key, f"needs the package {PACKAGE}", str(self), EXTRA)
        bucket, _ = self._name
        try:
            with _as_os_error(self):
                _store().call("GET", "b/{}/o", bucket, maxResults=1)
        except FileNotFoundError:
            raise ConfigError(key, f"there is no bucket {bucket}", str(self)) from None
        except OSError as error:
            raise ConfigError(key, f"can't be reached ({error.strerror})", str(self)) from None


AnyPath = pathlib.Path | RemotePath


@contextlib.contextmanager
def _as_os_error(path: RemotePath) -> Iterator[None]:
    """Whatever the client raises, as the OSError that a file would have given."""
    try:
        yield
    except FileNotFoundError:
        raise _os_error(errno.ENOENT, path) from None
    except FileExistsError:  # a condition that isn't met
        raise _os_error(errno.EEXIST, path) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        is_denied = getattr(error, "code", None) in _DENIED or reason.startswith("Forbidden")
        raise _os_error(errno.EACCES if is_denied else errno.EIO, path, reason) from error


def _os_error(number: int, path: RemotePath, reason: str = "") -> OSError:
    text = os.strerror(number) + (f": {reason}" if reason else "")
    return OSError(number, text, str(path))  # which is of the class that belongs to the number


# --- Objects that grow -----------------------------------------------------------------------


class RemoteLog:
    """An object that grows: all of it is kept in memory, and put again when it is due.

    That is at each `sync`, and every half minute in between as long as it takes no more than a
    hundredth of the time. What it puts was written through it alone, so a run that goes on begins
    with `replace`.
    """

    def __init__(self, path: RemotePath):
        self._path = path
        self._data: bytearray | None = None  # nothing was written yet
        self._is_put, self._due = True, 0.0

    def append(self, data: bytes) -> None:
        """Adds to the end."""
        if self._data is None:
            self._data = bytearray()
        self._data += data
        self._is_put = False
        if time.monotonic() >= self._due:
            self.sync()

    def sync(self) -> None:
        """Returns when everything so far is in the store."""
        if self._data is None or self._is_put:
            return
        start = time.monotonic()
        self._path.write_bytes(bytes(self._data))
        self._is_put, end = True, time.monotonic()
        self._due = end + max(SECONDS_BETWEEN_PUTS, (end - start) / _MOST_TIME)

    def read(self) -> bytes:
        """All of it; nothing if there is no object."""
        if self._data is not None:
            return bytes(self._data)
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def replace(self, data: bytes) -> None:
        """Puts `data` in the place of all that was there."""
        self._data, self._is_put = bytearray(data), False
        self.sync()


class EventFiles:
    """TensorBoard's files, as the factory of writers that tensorboardX asks for.

    They are for looking at: one that can't be put is warned of, and the run goes on.
    """

    @staticmethod
    def directory_check(path: str) -> None:
        """There are no folders to make."""

    @staticmethod
    def open(path: str) -> "EventFile":
        """A file to write."""
        return EventFile(path)


class EventFile:
    """One file: written, flushed and closed by tensorboardX, from a thread of its own."""

    def __init__(self, path: str):
        self._log, self._is_warned = RemoteLog(RemotePath(path)), False

    def write(self, data: bytes) -> None:
        with self._warning():
            self._log.append(data)

    def flush(self) -> None:
        """Leaves it to the log when to put: a flush comes every few seconds."""

    def close(self) -> None:
        with self._warning():
            self._log.sync()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_warned:
                _log.warning("warning: %s can't be written (%s)", error.filename, error.strerror)
            self._is_warned = True

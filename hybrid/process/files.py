"""Files and folders that exist whole or not at all, whenever the process is killed.

Paths are those of pathlib or, in an object store, of `remote.py`: what both can't do in the same
way is told apart here.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from hybrid.config import ConfigError, opened_path
from hybrid.process.remote import AnyPath, RemoteLog, RemotePath

Content = str | bytes | Callable[[io.BufferedIOBase], Any]


def path_of(key: str, text: str | os.PathLike[str]) -> AnyPath:
    """The path that a flag or key names, on this machine or `gs://BUCKET/FOLDER`.

    Raises: ConfigError under `key` for what neither can be called, or a store out of reach.
    """
    path = as_path(opened_path(key, os.fspath(text), remote=True))
    if isinstance(path, RemotePath):
        path.check_reachable(key)
    return path


def as_path(text: str | os.PathLike[str]) -> AnyPath:
    """The path of a text that `path_of` has taken before."""
    text = os.fspath(text)
    return RemotePath(text) if text.startswith("gs://") else pathlib.Path(text)


def output_file(key: str, text: str | None) -> AnyPath | None:
    """The file that a flag names to be written; None where it names none.

    Raises: ConfigError under `key` where it can't be written.
    """
    if text is None:
        return None
    path = as_path(text)
    if not text or path.is_dir():
        raise ConfigError(key, "must be a file", text)
    if isinstance(path, RemotePath):
        return path  # its bucket was found when the flag was read; folders there are only names
    if not path.parent.is_dir():
        raise ConfigError(key, "its folder doesn't exist", text)
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(key, "its folder can't be written to", text)
    return path


def is_dir(path: AnyPath) -> bool:
    """Whether a folder can be found; OSError only where a store can't be asked."""
    return path.is_dir() if isinstance(path, RemotePath) else os.path.isdir(path)


def is_file(path: AnyPath) -> bool:
    """Whether a file can be found; OSError only where a store can't be asked."""
    return path.is_file() if isinstance(path, RemotePath) else os.path.isfile(path)


def write_whole(path: AnyPath, content: Content) -> None:
    """Writes text (UTF-8), bytes, or what a function writes into the open file it is given.

    The file appears under its name when all of it is on the disk. A link stays one, and what is
    no regular file (a pipe, `/dev/stdout`) is written to as it is.
    """
    data = content.encode() if isinstance(content, str) else content
    fill = data if callable(data) else lambda file: file.write(data)
    if isinstance(path, RemotePath) or (path.exists() and not path.is_file()):
        whole = io.BytesIO()  # np.save needs a file's position, which a pipe does not have
        fill(whole)
        path.write_bytes(whole.getvalue())
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: AnyPath, values: Any, *, indent: int = 2, **options: Any) -> None:
    """Writes `values` as indented JSON with a newline at the end; `options` are json.dumps'."""
    write_whole(path, json.dumps(values, indent=indent, **options) + "\n")


class LocalLog:
    """A file that grows at its end; `RemoteLog` is the same for an object."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def append(self, data: bytes) -> None:
        """Adds to the end in one write; `sync` puts it on the disk."""
        with open(self._path, "ab") as file:
            file.write(data)

    def sync(self) -> None:
        """Returns when everything so far is on the disk."""
        with open(self._path, "ab") as file:
            os.fsync(file.fileno())

    def read(self) -> bytes:
        """All of it; nothing if there is no file."""
        return self._path.read_bytes() if self._path.exists() else b""

    def replace(self, data: bytes) -> None:
        """Puts a new file in the place of the old one."""
        write_whole(self._path, data)


def log_of(path: AnyPath) -> LocalLog | RemoteLog:
    """What appends to `path`."""
    return RemoteLog(path) if isinstance(path, RemotePath) else LocalLog(path)


def check_free(folder: pathlib.Path, key: str) -> None:
    """Raises: ConfigError under `key` for a folder that is neither new nor empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(key, "must be new or an empty folder", str(folder))


def check_writable(path: AnyPath, key: str) -> None:
    """Raises: ConfigError under `key` unless the folder is there or can be made, and written to.

    An object store tells that only when something is written.
    """
    if isinstance(path, RemotePath):
        return
    folder = path.absolute()
    while not os.path.exists(folder):
        if folder.is_symlink():
            problem = f"leads to {os.readlink(folder)}, which isn't there"
            raise ConfigError(key, problem, str(folder))
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(key, "is not a folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(key, "cannot be written to", str(folder))


_STALE_SECONDS = 24 * 3600


@contextlib.contextmanager
def shared_folder(
    folder: pathlib.Path, is_whole: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path]:
    """A temporary folder to fill, which becomes `folder` at the end of the `with`.

    Of several writers the first one wins; one that is there and not whole makes way. After an
    exception nothing is left, nor of the folders made for it. Beside what is yielded there is room
    for files that go with the `with`.
    """
    root = folder.parent
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in root.glob("writing-*"):  # what a killed writer left a day ago or more
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(
            prefix="writing-", dir=root, ignore_cleanup_errors=True
        ) as temporary:
            ready = pathlib.Path(temporary, "ready")
            ready.mkdir()
            yield ready
            _publish(ready, folder, is_whole)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # another writer uses it by now
                path.rmdir()
        raise


def _publish(
    ready: pathlib.Path, folder: pathlib.Path, is_whole: Callable[[pathlib.Path], bool]
) -> None:
    """Renames a finished folder into place, a damaged one out of the way first."""
    for _ in range(3):
        try:
            ready.rename(folder)
            return
        except OSError:
            if is_whole(folder):
                return  # another writer was first
            with contextlib.suppress(OSError):
                folder.rename(ready.with_name(f"damaged-{time.monotonic_ns()}"))
    ready.rename(folder)


@contextlib.contextmanager
def whole_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder to fill, which becomes `folder` (new or empty) at the end of the `with`.

    After an exception nothing of it is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as root:
        temporary = pathlib.Path(root, folder.name)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rmdir()
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors makes them private
        temporary.chmod(0o755)
        temporary.rename(folder)

"""Files and folders that exist whole or not at all, whenever the process is killed."""

import contextlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from hybrid.config import ConfigError

Content = str | bytes | Callable[[io.BufferedIOBase], Any]


def write_whole(path: pathlib.Path, content: Content) -> None:
    """Writes text (UTF-8), bytes, or what a function writes into the open file it is given.

    The file appears under its name when all of it is on the disk. A link stays one, and what is
    no regular file (a pipe, `/dev/stdout`) is written to as it is.
    """
    data = content.encode() if isinstance(content, str) else content
    fill = data if callable(data) else lambda file: file.write(data)
    if path.exists() and not path.is_file():
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


def write_json(path: pathlib.Path, values: Any, *, indent: int = 2, **options: Any) -> None:
    """Writes `values` as indented JSON with a newline at the end; `options` are json.dumps'."""
    write_whole(path, json.dumps(values, indent=indent, **options) + "\n")


def check_free(folder: pathlib.Path, key: str) -> None:
    """Raises: ConfigError under `key` for a folder that is neither new nor empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(key, "must be new or an empty folder", str(folder))


def check_writable(folder: pathlib.Path, key: str) -> None:
    """Raises: ConfigError under `key` unless the folder is there or can be made, and written to."""
    folder = folder.absolute()
    while not os.path.exists(folder):
        if folder.is_symlink():
            problem = f"leads to {os.readlink(folder)}, which isn't there"
            raise ConfigError(key, problem, str(folder))
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(key, "is not a folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(key, "cannot be written to", str(folder))


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

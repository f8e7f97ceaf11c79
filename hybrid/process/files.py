"""Files and folders that exist whole or not at all, whenever the process is killed."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

Content = str | bytes | Callable[[io.BufferedIOBase], Any]


def write_whole(path: pathlib.Path, content: Content) -> None:
    """Writes text (UTF-8), bytes, or what a function writes into the open file it is given.

    The file appears under its name when all of it is on the disk. A link stays one, and what is
    no regular file (a pipe, `/dev/stdout`) is written to as it is.
    """
    if path.exists() and not path.is_file():
        whole = io.BytesIO()  # np.save needs a file's position, which a pipe does not have
        _fill(whole, content)
        path.write_bytes(whole.getvalue())
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            _fill(file, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, values: Any, *, indent: int = 2, **options: Any) -> None:
    """Writes `values` as indented JSON with a newline at the end; `options` are json.dumps'."""
    write_whole(path, json.dumps(values, indent=indent, **options) + "\n")


@contextlib.contextmanager
def whole_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder to fill, which becomes `folder` (new or empty) at the end of the `with`.

    After an exception nothing of it is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors makes them private
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _fill(file: io.BufferedIOBase, content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)

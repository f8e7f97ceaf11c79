"""Files that are there whole or not at all, whenever the process is killed."""

import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

Content = str | bytes | Callable[[io.BufferedIOBase], Any]


def write_whole(path: pathlib.Path, content: Content) -> None:
    """Writes text (UTF-8), bytes, or what a function writes into the open file it is given.

    The file appears under its name when all of it is on the disk. A link stays one, and what is
    no regular file (a pipe, `/dev/stdout`) is written to as it is.
    """
    if path.exists() and not path.is_file():
        whole = io.BytesIO()  # np.save asks a file where it stands, which a pipe can't tell
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


def _fill(file: io.BufferedIOBase, content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)

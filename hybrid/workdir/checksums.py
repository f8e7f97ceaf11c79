"""`checksums.json` of a checkpoint: size and CRC-32 of each of its files.

It is written when all files are, before the checkpoint gets its name, and compared before a
checkpoint is used: Orbax and its storage notice a missing file, but read flipped bits as weights.
An object store has a checksum of each object, of another kind, and tells it without a read. A
checkpoint that was copied from the one to the other is compared by sizes.
"""

import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

from hybrid.process.files import write_json
from hybrid.process.remote import AnyPath, RemotePath

FILE = "checksums.json"
# Orbax goes on writing this one, until the very moment of the renaming.
_LATER = "_CHECKPOINT_METADATA"
_BLOCK = 1 << 24
# What says that a file is not there; any other OSError says that it can't be read.
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def write(folder: AnyPath) -> None:
    """Writes the checksums of all files in `folder` and below."""
    if isinstance(folder, RemotePath):
        entries = folder.digests()
    else:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = {str(path.relative_to(folder)): _entry(path) for path in paths}
    entries.pop(_LATER, None)
    write_json(folder / FILE, entries)


def difference(folder: AnyPath) -> str:
    """What is not as it was written: `params/d/ab12 has other content`; empty for nothing.

    Raises: OSError for a file that is there and can't be read.
    """
    try:
        entries = json.loads((folder / FILE).read_bytes())
        expected = {name: (size, checksum) for name, (size, checksum) in entries.items()}
    except ABSENT:
        return f"{FILE} is missing"
    except (ValueError, TypeError, AttributeError):
        return f"{FILE} is broken"
    size_of, checksum_of = _measures(folder)
    for name, (size, checksum) in expected.items():
        was_copied = isinstance(checksum, str) != isinstance(folder, RemotePath)
        try:
            if size_of(name) != size:
                return f"{name} has {size_of(name)} bytes in place of {size}"
            if not was_copied and checksum_of(name) != checksum:
                return f"{name} has other content"
        except (*ABSENT, KeyError):
            return f"{name} is missing"
    return ""


def digest(folder: AnyPath, below: str) -> str:
    """16 hex digits of what was written in `below` of a folder; empty without checksums.

    Costs a read of `checksums.json` alone.
    """
    try:
        entries = json.loads((folder / FILE).read_bytes())
    except ABSENT:
        return ""
    written = sorted((name, *entry) for name, entry in entries.items() if name.startswith(below))
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]


def _measures(folder: AnyPath) -> tuple[Callable[[str], int], Callable[[str], Any]]:
    """Functions that give size and checksum of a file below, by its name."""
    if isinstance(folder, RemotePath):
        stored = folder.digests()
        return lambda name: stored[name][0], lambda name: stored[name][1]
    return lambda name: (folder / name).stat().st_size, lambda name: _entry(folder / name)[1]


def _entry(path: pathlib.Path) -> list[Any]:
    """[bytes, CRC-32] of a file."""
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]

"""`checksums.json` of a checkpoint: size and CRC-32 of each of its files.

It is written when all files are, before the checkpoint gets its name, and compared before a
checkpoint is used: Orbax and its storage notice a missing file, but read flipped bits as weights.
"""

import json
import pathlib
import zlib
from typing import Any

from hybrid.process.files import write_json

FILE = "checksums.json"
# Orbax goes on writing this one, until the very moment of the renaming.
_LATER = "_CHECKPOINT_METADATA"
_BLOCK = 1 << 24
# What says that a file is not there; any other OSError says that it can't be read.
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def write(folder: pathlib.Path) -> None:
    """Writes the checksums of all files in `folder` and below."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): _entry(path) for path in paths}
    entries.pop(_LATER, None)
    write_json(folder / FILE, entries)


def difference(folder: pathlib.Path) -> str:
    """What is not as it was written: `params/d/ab12 has other content`; empty for nothing.

    Raises: OSError for a file that is there and can't be read.
    """
    try:
        entries = json.loads((folder / FILE).read_bytes())
        expected = {folder / name: list(entry) for name, entry in entries.items()}
    except ABSENT:
        return f"{FILE} is missing"
    except (ValueError, TypeError, AttributeError):
        return f"{FILE} is broken"
    for path, entry in expected.items():
        name = path.relative_to(folder)
        try:
            if path.stat().st_size != entry[0]:
                return f"{name} has {path.stat().st_size} bytes in place of {entry[0]}"
            if _entry(path) != entry:
                return f"{name} has other content"
        except ABSENT:
            return f"{name} is missing"
    return ""


def _entry(path: pathlib.Path) -> list[Any]:
    """[bytes, CRC-32] of a file."""
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]

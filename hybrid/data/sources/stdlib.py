"""The running Python's own library sources: ten megabytes that every machine has."""

import functools
import pathlib
import re
import sysconfig
from collections.abc import Sequence

_LEFT_OUT_FOLDERS = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
)
# How the library's own generators sign, within the first lines of what they write.
_GENERATED = re.compile(
    rb"auto-?generated|automatically generated|generated and used by|do not edit"
    rb"|generated (?:by|from) [^\n]*(?:gencodec|\.py\b|\.txt\b|\.xml\b)",
    re.IGNORECASE,
)
_SIGNATURE_BYTES = 1000


def root() -> pathlib.Path:
    """The folder of the library."""
    return pathlib.Path(sysconfig.get_paths()["stdlib"])


@functools.cache
def files() -> tuple[pathlib.Path, ...]:
    """The library's Python files, sorted; without tests and installed packages."""
    found = (path for path in root().rglob("*.py") if path.is_file())
    kept = (p for p in found if not _LEFT_OUT_FOLDERS & set(p.relative_to(root()).parts[:-1]))
    return tuple(sorted(kept, key=lambda path: path.relative_to(root()).as_posix()))


def by_people(paths: Sequence[str]) -> list[int]:
    """The numbers of the files that hold text which no generator has signed.

    Generated are `pydoc_data/topics.py`, most tables in `encodings/`, `token.py` and the build's
    `_sysconfigdata`, and say so at their beginning.
    """
    begins = []
    for path in paths:
        with open(path, "rb") as file:
            begins.append(file.read(_SIGNATURE_BYTES))
    return [n for n, text in enumerate(begins) if text and not _GENERATED.search(text)]

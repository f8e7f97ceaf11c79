"""Which files a list of paths names, and how one is opened, gzip and zstd unpacked.

A path is a file, a glob, or a folder with all files of the source's kind in it and below. A
folder that Hugging Face `datasets` has saved stands for the Arrow files that its state.json lists.
"""

import contextlib
import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from hybrid.config import ConfigError

STATE, SPLITS = "state.json", "dataset_dict.json"  # of a folder of `datasets`
_PACKED = ("", ".gz", ".zst")
# How files end that a folder is searched for; text may have any name.
ENDINGS = {
    "jsonl": tuple(name + packed for name in (".jsonl", ".ndjson", ".json") for packed in _PACKED),
    "parquet": (".parquet",),
    "datasets": (".arrow",),
}


def expand(
    patterns: Sequence[str], kind: str, config_key: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of paths, globs and folders, and what else globs name that is no folder.

    What a glob or folder holds is sorted, and a file is there once however it is spelled. What
    exists under the very name that is given is no glob.
    Raises: ConfigError for a pattern without a file.
    """
    files: dict[str, str] = {}  # by real path
    others: dict[str, None] = {}
    for pattern in patterns:
        matches = matches_of(pattern)
        named = [name for match in matches for name in _files_of(match, kind, config_key)]
        if not named:
            raise _no_file(pattern, matches, kind, config_key)
        for name in named:
            files.setdefault(os.path.realpath(name), name)
        no_files = (m for m in matches if not os.path.isfile(m) and not os.path.isdir(m))
        others.update(dict.fromkeys(no_files))
    return tuple(files.values()), tuple(others)


def matches_of(pattern: str) -> list[str]:
    """What a path or glob names; folders that exist as they are spelled stay so, `[ ]` or not."""
    return [pattern] if os.path.lexists(pattern) else sorted(_glob(pattern))


def names_something(pattern: str) -> bool:
    """Whether `matches_of` would be any; the walk ends at the first."""
    return os.path.lexists(pattern) or next(_glob(pattern), None) is not None


def _glob(pattern: str) -> Iterator[str]:
    ends = [place for place, c in enumerate(pattern) if c == "/" and os.path.isdir(pattern[:place])]
    literal = pattern[: max(ends, default=0)]
    return glob.iglob(glob.escape(literal) + pattern[len(literal) :], recursive=True)


def _files_of(match: str, kind: str, config_key: str) -> list[str]:
    """The file itself, or those of a folder; none of what is neither."""
    if os.path.isfile(match):
        return [match]
    if not os.path.isdir(match):
        return []
    found, seen = [], set()
    for folder, folders, names in os.walk(match, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if kind == "datasets" and (saved := _saved_files(folder, config_key)):
            found += saved  # beside what `datasets` keeps there of its own
            continue
        shown = (name for name in sorted(names) if not name.startswith("."))
        endings = ENDINGS.get(kind, ("",))
        paths = (os.path.join(folder, name) for name in shown if name.lower().endswith(endings))
        found += [path for path in paths if os.path.isfile(path)]
    return found


def _saved_files(folder: str, config_key: str) -> list[str]:
    """The Arrow files of a folder that `datasets` has saved, in its order; none of another one."""
    splits = os.path.join(folder, SPLITS)
    if os.path.isfile(splits):
        names = ", ".join(os.path.join(folder, name) for name in _listed(splits, "splits"))
        raise ConfigError(config_key, "holds several splits", folder, f"one of {names}")
    state = os.path.join(folder, STATE)
    if not os.path.isfile(state):
        return []
    try:
        return [os.path.join(folder, file["filename"]) for file in _listed(state, "_data_files")]
    except (KeyError, TypeError):
        raise _not_saved(state, "_data_files") from None


def _listed(path: str, name: str) -> list:
    """A list in a file of `datasets`."""
    with opened(path) as file:
        try:
            values = json.load(file)
        except ValueError as error:
            raise ConfigError("data.paths", f"is not JSON ({error})", path) from None
    if not isinstance(values, dict) or not isinstance(values.get(name), list):
        raise _not_saved(path, name)
    return values[name]


def _not_saved(path: str, name: str) -> ConfigError:
    accepted = "a folder that the library datasets has saved"
    return ConfigError("data.paths", f"lists no {name}", path, accepted)


def _no_file(pattern: str, matches: Sequence[str], kind: str, config_key: str) -> ConfigError:
    """The error for a pattern that names no file, by what it names instead."""
    remedy = "files, globs or folders"
    if any(map(os.path.isdir, matches)):
        endings = " or ".join(ENDINGS.get(kind, ("any name",)))
        return ConfigError(
            config_key, f"holds no file of {kind}", matches[0], f"files of {endings}"
        )
    if matches:
        nowhere = os.path.islink(matches[0])
        problem = "is a link that leads nowhere" if nowhere else "is no regular file"
        return ConfigError(config_key, problem, matches[0], remedy)
    if "[" in pattern:
        remedy += ", in which [ ] hold characters to choose from ([[] is a bracket itself)"
    return ConfigError(config_key, "no such file", pattern, remedy)


# --- Opening -----------------------------------------------------------------------------------

# How compressed files begin, and how their names end.
_UNPACKED = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UNPACKED |= {bytes([0x50 + n]) + b"\x2a\x4d\x18": "zstd" for n in range(16)}  # pzstd's begin so
_NOT_UNPACKED = (b"BZh", b"\xfd7zXZ\0")
_NAMES = (".gz", ".zst", ".bz2", ".xz")
_BUFFER = 1 << 20


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file, open to read bytes; gzip and zstd come unpacked.

    Raises: ConfigError where that fails, also later within the `with`, or would be no text.
    """
    try:
        with open(path, "rb") as file:
            begins = file.read(10)
            packed = next(
                (kind for magic, kind in _UNPACKED.items() if begins.startswith(magic)), None
            )
            if packed is None:
                _check_plain(path, begins)
                file.seek(0)
                yield file
                return
        import pyarrow  # only those who unpack pay for it

        with pyarrow.input_stream(path, compression=packed) as stream:
            yield io.BufferedReader(stream, _BUFFER)
    except OSError as error:
        problem = f"can't be read ({error.strerror or str(error).strip()})"
        raise ConfigError("data.paths", problem, path) from None


def _check_plain(path: str, begins: bytes) -> None:
    """Raises: ConfigError for what is compressed in another way, or is not but is named so."""
    if begins.startswith(_NOT_UNPACKED):
        raise ConfigError("data.paths", "is compressed", path, "gzip or zstd, or unpack it first")
    if path.lower().endswith(_NAMES):
        raise ConfigError("data.paths", "is not compressed as its name says", path)

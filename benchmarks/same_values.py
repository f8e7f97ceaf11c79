"""What a folder of runs holds, file by file, and where two folders differ in a bit."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

TIMES = ("second", "time", "mfu")
ITEMS = ("params", "opt_state", "counters")
Values = dict[str, Any]


def found(folder: Path, roots: list[Path]) -> dict[str, Values]:
    """Of every file of results or checkpoint in `folder`, its values by their place.

    Paths below one of `roots` are told as if all were the same.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.parent.name == "checkpoints" and path.name.isdecimal():
            files[name] = _checkpoint(path)
        elif path.name == "metrics.jsonl":
            files[name] = _rows(path.read_text())
        elif path.parent == folder and path.suffix in READERS:
            files[name] = READERS[path.suffix](path, roots)
    return {name: values for name, values in files.items() if count(values)}


def compare(old: Values, new: Values) -> str:
    """The first difference of two files; empty if all bits are equal."""
    for place in (*old, *new):
        if place not in old or place not in new:
            return f"{place}: only in the {'old' if place in old else 'new'} version"
    for place, value in old.items():
        if difference := _difference(value, new[place]):
            return f"{place}: {difference}"
    return ""


def count(values: Values) -> int:
    """How many numbers a file holds; of a text, its characters."""
    return sum(_size(value) for value in values.values())


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.size
    return len(value) if isinstance(value, str) else 1


def _difference(old: Any, new: Any) -> str:
    if not isinstance(old, np.ndarray):  # Python writes floats so that every bit counts
        return "" if repr(old) == repr(new) else f"{old!r}, now {new!r}"
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{old.dtype}{list(old.shape)}, now {new.dtype}{list(new.shape)}"
    differs = np.flatnonzero((_bytes(old) != _bytes(new)).any(axis=1))
    if not len(differs):
        return ""
    first = differs[0]
    values = f"{old.reshape(-1)[first]!s}, now {new.reshape(-1)[first]!s}"
    return f"{len(differs)} of {old.size} differ, first entry {first}: {values}"


def _bytes(array: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).reshape(flat.size, array.dtype.itemsize)


# --- Reading ---------------------------------------------------------------------------------


def _rows(text: str) -> Values:
    values: Values = {}
    for number, line in enumerate(text.splitlines(), 1):
        row = json.loads(line)
        values |= flat(row, f"line {number}, step {row['step']}")
    return values


def flat(tree: Any, place: str = "") -> Values:
    """The leaves of nested JSON by their place; entries about time and speed are left out."""
    if isinstance(tree, dict):
        kept = {key: value for key, value in tree.items() if not any(t in key for t in TIMES)}
    elif isinstance(tree, list):
        kept = dict(enumerate(tree))
    else:
        return {place: tree}
    values: Values = {}
    for key, value in kept.items():
        values |= flat(value, f"{place} {key}".strip())
    return values


def _text(path: Path, roots: list[Path]) -> str:
    text = path.read_text()
    for root in roots:
        text = text.replace(str(root), "FOLDER")
    return text


READERS = {
    ".json": lambda path, roots: flat(json.loads(_text(path, roots))),
    ".txt": lambda path, roots: {
        f"line {i}": s for i, s in enumerate(_text(path, roots).split("\n"), 1)
    },
    ".npy": lambda path, roots: {"array": np.load(path)},
}


def _checkpoint(path: Path) -> Values:
    values = flat(json.loads((path / "run" / "metadata").read_text()), "record")
    return values | arrays(path)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of the checkpoint in a folder: parameters, optimizer state and counters."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import orbax.checkpoint as ocp

    values = {}
    for item in ITEMS:
        with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as checkpointer:
            warnings.filterwarnings("ignore", "Sharding info not provided")
            tree = jax.device_get(checkpointer.restore((path / item).resolve()))
        for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
            values[item + jax.tree_util.keystr(name)] = np.asarray(leaf)
    return values

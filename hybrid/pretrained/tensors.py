"""The tensors of a Hugging Face folder: one safetensors file, or several with an index.

Safe by construction: nothing is unpickled, an index can't name a file outside its folder, and
every header is read and checked before the first tensor is. Quantised tensors are refused.
"""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hybrid.config import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = ("F64", "F32", "F16", "BF16")


class Tensors:
    """The tensors of a folder by their full names.

    Attributes:
      shapes: of every tensor in the folder.
    """

    def __init__(self, folder: pathlib.Path, key: str = "init_from"):
        """Raises: ConfigError under `key` naming the folder, file or tensor that is wrong."""
        import safetensors  # only those who read such folders pay for it

        self._open, self._error = safetensors.safe_open, safetensors.SafetensorError
        self.folder, self.key = folder, key
        named = self._named_files()
        self._files: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in named or [folder / SINGLE]:
            self._add(path)
        self._check_index(named)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """A tensor, or some of its first axis, in the file's dtype."""
        with self._open(self._files[name], "numpy") as file:
            return file.get_slice(name)[rows] if self.shapes[name] else file.get_tensor(name)

    def _named_files(self) -> dict[pathlib.Path, list[str]]:
        """The files of the index and the tensors it sees in each; empty without an index."""
        path = self.folder / INDEX
        if (self.folder / SINGLE).is_file():
            return {}
        if not path.is_file():
            raise self._wrong(*self._nothing())
        try:
            entries = json.loads(path.read_bytes())["weight_map"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._wrong(f"{INDEX} is broken ({error!r})") from None
        files: dict[pathlib.Path, list[str]] = {}
        for name, file in entries:
            if not isinstance(file, str) or pathlib.PurePath(file).name != file or "\\" in file:
                raise self._wrong(f"{INDEX} names a file outside the folder for {name}", file)
            files.setdefault(self.folder / file, []).append(name)
        return files

    def _nothing(self) -> tuple[str, Any]:
        pickles = [path.name for kind in _PICKLES for path in sorted(self.folder.glob(kind))]
        if pickles:
            return "holds pickled weights alone, which are never read; only safetensors", pickles[0]
        return f"holds neither {SINGLE} nor {INDEX}", None

    def _add(self, path: pathlib.Path) -> None:
        if not path.is_file():
            raise self._wrong(f"{INDEX} names a file that isn't there", path.name)
        try:
            with self._open(path, "numpy") as file:
                headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in headers.items()}
        except (self._error, OSError, ValueError) as error:
            raise self._wrong(f"{path.name} can't be read ({_line(error)})") from None
        for name, (shape, dtype) in found.items():
            if dtype not in _FLOATS:
                raise self._wrong(f"{name} is quantised, or of no floating dtype", dtype)
            if name in self._files:
                raise self._wrong(f"{name} stands in two files", path.name)
            self._files[name], self.shapes[name] = path, shape

    def _check_index(self, named: dict[pathlib.Path, list[str]]) -> None:
        for path, names in named.items():
            for name in names:
                if self._files.get(name) != path:
                    raise self._wrong(f"{path.name} lacks a tensor of {INDEX}", name)
        known = {name for names in named.values() for name in names}
        unknown = sorted(self._files.keys() - known) if named else []
        if unknown:
            raise self._wrong(f"a file has a tensor that {INDEX} does not name", unknown[0])

    def _wrong(self, problem: str, got: Any = None) -> ConfigError:
        return ConfigError(self.key, f"{self.folder} {problem}", got)


def write(
    path: pathlib.Path,
    shards: list[list[tuple[str, int]]],
    make: Callable[[str], np.ndarray],
    said: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes files of tensors into the folder `path`, with an index where there are several.

    Args:
      shards: (name, bytes) of the tensors of each file.
      make: gives a tensor by its name; only those of one file live at once.
    """
    from safetensors.numpy import save_file

    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        one = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = SINGLE if len(shards) == 1 else one
        tensors = {name: np.ascontiguousarray(make(name)) for name, _ in shard}
        save_file(tensors, path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        said(file)
    if len(shards) > 1:
        size = sum(size for shard in shards for _, size in shard)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def shards_of(sizes: Iterable[tuple[str, int]], most: int) -> list[list[tuple[str, int]]]:
    """(name, bytes) of tensors in files of at most `most` bytes each, larger tensors alone."""
    shards: list[list[tuple[str, int]]] = []
    filled = 0
    for name, size in sizes:
        if not shards or filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += size
    return shards


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]

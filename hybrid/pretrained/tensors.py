"""The tensors of a Hugging Face folder: one safetensors file, or several with an index.

Safe by construction: nothing is unpickled, an index can't name a file outside its folder, and
every header is read and checked before the first tensor is. Quantised tensors are refused.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.process.files import write_json

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
        indexed = self._index()
        self._files: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in dict.fromkeys(indexed.values()) or [folder / SINGLE]:
            self._add(path)
        self._check_index(indexed)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """A tensor, or some of its first axis, in the file's dtype."""
        with self._open(self._files[name], "numpy") as file:
            return file.get_slice(name)[rows] if self.shapes[name] else file.get_tensor(name)

    def _index(self) -> dict[str, pathlib.Path]:
        """The file of each tensor that the index lists; empty without an index."""
        path = self.folder / INDEX
        if (self.folder / SINGLE).is_file():
            return {}
        if not path.is_file():
            pickles = [file.name for kind in _PICKLES for file in sorted(self.folder.glob(kind))]
            if pickles:
                problem = "holds pickled weights alone, which are never read; only safetensors"
                raise self._wrong(problem, pickles[0])
            raise self._wrong(f"holds neither {SINGLE} nor {INDEX}")
        try:
            entries = json.loads(path.read_bytes())["weight_map"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._wrong(f"{INDEX} is broken ({error!r})") from None
        for name, file in entries:
            if not isinstance(file, str) or pathlib.PurePath(file).name != file or "\\" in file:
                raise self._wrong(f"{INDEX} names a file outside the folder for {name}", file)
        return {name: self.folder / file for name, file in entries}

    def _add(self, path: pathlib.Path) -> None:
        if not path.is_file():
            raise self._wrong(f"{INDEX} names a file that isn't there", path.name)
        try:
            with self._open(path, "numpy") as file:
                headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                stored = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in headers.items()}
        except (self._error, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise self._wrong(f"{path.name} can't be read ({reason})") from None
        for name, (shape, dtype) in stored.items():
            if dtype not in _FLOATS:
                raise self._wrong(f"{name} is quantised, or of no floating dtype", dtype)
            if name in self._files:
                raise self._wrong(f"{name} stands in two files", path.name)
            self._files[name], self.shapes[name] = path, shape

    def _check_index(self, indexed: dict[str, pathlib.Path]) -> None:
        for name, path in indexed.items():
            if self._files.get(name) != path:
                raise self._wrong(f"{path.name} lacks a tensor of {INDEX}", name)
        unlisted = sorted(self._files.keys() - indexed.keys()) if indexed else []
        if unlisted:
            raise self._wrong(f"a file has a tensor that {INDEX} does not name", unlisted[0])

    def _wrong(self, problem: str, got: Any = None) -> ConfigError:
        return ConfigError(self.key, f"{self.folder} {problem}", got)


def write(
    folder: pathlib.Path,
    sizes: Mapping[str, int],
    most_bytes: int,
    make: Callable[[str], np.ndarray],
) -> None:
    """Writes files of tensors into `folder`, with an index where there are several.

    Args:
      sizes: bytes of each tensor by name.
      most_bytes: of a file, larger single tensors aside.
      make: gives a tensor by its name; only those of one file exist at once.
    """
    from safetensors.numpy import save_file

    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not shards or filled + size > most_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE
        tensors = {name: np.ascontiguousarray(make(name)) for name in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = {"total_size": sum(sizes.values())}
        index = {"metadata": total, "weight_map": dict(sorted(files.items()))}
        write_json(folder / INDEX, index)

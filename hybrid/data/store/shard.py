"""A shard: whole documents' tokens and where they came from, in one safetensors file.

    tokens        uint16 or uint32 [n], every document as `[BOS] tokens [EOS]`
    starts        int64 [d], where each document begins in it
    num_bytes     int64 [d], of its text
    file, place   int32, int64 [d]: which of `files` it came from, and its line or row (0: all)
    files         uint8, a JSON list of names
    token_bytes   uint16 [n], bytes of text of each token; held out, where the tokenizer can tell
    predicted     uint8 [n / 8], a bit a token; where not every token is predicted

Each array A has its checksums in `A.crc32`, one for 64 KiB, and is checked by the blocks that are
read, when they are read first. So a shard is opened without reading it, a random row costs the
check of a block or two, and damage is named before it is trained on. The checksum of header and
checksums stands in the manifest.
"""

import functools
import json
import os
import pathlib
import weakref
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.process.files import write_whole
from hybrid.process.remote import AnyPath, RemotePath

BLOCK = 1 << 16  # bytes of a checksum
_CHECKSUMS = ".crc32"
_HEADER_BYTES = 1 << 12  # what is read at once of a store far away; most headers are shorter
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I32": np.int32, "I64": np.int64}


def write(path: AnyPath, arrays: Mapping[str, np.ndarray]) -> int:
    """Writes a shard, whole or not at all, and returns the checksum of its index."""
    from safetensors.numpy import save

    sums = {f"{name}{_CHECKSUMS}": _block_sums(array) for name, array in arrays.items()}
    data = save({**arrays, **sums})
    write_whole(path, data)
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    return _index_sum(header, sums)


def _block_sums(array: np.ndarray) -> np.ndarray:
    data = np.ascontiguousarray(array).view(np.uint8)
    sums = (
        zlib.crc32(data[start : start + BLOCK].tobytes()) for start in range(0, len(data), BLOCK)
    )
    return np.fromiter(sums, np.uint32)


def _index_sum(header: bytes, sums: Mapping[str, np.ndarray]) -> int:
    total = zlib.crc32(header)
    for name in sorted(sums):
        total = zlib.crc32(sums[name].tobytes(), total)
    return total


class Shard:
    """A shard, open to read; a `Stream` of packing.

    Attributes:
      num_tokens: of all its documents.
    """

    def __init__(self, path: AnyPath, index_crc32: int):
        """Raises: ConfigError for a file that is missing, cut or damaged in its index."""
        self._path = path
        try:
            self._read = _reader(path)
            header = self._read(0, _HEADER_BYTES)
            size = 8 + int.from_bytes(header[:8], "little")
            if size > len(header):
                header += self._read(len(header), size)
            header = header[:size]
            about = json.loads(header[8:])
            about.pop("__metadata__", None)
            self._arrays = {name: _Place.of(entry, size) for name, entry in about.items()}
            names = [name for name in self._arrays if name.endswith(_CHECKSUMS)]
            self._sums = {name: self._whole(name) for name in names}
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, f"can't be read: {error}") from None
        if _index_sum(header, self._sums) != index_crc32:
            raise _damaged(path, "its index has another checksum")
        self._is_checked = {name: np.zeros(len(sums), bool) for name, sums in self._sums.items()}
        self.num_tokens = self._arrays["tokens"].size

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """Where each document begins, int64 [num_documents]."""
        return self.array("starts")

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Unsigned integers [stop - start].  Raises: ConfigError where they are damaged."""
        return self.array("tokens", start, stop)

    def predicted(self, start: int, stop: int) -> np.ndarray | None:
        """Which of these tokens are predicted, bool [stop - start]; None: all."""
        if "predicted" not in self:
            return None
        bits = self.array("predicted", start // 8, -(-stop // 8))
        return np.unpackbits(bits, count=stop - start // 8 * 8)[start % 8 :].astype(bool)

    def names(self, first: int, last: int) -> list[str]:
        """Where the documents [first, last) came from."""
        from hybrid.data.sources.rows import place_name

        files = json.loads(self.array("files").tobytes())
        file, place = (self.array(name, first, last).tolist() for name in ("file", "place"))
        return [place_name(files[f], p) for f, p in zip(file, place, strict=True)]

    def array(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The elements [start, stop) of an array.  Raises: ConfigError where it is damaged."""
        place = self._arrays[name]
        stop = place.size if stop is None else stop
        first = start * place.dtype.itemsize // BLOCK
        low, last = first * BLOCK, -(-stop * place.dtype.itemsize // BLOCK)
        high = min(last * BLOCK, place.num_bytes)
        data = self._read(place.start + low, place.start + high)
        if len(data) < high - low:
            raise _damaged(self._path, f"ends within its {name}")
        self._check(name, data, first, last)
        skipped = start - low // place.dtype.itemsize
        return np.frombuffer(data, place.dtype)[skipped : skipped + stop - start]

    def verify(self) -> None:
        """Reads all of it.  Raises: ConfigError where it is damaged."""
        for name, place in self._arrays.items():
            if not name.endswith(_CHECKSUMS):
                step = (1 << 24) // place.dtype.itemsize
                for start in range(0, place.size, step):
                    self.array(name, start, min(start + step, place.size))

    def _whole(self, name: str) -> np.ndarray:
        place = self._arrays[name]
        data = self._read(place.start, place.start + place.num_bytes)
        return np.frombuffer(data, place.dtype)

    def _check(self, name: str, data: bytes, first: int, last: int) -> None:
        key = f"{name}{_CHECKSUMS}"
        sums, is_checked = self._sums[key], self._is_checked[key]
        for block in range(first, last):
            if not is_checked[block]:
                at = (block - first) * BLOCK
                if zlib.crc32(data[at : at + BLOCK]) != sums[block]:
                    raise _damaged(self._path, f"block {block} of its {name} has another checksum")
                is_checked[block] = True


class _Place:
    """Where an array stands in the file."""

    def __init__(self, dtype: np.dtype, size: int, start: int):
        self.dtype, self.size, self.start = dtype, size, start
        self.num_bytes = size * dtype.itemsize

    @classmethod
    def of(cls, entry: dict[str, Any], data_start: int) -> "_Place":
        """The place that a header's entry tells."""
        dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
        start, _ = entry["data_offsets"]
        return cls(dtype, entry["shape"][0], data_start + start)


def _reader(path: AnyPath) -> Callable[[int, int], bytes]:
    """A function that gives the bytes [start, stop) of a file, fewer where it ends."""
    return path.read_range if isinstance(path, RemotePath) else _LocalFile(path)


class _LocalFile:
    """A file that stays open, read by place.

    Not mapped: pages of a map count as the process's memory, a megabyte a row on some systems,
    and a file that is cut while it is mapped ends the process (SIGBUS).
    """

    def __init__(self, path: pathlib.Path):
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def __call__(self, start: int, stop: int) -> bytes:
        return os.pread(self._descriptor, stop - start, start)


def _damaged(path: AnyPath, problem: str) -> ConfigError:
    return ConfigError("data.paths", f"shard {path} is damaged: {problem}", accepted=REMEDY)


REMEDY = "a whole copy of it, or a store made anew"

"""Rows of a store's split: shard after shard, each packed by itself.

Rows cut through (`packing=stream`) are arithmetic, so a split of any size opens at once. The other
ways look at the length of every document; what they find is kept in the cache folder, a few
numbers a document, and mapped from there.
"""

import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections import OrderedDict
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.data import packing
from hybrid.data.packing import Layout, ListedRows, Row
from hybrid.data.store.manifest import Store
from hybrid.data.store.shard import Shard
from hybrid.process.files import check_writable, shared_folder

_TOTALS, _PARTS = "totals.json", ("spans", "ends")
_COUNTS = ("num_rows", "left_out", "crc32")
_LISTS_OPEN = 128


@dataclasses.dataclass(frozen=True)
class Shares:
    """What became of the places of an epoch's rows.

    Attributes:
      places: rows times context length.  predicted: places that predict a token.
      left_out: tokens that would be predicted and are in no row.
    """

    places: int
    predicted: int
    left_out: int

    @property
    def description(self) -> str:
        """For a log: how much is padding, and how much of the text was left out."""
        padding = 1 - self.predicted / max(self.places, 1)
        line = f"{padding:.1%} of the places predict nothing"
        if self.left_out:
            lost = self.left_out / (self.left_out + self.predicted)
            line += f", {lost:.1%} of the text left out"
        return line


class StoreRows:
    """The rows of a split, by number.

    Attributes:
      store: that holds the documents.
      num_rows: of an epoch.
      shares: how full they are.
    """

    def __init__(self, store: Store, split: str, layout: Layout, cache: pathlib.Path):
        self.store, self._split, self._layout = store, split, layout
        about = store.manifest.split(split)
        predicted = about.total("num_predicted")
        if layout.packing == "stream":
            counts = [layout.num_stream_rows(shard.num_tokens) for shard in about.shards]
            left_out, self._lists = 0, None
        else:
            self._lists = _Lists(store, split, layout, cache)
            counts, left_out = self._lists.num_rows, self._lists.left_out
        self._ends = np.cumsum(counts)
        self.num_rows = int(self._ends[-1]) if counts else 0
        places = self.num_rows * layout.context_length
        self.shares = Shares(places, predicted - left_out, left_out)

    def row(self, index: int) -> Row:
        """Row `index` below num_rows, by the fields of `Batch`, each [context_length].

        Raises: ConfigError where its shard is damaged.
        """
        stream, pieces = self._pieces(index)
        return packing.row_of(stream, self._layout, pieces)

    def names(self, index: int) -> list[str]:
        """Where the documents of row `index` came from, in its order."""
        shard, pieces = self._pieces(index)
        found = []
        for start, stop in pieces:
            first = int(np.searchsorted(shard.starts, start, "right")) - 1
            has_bos = self._layout.window_bos is not None and shard.starts[first] != start
            # One token more would be a target alone.
            end = min(stop, start + self._layout.context_length - has_bos)
            found += shard.names(first, int(np.searchsorted(shard.starts, end)))
        return found

    def _pieces(self, index: int) -> tuple[Shard, list[packing.Span]]:
        """The shard that holds a row, and the row's stretches of it."""
        number = int(np.searchsorted(self._ends, index, "right"))
        local = index - (int(self._ends[number - 1]) if number else 0)
        shard = self.store.shard(self._split, number)
        if self._lists is None:
            return shard, packing.StreamRows(shard, self._layout).pieces(local)
        return shard, self._lists.of(number).pieces(local)


class _Lists:
    """Which pieces each row of each shard holds, kept on disk."""

    def __init__(self, store: Store, split: str, layout: Layout, cache: pathlib.Path):
        about = store.manifest.split(split)
        shards = [(shard.file, shard.index_crc32) for shard in about.shards]
        parts = (3, shards, layout.packing, layout.context_length, layout.window_bos is not None)
        name = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
        self._folder = cache / f"rows-{name}"
        totals = _totals(self._folder)
        if totals is None:
            check_writable(cache, "data.cache_dir")
            totals = _written(self._folder, store, split, layout)
        self.num_rows, self.left_out = totals["num_rows"], totals["left_out"]
        self._checksums = totals["crc32"]
        self._open: OrderedDict[int, ListedRows] = OrderedDict()

    def of(self, number: int) -> ListedRows:
        """The list of a shard.  Raises: ConfigError where it is damaged."""
        found = self._open.get(number)
        if found is None:
            spans, ends = (self._array(number, part) for part in _PARTS)
            found = self._open[number] = ListedRows(spans, ends)
            if len(self._open) > _LISTS_OPEN:
                self._open.popitem(last=False)
        return found

    def _array(self, number: int, part: str) -> np.ndarray:
        path = self._folder / _file(number, part)
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            found = None
        if found is None or zlib.crc32(found.tobytes()) != self._checksums[number][part]:
            problem = "holds a damaged list of rows"
            raise ConfigError("data.cache_dir", problem, str(path), "remove its folder")
        return found


def _file(number: int, part: str) -> str:
    return f"{number:05}-{part}.npy"


def _totals(folder: pathlib.Path) -> dict[str, Any] | None:
    """What the finished lists of a folder come to; None where there are none."""
    try:
        found = json.loads((folder / _TOTALS).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {*found} == {*_COUNTS} else None


def _written(folder: pathlib.Path, store: Store, split: str, layout: Layout) -> dict[str, Any]:
    """Writes the lists and returns their totals.

    Raises: ConfigError for a cache folder that can't be written.
    """
    try:
        with shared_folder(folder, lambda path: _totals(path) is not None) as made:
            totals = _write_lists(made, store, split, layout)
    except OSError as error:
        problem = f"can't be written ({error.strerror})"
        raise ConfigError("data.cache_dir", problem, str(folder.parent)) from None
    return totals


def _write_lists(folder: pathlib.Path, store: Store, split: str, layout: Layout) -> dict[str, Any]:
    totals: dict[str, Any] = {"num_rows": [], "left_out": 0, "crc32": []}
    for number in range(len(store.manifest.split(split).shards)):
        rows = packing.rows_of(store.shard(split, number), layout)
        assert isinstance(rows, ListedRows)
        arrays = {part: getattr(rows, part) for part in _PARTS}
        for part, array in arrays.items():
            np.save(folder / _file(number, part), array)
        totals["crc32"].append(
            {part: zlib.crc32(array.tobytes()) for part, array in arrays.items()}
        )
        totals["num_rows"].append(rows.num_rows)
        totals["left_out"] += rows.num_left_out
    (folder / _TOTALS).write_text(json.dumps(totals))
    return totals

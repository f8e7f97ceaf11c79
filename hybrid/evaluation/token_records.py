"""The raw rows of an evaluation: a column each, an entry a predicted token, in input order.

Means and buckets are made from these, and so are differences paired token by token and intervals
over documents. In a file they are the arrays `256/nll`, `256/position`, … of a .npz, one group for
each context length.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybrid.process.files import write_whole

ABSENT = np.empty(0)  # a column that text or a task does not have


def _optional() -> Any:
    return dataclasses.field(default_factory=lambda: ABSENT)


@dataclasses.dataclass(frozen=True)
class TokenRecords:
    """Columns of one length.  Text has `repeat_distance`; a task has the three after it.

    Attributes:
      nll: nats, float32 (float64 while it is summed up).
      position: inputs of its window that precede the predicting one, int32.
      document: index of the document or example, int32.
      repeat_distance: tokens back to the latest earlier sight of the bigram that the token ends,
        int32; 0 where its window holds none (`repeats.py`).
      correct: whether the target has the largest logit, bool.
      distance: tokens from the asking input back to the value, int32.
      num_pairs: pairs in its row, int32.
    """

    nll: np.ndarray
    position: np.ndarray
    document: np.ndarray
    repeat_distance: np.ndarray = _optional()
    correct: np.ndarray = _optional()
    distance: np.ndarray = _optional()
    num_pairs: np.ndarray = _optional()

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are present, by name."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: column for name, column in columns.items() if column is not ABSENT}


def save_records(path: str | pathlib.Path, records: Mapping[int, TokenRecords]) -> None:
    """Writes the records of each context length to a .npz file."""
    arrays: dict[str, Any] = {
        f"{length}/{name}": column
        for length, of_length in records.items()
        for name, column in of_length.columns().items()
    }
    write_whole(pathlib.Path(path), lambda file: np.savez(file, **arrays))


def load_records(path: str | pathlib.Path) -> dict[int, TokenRecords]:
    """The records that `save_records` wrote, by context length."""
    columns: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            length, name = key.split("/")
            columns.setdefault(int(length), {})[name] = arrays[key]
    return {length: TokenRecords(**named) for length, named in columns.items()}

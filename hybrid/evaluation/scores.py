"""The raw rows of an evaluation: a column each, an entry a predicted token, in input order.

Means and buckets are made from these; whoever pairs two evaluations token by token, or asks for
intervals over documents, starts here. In a file they are the arrays `256/nll`, `256/position`, …
of a .npz, one group for each context length.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybrid.process.files import write_whole

ABSENT = np.empty(0)  # a column that text or a task does not have


def _absent() -> np.ndarray:
    return ABSENT


@dataclasses.dataclass(frozen=True)
class Scores:
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
    repeat_distance: np.ndarray = dataclasses.field(default_factory=_absent)
    correct: np.ndarray = dataclasses.field(default_factory=_absent)
    distance: np.ndarray = dataclasses.field(default_factory=_absent)
    num_pairs: np.ndarray = dataclasses.field(default_factory=_absent)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are present, by name."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: column for name, column in columns.items() if column is not ABSENT}


def save_scores(path: str | pathlib.Path, scores: Mapping[int, Scores]) -> None:
    """Writes the scores of each context length to a .npz file."""
    arrays: dict[str, Any] = {
        f"{length}/{name}": column
        for length, of_length in scores.items()
        for name, column in of_length.columns().items()
    }
    write_whole(pathlib.Path(path), lambda file: np.savez(file, **arrays))


def load_scores(path: str | pathlib.Path) -> dict[int, Scores]:
    """The scores that `save_scores` wrote, by context length."""
    columns: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            length, name = key.split("/")
            columns.setdefault(int(length), {})[name] = arrays[key]
    return {length: Scores(**named) for length, named in columns.items()}

"""What an example of a task is, and where its chance comes from.  Read next: `mqar.py`."""

import functools
import hashlib
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """A row of a task and what is asked in it; n predicted tokens, in the order of the row.

    Attributes:
      tokens: inputs, int32 [t].
      targets: what each asked input is answered by, int32 [t]; 0 elsewhere.
      asked: places of the predicted tokens' inputs, int32 [n].
      distance: tokens from each question's input back to its value, int32 [n].
      num_pairs: keys with values in the row.
    """

    tokens: np.ndarray
    targets: np.ndarray
    asked: np.ndarray
    distance: np.ndarray
    num_pairs: int

    def row(self) -> dict[str, np.ndarray]:
        """By the fields of `Batch`: one segment, predicted where it is asked."""
        length = len(self.tokens)
        loss_mask = np.zeros(length, bool)
        loss_mask[self.asked] = True
        return {
            "tokens": self.tokens,
            "targets": self.targets,
            "segment_ids": np.ones(length, np.int32),
            "positions": np.arange(length, dtype=np.int32),
            "loss_mask": loss_mask,
        }


class Draws:
    """The random numbers of one example, a pure function of (stream, index).

    They are the raw output of Philox (Salmon and others, "Parallel random numbers: as easy as
    1, 2, 3", SC 2011), a counter enciphered under a key, here (stream, index). So examples are
    drawn in any order, and unlike numpy's Generator the raw numbers never change by version.
    """

    def __init__(self, stream: str, index: int):
        self._bits = np.random.Philox(key=np.array([_key(stream), index], np.uint64))

    def uniform(self, size: int) -> np.ndarray:
        """float64 [size] from [0, 1), 53 bits each."""
        return (self._bits.random_raw(size) >> np.uint64(11)) * 2.0**-53

    def integers(self, size: int, start: int, stop: int) -> np.ndarray:
        """int32 [size] from [start, stop), with repetition."""
        return (start + self.uniform(size) * (stop - start)).astype(np.int32)

    def distinct(self, size: int, start: int, stop: int) -> np.ndarray:
        """int32 [size] from [start, stop), no number twice, every order equally likely.

        A shuffle (Fisher and Yates) that stops after `size` and remembers only what it moved.
        """
        moved: dict[int, int] = {}
        drawn = []
        for place, u in enumerate(self.uniform(size).tolist()):
            other = place + int(u * (stop - start - place))
            drawn.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
        return np.array(drawn, np.int32) + np.int32(start)


@functools.cache
def _key(stream: str) -> int:
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")

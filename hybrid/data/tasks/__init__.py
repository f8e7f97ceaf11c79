"""Made-up tasks that show how far back a model can look, where text cannot.

Differences of loss between windows are about 0.01 nat in text; here a model that sees far enough
answers and another guesses. Examples are made when they are asked for: example i of a split is a
pure function of the task's keys, the split, i, the length and the vocabulary.

Reading order: `example.py`, `mqar.py`, `needle.py`, then this file: TASKS is the one table, and
`Examples` serves training rows and evaluation alike.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hybrid.data.config import MqarConfig, NeedleConfig
from hybrid.data.tasks import mqar, needle
from hybrid.data.tasks.example import Draws, Example

FORMAT = 1  # of the examples: another number for other examples of the same keys
SPLITS = ("train", "eval")


class Task(NamedTuple):
    """What a task's module offers.

    Attributes:
      check: (config, context_length, vocab_size, length_key); raises ConfigError by key.
      num_asked: (config, index) -> predicted tokens of an example.
      example: (config, draws, index, context_length, vocab_size) -> Example.
      chance: (config, vocab_size) -> share of right answers of a model that sees no value.
    """

    check: Callable[[Any, int, int, str], None]
    num_asked: Callable[[Any, int], int]
    example: Callable[[Any, Draws, int, int, int], Example]
    chance: Callable[[Any, int], float]


TASKS = {
    "mqar": Task(mqar.check, mqar.num_asked, mqar.example, mqar.chance),
    "needle": Task(needle.check, needle.num_asked, needle.example, needle.chance),
}


def check(name: str, config: Any, vocab_size: int, lengths: Mapping[str, Sequence[int]]) -> None:
    """Raises: ConfigError where vocabulary or lengths (by the key that sets them) don't fit."""
    for length_key, values in lengths.items():
        for length in values:
            TASKS[name].check(config, length, vocab_size, length_key)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one split of a task, at one length.

    Attributes:
      name: of the task, in TASKS.
      config: its section of keys.
      split: `train` or `eval`; the two have no example in common but by chance.
      context_length: inputs of a row.
      vocab_size: the model's.
    Raises: ConfigError where the task does not fit length or vocabulary.
    """

    name: str
    config: MqarConfig | NeedleConfig
    split: str
    context_length: int
    vocab_size: int

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split: {' or '.join(SPLITS)}, got {self.split!r}")
        length_key = "training.context_length" if self.split == "train" else "eval.context_length"
        check(self.name, self.config, self.vocab_size, {length_key: [self.context_length]})

    @property
    def num_rows(self) -> int:
        """Examples in the split."""
        config = self.config
        return config.num_examples if self.split == "train" else config.num_eval_examples

    @functools.cached_property
    def num_predicted(self) -> int:
        """Predicted tokens of all examples."""
        return sum(self.num_asked(index) for index in range(self.num_rows))

    def num_asked(self, index: int) -> int:
        """Predicted tokens of example `index`."""
        return TASKS[self.name].num_asked(self.config, index)

    def example(self, index: int) -> Example:
        """Example `index` below num_rows."""
        draws = Draws(f"{FORMAT} {self.name} {self.split}", index)
        make = TASKS[self.name].example
        return make(self.config, draws, index, self.context_length, self.vocab_size)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Example `index` by the fields of `Batch`, each [context_length]."""
        return as_row(self.example(index))

    def at(self, context_length: int) -> "Examples":
        """The same split made at another length.  Raises: ConfigError if it doesn't fit."""
        return dataclasses.replace(self, context_length=context_length)

    @property
    def fingerprint(self) -> str:
        """32 hex digits of everything that decides the rows."""
        parts = repr((FORMAT, *dataclasses.astuple(self)))
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    @property
    def description(self) -> str:
        """One line for a log."""
        return f"{self.name} ({self.split}): {self.num_rows:,} examples, {self.config}"


def as_row(example: Example) -> dict[str, np.ndarray]:
    """An example by the fields of `Batch`: one segment, predicted where it is asked."""
    length = len(example.tokens)
    loss_mask = np.zeros(length, bool)
    loss_mask[example.asked] = True
    return {
        "tokens": example.tokens,
        "targets": example.targets,
        "segment_ids": np.ones(length, np.int32),
        "positions": np.arange(length, dtype=np.int32),
        "loss_mask": loss_mask,
    }


__all__ = ["TASKS", "Example", "Examples", "MqarConfig", "NeedleConfig", "Task", "as_row", "check"]

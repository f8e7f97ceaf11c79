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

import numpy as np

from hybrid.data.config import MqarConfig, NeedleConfig
from hybrid.data.tasks import mqar, needle
from hybrid.data.tasks.example import Draws, Example

FORMAT = 1  # of the examples: another number for other examples of the same keys
SPLITS = ("train", "eval")


# The table of tasks. A task is a module of
#   check(config, context_length, vocab_size, length_key), which raises ConfigError by key;
#   num_asked(config, index), the predicted tokens of an example;
#   example(config, draws, index, context_length, vocab_size) -> Example;
#   chance(config, vocab_size), the share of right answers of a model that sees no value.
TASKS = {"mqar": mqar, "needle": needle}


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
        TASKS[self.name].check(self.config, self.context_length, self.vocab_size, length_key)

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
        return self.example(index).row()

    def at(self, context_length: int) -> "Examples":
        """The same split made at another length.  Raises: ConfigError if it doesn't fit."""
        return dataclasses.replace(self, context_length=context_length)

    @property
    def fingerprint(self) -> str:
        """32 hex digits of everything that decides the rows."""
        parts = repr((FORMAT, *dataclasses.astuple(self)))
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    @property
    def identity(self) -> dict[str, str | None]:
        """Nothing: config and rows say all of it."""
        return {}

    @property
    def description(self) -> str:
        """One line for a log."""
        return f"{self.name} ({self.split}): {self.num_rows:,} examples, {self.config}"


__all__ = ["TASKS", "Example", "Examples"]

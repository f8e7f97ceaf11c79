"""A key and its value planted in filler, and the key again at the end: what was the value?

    tokens    . . . k v . . . . . . k        the value stands `distance` tokens before the
    targets                         v        last input; nothing else is predicted

Ids: 0 is pad, keys 1 … K, values K + 1 … K + V, filler the rest. The last input sees the value
only if the stack reaches `distance` tokens back, m·(w − 1) in m local layers of window w; beyond
it a model can but guess, right once in V.
"""

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.config import NeedleConfig
from hybrid.data.tasks.example import Draws, Example

_LEAST_FILLER = 2


def check(config: NeedleConfig, context_length: int, vocab_size: int, length_key: str) -> None:
    """Raises: ConfigError for a length (under `length_key`) or vocabulary that can't hold it."""
    needed = max(*config.distances, 1) + 2
    if context_length < needed:
        problem = f"is too short for data.needle.distances {config.distances}"
        raise ConfigError(length_key, problem, context_length, f"at least {needed}")
    ids = 1 + config.num_keys + config.num_values + _LEAST_FILLER
    if vocab_size < ids:
        problem = "is too small for the keys, values and filler of data.needle"
        raise ConfigError("model.vocab_size", problem, vocab_size, f"at least {ids}")


def num_asked(config: NeedleConfig, index: int) -> int:
    """Predicted tokens of an example: one."""
    del config, index
    return 1


def chance(config: NeedleConfig, vocab_size: int) -> float:
    """Of a guess among all values."""
    del vocab_size
    return 1 / config.num_values


def example(
    config: NeedleConfig, draws: Draws, index: int, context_length: int, vocab_size: int
) -> Example:
    """Example `index`, drawn from `draws`: its key and value are the same at any distance."""
    first_value = 1 + config.num_keys
    first_filler = first_value + config.num_values
    needle_key = draws.integers(1, 1, first_value)
    value = draws.integers(1, first_value, first_filler)
    distance = draws.integers(1, 1, context_length - 1)
    chosen = config.distances[index % len(config.distances)]
    if chosen:
        distance[0] = chosen
    tokens = draws.integers(context_length, first_filler, vocab_size)
    asked = np.array([context_length - 1], np.int32)
    tokens[asked - distance] = value
    tokens[asked - distance - 1] = needle_key
    tokens[asked] = needle_key
    targets = np.zeros(context_length, np.int32)
    targets[asked] = value
    return Example(tokens, targets, asked, distance, num_pairs=1)

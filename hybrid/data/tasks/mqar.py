"""Multi-query associative recall: pairs of keys and values, then each key is asked once.

With D pairs, N inputs and a vocabulary of V (an example of D = 2, N = 8, filler 0):

    tokens    k1 v1 k2 v2  0  0 k1  0        k: distinct ids of 1 … V/2 − 1
    targets    .  .  .  .  .  . v1  .        v: distinct ids of V/2 … V − 1

A key is asked at an even offset after the block of pairs, 2·(g − 1) for slot g. The slots of a
row are drawn without replacement with probability ∝ a·g^(a−1): most questions come early. The
value is the label at the asking key's own place; it is not put into the row.

Source: Zoology (2312.04927) and zoology/data/multiquery_ar.py, by its description.
"""

import functools

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.config import MqarConfig
from hybrid.data.tasks.example import Draws, Example


def check(config: MqarConfig, context_length: int, vocab_size: int, length_key: str) -> None:
    """Raises: ConfigError for a length (under `length_key`) or vocabulary that can't hold it."""
    needed = 4 * max(config.num_pairs)
    if context_length < needed:
        problem = f"is too short for data.mqar.num_pairs {config.num_pairs}"
        raise ConfigError(length_key, problem, context_length, f"at least {needed}")
    if context_length % 2:
        raise ConfigError(length_key, "must be even with data.source=mqar", context_length)
    if vocab_size <= context_length:
        problem = f"must exceed {length_key} with data.source=mqar"
        accepted = f"at least {context_length + 1}"
        raise ConfigError("model.vocab_size", problem, vocab_size, accepted)


def num_asked(config: MqarConfig, index: int) -> int:
    """Predicted tokens of an example, which are its pairs."""
    return config.num_pairs[index % len(config.num_pairs)]


def chance(config: MqarConfig, vocab_size: int) -> float:
    """Of a guess among all values."""
    del config
    return 1 / (vocab_size - vocab_size // 2)


def example(
    config: MqarConfig, draws: Draws, index: int, context_length: int, vocab_size: int
) -> Example:
    """Example `index`, drawn from `draws`."""
    num_pairs, half = num_asked(config, index), vocab_size // 2
    keys = draws.distinct(num_pairs, 1, half)
    values = draws.distinct(num_pairs, half, vocab_size)
    slots = _slots(draws, num_pairs, context_length // 2 - num_pairs, config.power)
    asked = (2 * num_pairs + 2 * slots).astype(np.int32)
    if config.random_filler:
        tokens = draws.integers(context_length, 0, vocab_size)
    else:
        tokens = np.zeros(context_length, np.int32)
    tokens[0 : 2 * num_pairs : 2] = keys
    tokens[1 : 2 * num_pairs : 2] = values
    tokens[asked] = keys
    targets = np.zeros(context_length, np.int32)
    targets[asked] = values
    distance = asked - np.arange(1, 2 * num_pairs, 2, dtype=np.int32)
    order = np.argsort(asked)
    return Example(tokens, targets, asked[order], distance[order], num_pairs)


def _slots(draws: Draws, count: int, num_slots: int, power: float) -> np.ndarray:
    """`count` distinct slots, from 0, one after another with probability ∝ their weight.

    The slots whose exponential clocks of rate `weight` ring first, in the order they ring, are
    such a draw: no loop over the slots drawn so far is needed.
    """
    clocks = -np.log1p(-draws.uniform(num_slots)) / _weights(num_slots, power)
    return np.argsort(clocks)[:count]


@functools.lru_cache(maxsize=16)
def _weights(num_slots: int, power: float) -> np.ndarray:
    return power * np.arange(1, num_slots + 1, dtype=np.float64) ** (power - 1)

"""What a retrieval sample is, where its chance comes from, and how large its haystack may be.

A sample asked for at a length holds at most so many tokens, **those to generate included**, and
is near it: the size of its haystack (sentences, lines, words, documents) is searched with the
tokenizer. Every purpose draws from a stream of its own, so the needles of sample i are the same at
every length, and only the haystack grows.

Read next: `niah.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from hybrid.data.tasks.example import Draws

FORMAT = 1  # of the samples: another number for other samples of the same seed


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and what a reply to it must hold.

    Attributes:
      prompt: the text with the question behind it.
      answer_prefix: the beginning of the reply, which the model continues.
      references: the texts that are looked for in the reply.
      tokens_to_generate: at most.
      depths: of samples with needles: where each stands, in percent of the haystack before it.
    """

    prompt: str
    answer_prefix: str
    references: tuple[str, ...]
    tokens_to_generate: int
    depths: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """Which sample is made: everything that it depends on but the size of its haystack.

    Attributes:
      stream: of the random numbers: the task and its seed.
      index: of the sample.
      length: tokens that it may hold, those to generate included.
      essay: sentences of running text, repeated where they are too few.
      questions: of question answering, `questions.Questions`; None where no file was named.
      depth: where its one needle stands, in percent; None: drawn.
    """

    stream: str
    index: int
    length: int
    essay: Sequence[str] = ()
    questions: Any = None
    depth: float | None = None

    def draws(self, purpose: str) -> Draws:
        """The random numbers of one purpose."""
        return Draws(f"{FORMAT} {self.stream} {purpose}", self.index)


class TooShort(Exception):
    """The smallest sample needs `needed` tokens."""

    def __init__(self, needed: int):
        super().__init__(needed)
        self.needed = needed


def largest(cost: Callable[[int], int], budget: int, least: int, most: int) -> int:
    """The largest size in [least, most] whose cost is at most the budget.

    Doubles until a size is too large, then narrows down between the two by turns with a straight
    line (costs rise about evenly with the size) and by halves.

    Args:
      cost: of a size, rising with it.
    Raises: TooShort where even `least` costs more.

    >>> largest(lambda size: 40 + 7 * size, 1000, 1, 10_000)
    137
    """
    low, low_cost = least, cost(least)
    if low_cost > budget:
        raise TooShort(low_cost)
    high, high_cost = low, low_cost
    while high_cost <= budget:
        low, low_cost = high, high_cost
        if low >= most:
            return most
        high = min(max(2 * low, 1), most)
        high_cost = cost(high)
    halves = False
    while high - low > 1:
        share = 0.5 if halves else (budget - low_cost) / (high_cost - low_cost)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        middle_cost, halves = cost(middle), not halves
        if middle_cost <= budget:
            low, low_cost = middle, middle_cost
        else:
            high, high_cost = middle, middle_cost
    return low

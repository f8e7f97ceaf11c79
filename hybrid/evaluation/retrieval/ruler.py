"""The thirteen tasks of RULER, one table.

`sample(task, request, count_tokens)` is a pure function: the same request and tokenizer give the
same bits. It fills the length as far as it can.

Source: RULER (2404.06654) and its scripts/synthetic.yaml. What differs: the essays and the word
lists are of our own (`haystack.py`, `vocabulary.py`), the random numbers too, and the haystack of
every sample is fitted to the length by itself, not that of the first sample for all.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from hybrid.evaluation.retrieval import (
    frequent_words,
    niah,
    questions,
    scores,
    variables,
    vocabulary,
)
from hybrid.evaluation.retrieval.sample import Request, Sample, TooShort, largest

EFFECTIVE = 85.6  # the mean score (of 100) that a length must reach to count as effective
LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
_MOST = 1 << 30
Make = Callable[[Request, int], Sample]
Score = Callable[[str, Sequence[str]], float]
CountTokens = Callable[[Sample], int]


@dataclasses.dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
      make: (request, size) -> Sample.
      least: the smallest size.
      score: (reply, references) -> 0 to 1.
      most: the largest size, of a request.
      reads: what it needs besides: `essay`, `squad` or `hotpotqa`.
      otherwise: makes the sample where `make` can't, at this length.
    """

    make: Make
    least: int = 1
    score: Score = scores.all_found
    most: Callable[[Request], int] = lambda request: _MOST
    reads: str = ""
    otherwise: Make | None = None


def _niah(haystack: str, least: int = 1, **kinds) -> Task:
    make = functools.partial(niah.sample, haystack=haystack, **kinds)
    # Needles among needles: the one that is asked for takes a key too.
    takes_words = haystack == "needles" and kinds.get("keys", "words") == "words"
    most = vocabulary.NUM_PAIRS - 1 if takes_words else _MOST
    reads = "essay" if haystack == "essay" else ""
    return Task(make, least, most=lambda request: most, reads=reads)


def _questions(file: str) -> Task:
    return Task(questions.sample, 0, scores.any_found, questions.most, file)


TASKS = {
    "niah_single_1": _niah("noise"),
    "niah_single_2": _niah("essay"),
    "niah_single_3": _niah("essay", values="uuids"),
    "niah_multikey_1": _niah("essay", num_keys=4),
    "niah_multikey_2": _niah("needles"),
    "niah_multikey_3": _niah("needles", keys="uuids", values="uuids"),
    "niah_multivalue": _niah("essay", num_values=4),
    "niah_multiquery": _niah("essay", num_queries=4),
    "vt": Task(variables.sample, variables.LEAST_LINES),
    "cwe": Task(
        functools.partial(frequent_words.common_words, scale=frequent_words.LONG),
        frequent_words.NUM_COMMON + 1,
        most=lambda request: vocabulary.NUM_LIST_WORDS,
        otherwise=functools.partial(frequent_words.common_words, scale=frequent_words.SHORT),
    ),
    "fwe": Task(frequent_words.frequent_words, 66),  # below it ranks 4 and 5 may be as frequent
    "qa_1": _questions("squad"),
    "qa_2": _questions("hotpotqa"),
}


def sample(task: Task, request: Request, count_tokens: CountTokens) -> Sample:
    """The largest sample that fits the request's length.

    Args:
      count_tokens: tokens of a sample's prompt as the model reads it, BOS included.
    Raises: TooShort where even the smallest haystack does not fit.
    """
    try:
        return _fitted(task, task.make, request, count_tokens)
    except TooShort:
        if task.otherwise is None:
            raise
    return _fitted(task, task.otherwise, request, count_tokens)


def least_tokens(task: Task, request: Request, count_tokens: CountTokens) -> int:
    """Tokens of the smallest sample, those to generate included; `count_tokens` as `sample`."""
    return _cost(task.otherwise or task.make, request, count_tokens, task.least)


def _fitted(task: Task, make: Make, request: Request, count_tokens: CountTokens) -> Sample:
    cost = functools.partial(_cost, make, request, count_tokens)
    return make(request, largest(cost, request.length, task.least, task.most(request)))


def _cost(make: Make, request: Request, count_tokens: CountTokens, size: int) -> int:
    made = make(request, size)
    return count_tokens(made) + made.tokens_to_generate


def answer(task: Task, made: Sample) -> str:
    """The shortest text behind a sample's prefix that has the full score."""
    space = "" if made.answer_prefix.endswith(" ") else " "
    is_any = task.score is scores.any_found
    return space + ", ".join(made.references[:1] if is_any else made.references)

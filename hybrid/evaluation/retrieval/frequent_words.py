"""Which words come most often: aggregation over the whole context, nothing to look up.

    common words    a numbered list; 10 words come 30 times each, all others 3 times. All ten are
                    asked for. One worked example comes first. Below 4096 tokens, and where these
                    numbers do not fit, they are 6 and 1, as published for short lengths.
    frequent words  random words of six letters; word k comes n · k^−2 / ζ(2) times. Word 1 is
                    "..." and to be ignored, words 2 to 4 are asked for.

Source: RULER (2404.06654), sec. 3 and its scripts/data/synthetic/common_words_extraction.py and
freq_words_extraction.py.
"""

import dataclasses
import math

from hybrid.data.tasks.example import Draws
from hybrid.evaluation.retrieval import vocabulary
from hybrid.evaluation.retrieval.sample import Request, Sample, TooShort

COMMON_TOKENS, FREQUENT_TOKENS = 120, 50  # to generate
NUM_COMMON, NUM_FREQUENT = 10, 3
LEAST_VOCABULARY = 10
LEAST_LENGTH_OF_LONG = 4096
COMMON_PROMPT = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
COMMON_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FREQUENT_PROMPT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please "
    "ignore the dots '....'. What are the three most frequently appeared words in the above coded "
    "text?"
)
FREQUENT_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
_ZETA_2 = math.pi**2 / 6


@dataclasses.dataclass(frozen=True)
class Repeats:
    """How often common and other words come; `num_words` distinct ones, of the worked example."""

    common: int
    other: int
    num_words: int = 0


@dataclasses.dataclass(frozen=True)
class Scale:
    """The repeats of a list of words and of its worked example."""

    asked: Repeats
    example: Repeats


LONG = Scale(Repeats(30, 3), Repeats(10, 3, 40))
SHORT = Scale(Repeats(6, 1), Repeats(3, 1, 20))


def common_words(request: Request, size: int, *, scale: Scale) -> Sample:
    """The sample of `size` distinct words.  Raises: TooShort for a long scale at a short length."""
    if scale is LONG and request.length < LEAST_LENGTH_OF_LONG:
        raise TooShort(LEAST_LENGTH_OF_LONG)
    shown, answer = _word_list(request.draws("example"), scale.example.num_words, scale.example)
    context, references = _word_list(request.draws("words"), size, scale.asked)
    example = COMMON_PROMPT.format(context=shown) + COMMON_PREFIX + " " + numbered(answer)
    return Sample(
        f"{example}\n{COMMON_PROMPT.format(context=context)}",
        COMMON_PREFIX,
        tuple(references),
        COMMON_TOKENS,
    )


def _word_list(draws: Draws, size: int, repeats: Repeats) -> tuple[str, list[str]]:
    """The text of a list of `size` distinct words, and its common ones."""
    drawn = vocabulary.list_words(draws, size)
    common, others = drawn[:NUM_COMMON], drawn[NUM_COMMON:]
    return numbered(_shuffled(draws, common * repeats.common + others * repeats.other)), common


def numbered(words: list[str]) -> str:
    """`1. word 2. word …`"""
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, start=1))


def _shuffled(draws: Draws, words: list[str]) -> list[str]:
    return [words[place] for place in draws.distinct(len(words), 0, len(words)).tolist()]


def frequent_words(request: Request, size: int) -> Sample:
    """The sample whose counts add up to `size` before they are rounded down."""
    draws = request.draws("words")
    vocabulary_size = max(LEAST_VOCABULARY, (request.length - FREQUENT_TOKENS) // 50)
    coded = ["...", *vocabulary.letters(draws, vocabulary_size - 1, 6)]
    repeated = [
        word
        for rank, word in enumerate(coded, start=1)
        for _ in range(int(size * rank**-2.0 / _ZETA_2))
    ]
    return Sample(
        FREQUENT_PROMPT.format(context=" ".join(_shuffled(draws, repeated))),
        FREQUENT_PREFIX,
        tuple(coded[1 : 1 + NUM_FREQUENT]),
        FREQUENT_TOKENS,
    )

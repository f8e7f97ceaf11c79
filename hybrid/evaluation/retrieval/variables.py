"""Variable tracking: which names, over a chain of assignments, have a value in the end?

    VAR QKZBD = 48213        somewhere in lines of noise, in this order, four hops a chain
    VAR MPLXA = VAR QKZBD
    …

All names of the chain are asked for. One worked example of three-letter names comes first.

Source: RULER (2404.06654), sec. 3 and its scripts/data/synthetic/variable_tracking.py.
"""

import itertools

from hybrid.data.tasks.example import Draws
from hybrid.evaluation.retrieval import haystack, vocabulary
from hybrid.evaluation.retrieval.niah import inserted
from hybrid.evaluation.retrieval.sample import Request, Sample

TOKENS_TO_GENERATE = 30
NUM_HOPS = 4
LINES_OF_EXAMPLE = LEAST_LINES = NUM_HOPS + 1
PROMPT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {value} in the text above."
)
ANSWER_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables"
    " are assigned the value {value}, they are: "
)


def sample(request: Request, size: int) -> Sample:
    """The sample of `size` lines of noise, the worked example before it."""
    example = _chain(request.draws("example"), LINES_OF_EXAMPLE, num_letters=3)
    asked = _chain(request.draws("chain"), size, num_letters=5)
    shown = example.prompt + example.answer_prefix + " ".join(example.references)
    return Sample(
        f"{shown}\n\n{asked.prompt}", asked.answer_prefix, asked.references, TOKENS_TO_GENERATE
    )


def _chain(draws: Draws, size: int, num_letters: int) -> Sample:
    names = vocabulary.letters(draws, NUM_HOPS + 1, num_letters, "A")
    value = vocabulary.numbers(draws, 1, num_digits=5)[0]
    statements = [f"VAR {names[0]} = {value}"]
    pairs = itertools.pairwise(names)
    statements += [f"VAR {name} = VAR {before}" for before, name in pairs]
    places = sorted(draws.distinct(len(statements), 0, size).tolist())
    context = "\n".join(inserted([haystack.NOISE] * size, statements, places))
    return Sample(
        PROMPT.format(context=context, value=value),
        ANSWER_PREFIX.format(count=len(names), value=value),
        tuple(names),
        TOKENS_TO_GENERATE,
    )

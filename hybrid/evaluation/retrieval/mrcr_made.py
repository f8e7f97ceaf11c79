"""Conversations of MRCR's form made by rule, at any length and from a seed.

A request asks for a form on a topic, `write a poem about otters`. The needles are identical
requests; half of the others are near misses, which share the form or the topic with them. A
reply is sentences of drawn words, so that no two are equal and none can be guessed.
"""

import string

from hybrid.data.tasks.example import Draws
from hybrid.evaluation.retrieval.conversation import Conversation
from hybrid.evaluation.retrieval.sample import Request
from hybrid.evaluation.retrieval.vocabulary import ADJECTIVES, NOUNS

FORMS = (
    *("poem", "short essay", "letter", "riddle", "song", "short story", "news article", "speech"),
    *("recipe", "diary entry", "fable", "review"),
)
LEAST_SENTENCES, MOST_SENTENCES = 3, 6
RANDOM_LENGTH = 10
EXAMPLES = (
    "Here are some examples of conversations succeeded by a follow-up question answered correctly:"
    "\n\n======EXAMPLE======\n{conversation}\n\n{question}\nAssistant: {answer}\n"
    "======END EXAMPLE======\n\nHere is the conversation:\n\n{first}"
)
REQUEST = "write a {form} about {topic}"
QUESTION = (
    "Prepend {random_string} to the {ordinal} (1 indexed) {form} about {topic}. "
    "Do not include any other text in your response."
)
_SENTENCES = (
    "The {0} {1} waits beside one {2} {3}.",
    "Every {1} remembers one {0} {3}, {2} as ever.",
    "No {0} {1} is ever the {2} {3}.",
    "Once the {2} {3} met the {0} {1}.",
    "Between {1} and {3} all is {0} and {2}.",
)
_LETTERS = string.ascii_letters + string.digits
Ask = tuple[str, str]  # form and topic


def conversation(request: Request, num_needles: int, size: int) -> Conversation:
    """The conversation of `num_needles` needles and `size` other exchanges."""
    needle = _ask(request.draws("needle"))
    draws = request.draws("places")
    wanted = int(draws.integers(1, 0, num_needles)[0])
    places = set(draws.distinct(num_needles, 0, size + num_needles).tolist())
    others = iter(_others(request.draws("others"), needle, size))
    asked = [needle if i in places else next(others) for i in range(size + num_needles)]
    texts = request.draws("texts")
    replies = [_reply(texts, ask) for ask in asked]
    random_string = _random_string(request.draws("string"))
    turns = [turn for pair in zip(map(_request, asked), replies, strict=True) for turn in pair]
    turns[0] = _with_example(request.draws("example"), turns[0])
    turns.append(_question(needle, wanted, random_string))
    answer = random_string + replies[sorted(places)[wanted]]
    return Conversation(tuple(turns), answer, random_string, num_needles)


def _ask(draws: Draws) -> Ask:
    form, topic = draws.uniform(2).tolist()
    return FORMS[int(form * len(FORMS))], NOUNS[int(topic * len(NOUNS))] + "s"


def _others(draws: Draws, needle: Ask, count: int) -> list[Ask]:
    """Asks that differ from the needle: of four, one shares its form and one its topic."""
    found: list[Ask] = []
    while len(found) < count:
        form, topic = _ask(draws)
        near = len(found) % 4
        ask = (needle[0] if near == 0 else form, needle[1] if near == 1 else topic)
        if ask != needle:
            found.append(ask)
    return found


def _request(ask: Ask) -> str:
    return REQUEST.format(form=ask[0], topic=ask[1])


def _question(needle: Ask, place: int, random_string: str) -> str:
    ordinal = ("1st", "2nd", "3rd")[place] if place < 3 else f"{place + 1}th"
    words = {"form": needle[0], "topic": needle[1], "ordinal": ordinal}
    return QUESTION.format(random_string=random_string, **words)


def _reply(draws: Draws, ask: Ask) -> str:
    """A title and sentences of drawn words, a line each."""
    count = int(draws.integers(1, LEAST_SENTENCES, MOST_SENTENCES + 1)[0])
    return "\n".join([f"{ask[0]} about {ask[1]}".capitalize(), *map(_sentence, [draws] * count)])


def _sentence(draws: Draws) -> str:
    pattern, *words = draws.uniform(5).tolist()
    pools = ADJECTIVES, NOUNS, ADJECTIVES, NOUNS
    drawn = [pool[int(u * len(pool))] for pool, u in zip(pools, words, strict=True)]
    return _SENTENCES[int(pattern * len(_SENTENCES))].format(*drawn)


def _random_string(draws: Draws) -> str:
    return "".join(_LETTERS[place] for place in draws.integers(RANDOM_LENGTH, 0, len(_LETTERS)))


def _with_example(draws: Draws, first: str) -> str:
    """The first request behind a worked example of two equal requests."""
    ask, random_string = _ask(draws), _random_string(draws)
    replies = [_reply(draws, ask) for _ in range(2)]
    lines = (f"User: {_request(ask)}\nAssistant: {reply}" for reply in replies)
    return EXAMPLES.format(
        conversation="\n".join(lines),
        question=f"User: {_question(ask, 1, random_string)}",
        answer=random_string + replies[1],
        first=first,
    )

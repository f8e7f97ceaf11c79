"""Needles in a haystack: sentences with a key and a value among others; what was the value?

    One of the special magic numbers for brave-otter is: 4712045.

The haystack is one of three: `noise` (the same few sentences over and over), `essay` (running
text) or `needles` (sentences of the same form with other keys). A sample of `num_keys` keys with
`num_values` values each asks for `num_queries` of the keys, and all of their values are wanted.

    essay           needles stand between sentences, at depths drawn without repetition from 40
                    evenly spaced percents: needle j before sentence ⌊size · depth_j / 100⌋
    noise, needles  lines; needles stand before lines drawn without repetition

Source: RULER (2404.06654), sec. 3 and its scripts/data/synthetic/niah.py, by its description.
Published needles may share keys by chance; here all keys of a sample differ, so that an answer is
never ambiguous.
"""

from hybrid.evaluation.retrieval import haystack as text
from hybrid.evaluation.retrieval import vocabulary
from hybrid.evaluation.retrieval.sample import Request, Sample

TOKENS_TO_GENERATE = 128
DEPTHS = tuple(round(100 * place / 39) for place in range(40))
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
# {kind} is "numbers", or "number" where one value is wanted, with the verbs that go with it.
PROMPT = (
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What {are_all} the special magic {kind} for {query} mentioned in the provided text?"
)
ANSWER_PREFIX = " The special magic {kind} for {query} mentioned in the provided text {are}"
SINGULAR = {"some": "A", "are": "is", "are_all": "is"}
PLURAL = {"some": "Some", "are": "are", "are_all": "are all"}
STRINGS = {
    "words": vocabulary.words,
    "numbers": vocabulary.numbers,
    "uuids": vocabulary.uuids,
}


def sample(
    request: Request,
    size: int,
    *,
    haystack: str,
    keys: str = "words",
    values: str = "numbers",
    num_keys: int = 1,
    num_values: int = 1,
    num_queries: int = 1,
) -> Sample:
    """The sample of `size` sentences or lines (needles not counted).

    Args:
      haystack: `noise`, `essay` or `needles`.
      keys, values: which of STRINGS they are.
    """
    num_keys = max(num_keys, num_queries)
    num_filling = size if haystack == "needles" else 0
    names = STRINGS[keys](request.draws("keys"), num_keys + num_filling)
    contents = STRINGS[values](request.draws("values"), num_keys * num_values + num_filling)
    pairs = [
        (names[place // num_values], contents[place]) for place in range(num_keys * num_values)
    ]
    filling = zip(names[num_keys:], contents[len(pairs) :], strict=True)
    lines = {
        "noise": lambda: [text.NOISE] * size,
        "essay": lambda: text.first(request.essay, size),
        "needles": lambda: [needle(values, *pair) for pair in filling],
    }[haystack]()
    order = request.draws("order").distinct(len(pairs), 0, len(pairs)).tolist()
    places = _places(request, len(pairs), size, haystack)
    needles = [needle(values, *pairs[place]) for place in order]
    context = (" " if haystack == "essay" else "\n").join(inserted(lines, needles, places))
    asked = request.draws("asked").distinct(num_queries, 0, num_keys).tolist()
    return Sample(
        *_question(values, [names[key] for key in asked], context, num_queries * num_values == 1),
        references=tuple(value for key in asked for name, value in pairs if name == names[key]),
        tokens_to_generate=TOKENS_TO_GENERATE,
        depths=tuple(100 * place / size for place in places),
    )


def needle(kind: str, key: str, value: str) -> str:
    """The sentence of a key and its value."""
    return NEEDLE.format(kind=kind, key=key, value=value)


def _places(request: Request, count: int, size: int, haystack: str) -> list[int]:
    """Before which of `size` lines the needles stand, in order."""
    if request.depth is not None:
        return [round(size * request.depth / 100)] * count
    draws = request.draws("depths")
    if haystack == "essay":
        drawn = sorted(DEPTHS[place] for place in draws.distinct(count, 0, len(DEPTHS)).tolist())
        return [size * depth // 100 for depth in drawn]
    return sorted(draws.distinct(count, 0, size).tolist())


def inserted(lines: list[str], needles: list[str], places: list[int]) -> list[str]:
    """`lines` with needle j before line `places[j]`; the places rise."""
    joined, done = [], 0
    for line, place in zip(needles, places, strict=True):
        joined += [*lines[done:place], line]
        done = place
    return joined + lines[done:]


def _question(kind: str, keys: list[str], context: str, is_single: bool) -> tuple[str, str]:
    """The prompt and the beginning of its answer."""
    query = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
    forms = SINGULAR if is_single else PLURAL
    words = {**forms, "kind": kind.removesuffix("s") if is_single else kind, "query": query}
    return PROMPT.format(context=context, **words), ANSWER_PREFIX.format(**words)

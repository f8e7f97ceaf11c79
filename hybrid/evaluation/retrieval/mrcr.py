"""MRCR: the n-th of several identical requests of a long conversation, its reply word by word.

    user       write a poem about otters            asked `num_needles` times, among near misses:
    assistant  …                                    the same form on other topics, other forms on
    …                                               the same topic
    user       Prepend 4rT9xQm2Lk to the 2nd (1 indexed) poem about otters. …

    score   0 unless the reply begins with the random string; else that is taken off reply and
            answer, and the score is difflib.SequenceMatcher(None, reply, answer).ratio()
    bins    by tokens of prompt and answer: [4096, 8192], then (2^k, 2^(k+1)]; published ones count
            tokens of o200k_base, which characters / 4.9 estimate where no tokenizer is named

A score says little alone: replies of one kind are alike. So two floors stand beside it, with the
random string in front as if it had been copied: a reply drawn from the conversation, and the last
reply to the request that has most words in common with the question.

Source: the data set openai/mrcr, after Michelangelo (2409.12640). Rows come from files in its
public form (`mrcr_rows.py`), or conversations are made by rule (`mrcr_made.py`).
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Sequence

from hybrid.config import ConfigError
from hybrid.data import tokenizers
from hybrid.data.tasks.example import Draws
from hybrid.evaluation.config import RetrievalConfig
from hybrid.evaluation.retrieval import mrcr_made, mrcr_rows
from hybrid.evaluation.retrieval.conversation import Conversation
from hybrid.evaluation.retrieval.prompts import Encoder, Group, Prompt, plain, too_short
from hybrid.evaluation.retrieval.sample import FORMAT, Request, TooShort, largest

CHARACTERS_A_TOKEN = 4.9  # of o200k_base, on the published rows
LEAST_OTHERS = 1  # exchanges besides the needles, in what is made by rule
SPARE_TOKENS = 64  # that a reply may have beyond the answer's
FIRST_BIN = 4096
OWN = "own"  # the model's tokenizer counts
_LENGTHS = "eval.retrieval.lengths"


def score(reply: str, answer: str, random_string: str) -> float:
    """The score of a reply, 0 to 1; white space counts.

    >>> score("xy1 abcd", "xy1 abcd", "xy1"), score(" xy1 abcd", "xy1 abcd", "xy1")
    (1.0, 0.0)
    """
    if not reply.startswith(random_string):
        return 0.0
    reply, answer = (text.removeprefix(random_string) for text in (reply, answer))
    return difflib.SequenceMatcher(None, reply, answer).ratio()


def bin_end(num_tokens: int) -> int:
    """The end of the bin that a row of so many tokens is in.

    >>> [bin_end(n) for n in (4096, 8192, 8193, 16384)]
    [8192, 8192, 16384, 16384]
    """
    return 2 * FIRST_BIN if num_tokens == FIRST_BIN else 1 << (num_tokens - 1).bit_length()


def estimated_tokens(conversation: Conversation) -> int:
    """Tokens of prompt and answer, by their characters."""
    num_chars = sum(map(len, conversation.turns)) + len(conversation.answer)
    return max(1, round(num_chars / CHARACTERS_A_TOKEN))


def token_counter(name: str, own: tokenizers.Tokenizer) -> Callable[[Conversation], int]:
    """A function that counts the tokens of a conversation's prompt and answer, for its bin.

    Args:
      name: of `eval.retrieval.mrcr_tokenizer`.  own: the model's tokenizer.
    Raises: ConfigError for a file that is no tokenizer.
    """
    if not name:
        return estimated_tokens
    tokenizer = own if name == OWN else tokenizers.load(name, "eval.retrieval.mrcr_tokenizer")

    def count(conversation: Conversation) -> int:
        texts = (*conversation.turns, conversation.answer)
        return max(1, sum(len(tokenizer.encode(text)) for text in texts))

    return count


def groups(config: RetrievalConfig, encoder: Encoder) -> Iterator[Group]:
    """A group a number of needles and a bin (of rows) or a length (of what is made by rule).

    Raises: ConfigError for a malformed row, or none that fits.
    """
    if config.mrcr_paths:
        yield from _of_rows(config, encoder)
        return
    for num_needles in config.num_needles:
        for length in config.lengths:
            of = config.seed, encoder, num_needles, length
            make, least = functools.partial(_made, *of), functools.partial(_least_tokens, *of)
            yield Group(name(num_needles), length, config.num_samples, make, least_tokens=least)


def name(num_needles: int) -> str:
    """The task of so many needles, for results."""
    return f"mrcr_{num_needles}needle"


def _of_rows(config: RetrievalConfig, encoder: Encoder) -> Iterator[Group]:
    """The rows of files by needles and bin, none beyond the longest of `lengths`.

    Raises: ConfigError where no row is left, by the key that leaves none.
    """
    ends: list[int] = []
    seen: set[int] = set()
    bins: dict[tuple[int, int], list[Conversation]] = {}
    count = token_counter(config.mrcr_tokenizer, encoder.tokenizer)
    for row in mrcr_rows.read(config.mrcr_paths):
        seen.add(row.num_needles)
        if row.num_needles not in config.num_needles:
            continue
        ends.append(bin_end(count(row)))
        if ends[-1] <= max(config.lengths):
            bins.setdefault((row.num_needles, ends[-1]), []).append(row)
    if not seen:
        raise ConfigError(mrcr_rows.KEY, "hold no row", list(config.mrcr_paths))
    if not ends:
        problem = "no row of eval.retrieval.mrcr_paths has so many"
        accepted = f"they have {', '.join(map(str, sorted(seen)))}"
        raise ConfigError("eval.retrieval.num_needles", problem, config.num_needles, accepted)
    if not bins:
        problem = "no row of eval.retrieval.mrcr_paths is in a bin up to it"
        accepted = f"at least {min(ends)}, the smallest bin"
        raise ConfigError(_LENGTHS, problem, max(config.lengths), accepted)
    for (num_needles, end), rows in sorted(bins.items()):
        for row in rows[: config.num_samples] if encoder.learned_positions else ():
            _check_positions(encoder, row, end)
        make = functools.partial(_prompt_of_row, config.seed, encoder, rows)
        yield Group(name(num_needles), end, min(len(rows), config.num_samples), make)


def _prompt_of_row(seed: int, encoder: Encoder, rows: Sequence[Conversation], index: int) -> Prompt:
    return _prompt(encoder, rows[index], Draws(f"{FORMAT} mrcr floor {seed}", index))


def _made(seed: int, encoder: Encoder, num_needles: int, length: int, index: int) -> Prompt:
    """Prompt `index` made by rule, as many exchanges as fit."""
    request = _request(seed, num_needles, length, index)
    cost = functools.partial(_cost, encoder, request, num_needles)
    try:
        size = largest(cost, length, LEAST_OTHERS, 1 << 20)
    except TooShort as error:
        raise too_short(name(num_needles), length, error.needed) from None
    made = mrcr_made.conversation(request, num_needles, size)
    return _prompt(encoder, made, request.draws("floor"))


def _least_tokens(seed: int, encoder: Encoder, num_needles: int, length: int, index: int) -> int:
    request = _request(seed, num_needles, length, index)
    return _cost(encoder, request, num_needles, LEAST_OTHERS)


def _request(seed: int, num_needles: int, length: int, index: int) -> Request:
    return Request(f"{name(num_needles)} {seed}", index, length)


def _cost(encoder: Encoder, request: Request, num_needles: int, size: int) -> int:
    made = mrcr_made.conversation(request, num_needles, size)
    return len(encoder.ids_of_turns(made.turns)) + _limit(encoder, made)


def _prompt(encoder: Encoder, conversation: Conversation, draws: Draws) -> Prompt:
    answer, random_string = conversation.answer, conversation.random_string
    scored = functools.partial(score, answer=answer, random_string=random_string)
    floors = {
        "random": scored(random_string + random_reply(conversation, draws)),
        "most relevant": scored(random_string + most_relevant_reply(conversation)),
    }
    ids, limit = encoder.ids_of_turns(conversation.turns), _limit(encoder, conversation)
    if encoder.learned_positions:  # the answer itself fits, spare tokens may not
        limit = min(limit, encoder.learned_positions - len(ids))
    text = plain(conversation.turns)
    return Prompt(ids, limit, (answer,), scored, text=text, answer=answer, floors=floors)


def _limit(encoder: Encoder, conversation: Conversation) -> int:
    return _num_answer_tokens(encoder, conversation) + SPARE_TOKENS


def _num_answer_tokens(encoder: Encoder, conversation: Conversation) -> int:
    return len(encoder.tokenizer.encode(conversation.answer))


def _check_positions(encoder: Encoder, row: Conversation, end: int) -> None:
    """Raises: ConfigError for a row whose answer would end beyond the table of positions.

    Its bin does not tell: it may count other tokens than the model reads.
    """
    needed = len(encoder.ids_of_turns(row.turns)) + _num_answer_tokens(encoder, row)
    most = encoder.learned_positions
    if needed > most:
        problem = f"its bin holds a row of {needed} tokens, beyond model.learned_positions ({most})"
        accepted = "shorter ones; eval.retrieval.mrcr_tokenizer=own counts what the model reads"
        raise ConfigError(_LENGTHS, problem, end, accepted)


# --- Floors ----------------------------------------------------------------------------------


def random_reply(conversation: Conversation, draws: Draws) -> str:
    """Any reply of the conversation."""
    replies = conversation.turns[1::2]
    return replies[int(draws.integers(1, 0, len(replies))[0])]


def most_relevant_reply(conversation: Conversation) -> str:
    """The last reply to the request that has most words in common with the question."""
    # Of the first message only its last line is a request: worked examples come before it.
    *requests, question = (_words(turn.rsplit("\n", 1)[-1]) for turn in conversation.turns[0::2])
    shared = [len(question & request) / len(question | request) for request in requests]
    best = max(range(len(shared)), key=lambda place: (shared[place], place))
    return conversation.turns[2 * best + 1]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))

"""From samples to the ids that a model reads, and the groups that an evaluation is made of.

A group is what one number of the result stands for: a task at a length, a cell of a table of
needles, a bin of conversations. Its prompts are made when they are asked for.

Read next: `run.py`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.cache import check_ids
from hybrid.data.chat import ChatTemplate
from hybrid.data.config import NeedleConfig
from hybrid.data.tasks import needle
from hybrid.data.tokenizers import Tokenizer
from hybrid.evaluation.config import NEEDLES, RULER, RetrievalConfig
from hybrid.evaluation.retrieval import questions, ruler
from hybrid.evaluation.retrieval.sample import Request, Sample, TooShort

KEYS = "needle_keys"
_READERS = {"squad": questions.read_squad, "hotpotqa": questions.read_hotpotqa}
_TEXT_NEEDLES = {"needle_noise": "niah_single_1", "needle_essay": "niah_single_2"}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model reads, and how its reply is scored.

    Attributes:
      ids: int32 [t].
      tokens_to_generate: at most.
      references: what a right reply holds, for the record.
      score: of a reply, 0 to 1.
      text, answer: what the ids are made of, and a right reply that could follow it.
      is_text: whether the reply is text; else it is scored as its ids, `3 17`, and nothing ends it.
      floors: what replies that need no understanding would score, 0 to 1, by their name.
    """

    ids: np.ndarray
    tokens_to_generate: int
    references: tuple[str, ...]
    score: Callable[[str], float]
    text: str = ""
    answer: str = ""
    is_text: bool = True
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Group:
    """`count` prompts of one number of the result; `make(i)` gives prompt i.

    `least_tokens(i)` says what prompt i and its reply need at least; None: they have one size.
    """

    task: str
    length: int
    count: int
    make: Callable[[int], Prompt]
    depth: float | None = None
    least_tokens: Callable[[int], int] | None = None


def check_length(group: Group) -> None:
    """Raises: ConfigError for a length too short for one of the prompts, by what all need."""
    if group.least_tokens is None:
        return
    needed = max(map(group.least_tokens, range(group.count)))
    if needed > group.length:
        raise too_short(group.task, group.length, needed)


def too_short(task: str, length: int, needed: int) -> ConfigError:
    """The error of a length below `needed`."""
    problem = f"is too short for {task} with this tokenizer"
    return ConfigError("eval.retrieval.lengths", problem, length, f"at least {needed}")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Text to the ids of a prompt.

    Attributes:
      bos_id: stands first; None: the policy is never.
      chat: the folder's template, where prompts are turns of it.
      vocab_size: the model's.
      learned_positions: what prompt and reply must fit into; 0: any length does.
    """

    tokenizer: Tokenizer
    bos_id: int | None
    vocab_size: int
    chat: ChatTemplate | None = None
    learned_positions: int = 0

    def ids(self, sample: Sample) -> np.ndarray:
        """int32 [t] of the prompt and the beginning of its answer.

        Raises: ConfigError for ids that the model has no row for.
        """
        return self.ids_of_turns((sample.prompt,), sample.answer_prefix)

    def ids_of_turns(self, turns: Sequence[str], answer_prefix: str = "") -> np.ndarray:
        """int32 [t] of the turns of user and assistant in alternation, the user's first and last.

        Without a chat template one turn stands as it is, and several with a name before each.
        """
        if self.chat is not None:
            ids = self.tokenizer.encode_parsed(_reply_to(turns, self.chat) + answer_prefix)
        else:
            ids = self.tokenizer.encode(plain(turns) + answer_prefix)
        if self.bos_id is not None and not (len(ids) and ids[0] == self.bos_id):
            ids = np.concatenate([[self.bos_id], ids]).astype(np.int32)
        check_ids(int(ids.max(initial=0)), self.vocab_size)
        return ids


def _reply_to(turns: Sequence[str], chat: ChatTemplate) -> str:
    """The turns by the template, up to where the reply begins."""
    roles = "user", "assistant"
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return chat.render(messages, add_generation_prompt=True)


def plain(turns: Sequence[str]) -> str:
    """The turns as text for a model without a chat template; a single one is the text itself."""
    if len(turns) == 1:
        return turns[0]
    names = "User", "Assistant"
    lines = [f"{names[place % 2]}: {turn}\n" for place, turn in enumerate(turns)]
    return "".join(lines) + "Assistant: "


# --- Groups ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Maker:
    """What the prompts of RULER's tasks and of tables of needles are made from.

    Attributes:
      essay: sentences of running text; empty where no task reads it.
      keys: `data.needle`, whose ids `needle_keys` takes.
    """

    config: RetrievalConfig
    encoder: Encoder
    essay: Sequence[str]
    keys: NeedleConfig

    def groups(self) -> Iterator[Group]:
        """The groups of all tasks, by task, length and depth."""
        for task, length in itertools.product(self.config.tasks, self.config.lengths):
            if task in RULER:
                yield self._of_text(task, length, None)
            of = self._of_keys if task == KEYS else functools.partial(self._of_text, task)
            for depth in self.config.depths if task in NEEDLES else ():
                yield of(length, depth)

    def _of_text(self, task: str, length: int, depth: float | None) -> Group:
        of = _TEXT_NEEDLES.get(task, task), length, depth
        make = functools.partial(self._ruler_prompt, *of)
        least = functools.partial(self._least_tokens, *of)
        return Group(task, length, self.config.num_samples, make, depth, least)

    def _of_keys(self, length: int, depth: float) -> Group:
        """Rows of `data.needle` whose value stands at `depth` percent: by the question at 100."""
        distance = max(1, round((1 - depth / 100) * (length - 2)))
        config = dataclasses.replace(self.keys, distances=(distance,))
        vocab_size = self.encoder.vocab_size
        needle.check(config, length, vocab_size, "eval.retrieval.lengths")
        stream = f"{KEYS} {self.config.seed}"
        make = functools.partial(_key_prompt, config, stream, length, vocab_size)
        return Group(KEYS, length, self.config.num_samples, make, depth)

    def _ruler_prompt(self, name: str, length: int, depth: float | None, index: int) -> Prompt:
        task, encoder = ruler.TASKS[name], self.encoder
        request = self._request(name, length, depth, index)
        try:
            made = ruler.sample(task, request, self._count)
        except TooShort as error:
            raise too_short(name, length, error.needed) from None
        references = made.references
        return Prompt(
            encoder.ids(made),
            made.tokens_to_generate,
            references,
            lambda reply: task.score(reply, references),
            text=made.prompt + made.answer_prefix,
            answer=ruler.answer(task, made),
        )

    def _least_tokens(self, name: str, length: int, depth: float | None, index: int) -> int:
        request = self._request(name, length, depth, index)
        return ruler.least_tokens(ruler.TASKS[name], request, self._count)

    def _request(self, name: str, length: int, depth: float | None, index: int) -> Request:
        stream, held = f"{name} {self.config.seed}", self._questions(ruler.TASKS[name].reads)
        return Request(stream, index, length, self.essay, held, depth)

    def _count(self, sample: Sample) -> int:
        return len(self.encoder.ids(sample))

    def _questions(self, file: str) -> questions.Questions | None:
        if file not in _READERS:
            return None
        path = getattr(self.config, f"{file}_path")
        if not path:
            problem = "is empty although eval.retrieval.tasks name a task of questions"
            accepted = "a file of questions with their documents"
            raise ConfigError(f"eval.retrieval.{file}_path", problem, accepted=accepted)
        return _READERS[file](path)


def _key_prompt(
    config: NeedleConfig, stream: str, length: int, vocab_size: int, index: int
) -> Prompt:
    draws = Request(stream, index, length).draws("row")
    example = needle.example(config, draws, index, length, vocab_size)
    value = str(example.targets[example.asked[0]])
    return Prompt(example.tokens, 1, (value,), lambda reply: float(reply == value), is_text=False)


def reads_essay(config: RetrievalConfig) -> bool:
    """Whether a task hides its needles in running text."""
    named = (_TEXT_NEEDLES.get(task, task) for task in config.tasks)
    return any(ruler.TASKS[task].reads == "essay" for task in named if task in ruler.TASKS)

"""The `data.` section: which text, cut into which tokens, or which made-up task.

Read next: `sources/`, and `tasks/` for the tasks.
"""

import dataclasses
import re

from hybrid.config import ConfigError, key, section

TASKS = ("mqar", "needle")  # rows of the table in `tasks/`
SOURCES = ("stdlib", "text", "jsonl", "parquet", "datasets", "prepared", *TASKS)
PACKINGS = ("stream", "best_fit", "document")
TEXTS = tuple(source for source in SOURCES if source not in TASKS)
WITHOUT_PATHS = ("stdlib", *TASKS)
WITH_FIELDS = ("jsonl", "parquet", "datasets")  # whose documents are rows of named fields
FIELDS = ("prompt_field", "completion_field", "messages_field")
BOS_POLICIES = ("auto", "document", "window", "never")


@dataclasses.dataclass(frozen=True)
class MqarConfig:
    """Keys under `data.mqar.`."""

    num_pairs: tuple[int, ...] = key((4,), "pairs in a row; rows take them in turn", at_least=1)
    power: float = key(
        0.01, "a of the questions' slots, drawn ∝ a·g^(a-1); 1 is uniform", more_than=0
    )
    random_filler: bool = key(False, "any ids between the questions in place of 0")
    num_examples: int = key(100_000, "training examples", at_least=1)
    num_eval_examples: int = key(1000, "examples to evaluate on", at_least=1)

    def __post_init__(self) -> None:
        if not self.num_pairs:
            raise ConfigError("num_pairs", "must name at least one number", "()")


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
    """Keys under `data.needle.`."""

    distances: tuple[int, ...] = key(
        (0,),
        "tokens from the asking key back to the value; rows take them in turn; 0: drawn from all "
        "that fit",
        at_least=0,
    )
    num_keys: int = key(16, "ids that serve as keys", at_least=1)
    num_values: int = key(16, "ids that serve as values; a guess is right once in them", at_least=2)
    num_examples: int = key(100_000, "training examples", at_least=1)
    num_eval_examples: int = key(1000, "examples to evaluate on", at_least=1)

    def __post_init__(self) -> None:
        if not self.distances:
            raise ConfigError("distances", "must name at least one distance", "()")


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """An entry of `data.mixture`: keys of its own; all others of `data.` are those of the run."""

    name: str = key("", "of letters, digits, - and _; metrics are called by it: loss/NAME")
    weight: float = key(
        1.0, "part of the rows, relative to the others' weights; 0: none", at_least=0
    )
    epochs: float = key(
        0.0,
        "given so many times at most, then the others have its part; 0: without end",
        at_least=0,
    )
    source: str = key("text", "as data.source, but for tasks", choices=TEXTS)
    paths: tuple[str, ...] = key((), "as data.paths", path=True)
    text_field: str = key("", "as data.text_field; empty: that one")
    eval_paths: tuple[str, ...] = key((), "as data.eval_paths", path=True)
    packing: str = key("", "as data.packing; empty: that one", choices=("", *PACKINGS))

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name, re.ASCII):
            raise ConfigError("name", "must be of letters, digits, - and _", self.name or "nothing")

    @classmethod
    def key_of(cls, index: int, name: str) -> str:
        """The key `NAME` under `data.` of source `index`, where it is one of its own."""
        is_own = name in {field.name for field in dataclasses.fields(cls)}
        return f"mixture[{index}].{name}" if is_own else name

    @property
    def data_keys(self) -> dict[str, object]:
        """Its own keys, by their names under `data.`."""
        names = ("source", "paths", "text_field", "eval_paths", "packing")
        return {name: value for name in names if (value := getattr(self, name)) != ""}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Keys under `data.`; raises ConfigError for keys that contradict each other."""

    source: str = key(
        "stdlib",
        "stdlib: the running Python's own library sources; text: a file is a document; "
        "jsonl: a line is one; parquet, datasets (folders that Hugging Face datasets saved): a row "
        "is one; prepared: a store that hybrid.prepare made; mqar, needle: examples made by rule, "
        "which need no tokenizer",
        choices=SOURCES,
    )
    paths: tuple[str, ...] = key(
        (),
        "files, globs (** goes into folders) or folders; text and JSON lines also as .gz or .zst; "
        "quotes protect commas: 'a,b.txt','c.txt'",
        path=True,
    )
    text_field: str = key("text", "field of a line, or column, that holds the document's text")
    prompt_field: str = key(
        "",
        "field that holds a prompt, text that is context; one of prompt_field and completion_field "
        "is enough, the other is then the field of its name",
    )
    completion_field: str = key("", "field that holds what is to follow the prompt, predicted")
    messages_field: str = key(
        "",
        "field that holds a conversation, a list of {role, content}, made text by the chat "
        "template in the tokenizer's folder",
    )
    predict: str = key(
        "completion",
        "of prompts and conversations: completion (it and its EOS; the assistant's turns) or all",
        choices=("completion", "all"),
    )
    tokenizer: str = key(
        "byte",
        "byte (byte b is id b, pad 256, BOS 257, EOS 258), or the path of a tokenizer.json, a "
        "SentencePiece .model, or a folder that holds one",
        path="remote",
    )
    bos: str = key(
        "auto",
        "where BOS stands: document (at a document's start), window (also at the start of "
        "every row and scored window), never; auto: document where the tokenizer has a BOS, "
        "or the policy of the Hugging Face folder in use",
        choices=BOS_POLICIES,
    )
    eval_paths: tuple[str, ...] = key(
        (),
        "files, globs or folders to evaluate on; empty: a part of the documents is held out by "
        "hash, of a single document its end",
        path=True,
    )
    eval_fraction: float = key(
        0.05, "part of the documents held out when eval_paths is empty", more_than=0, at_most=0.99
    )
    packing: str = key(
        "stream",
        "how documents fill training rows: stream (cut through, nothing lost or padded), best_fit "
        "(whole ones, cut only where longer than a row), document (one a row, what is longer is "
        "left out)",
        choices=PACKINGS,
    )
    cross_document: bool = key(
        False, "packed documents of a training row see each other (an axis for ablations)"
    )
    cache_dir: str = key(
        "",
        "folder of the token cache; empty: $XDG_CACHE_HOME/hybrid, else ~/.cache/hybrid",
        path=True,
    )
    mixture: tuple[MixtureSource, ...] = key(
        (),
        "sources to train on together, in place of source, paths and eval_paths: a list of dicts "
        "(docs/mixtures.md), [{'name': 'code', 'paths': 'src/**/*.py', 'weight': 0.7}, …]",
    )
    mixture_schedule: tuple[tuple[int, tuple[float, ...]], ...] = key(
        (),
        "weights that change in training: (finished steps from which they count, (a weight for "
        "each source of the mixture, …)), …; before the first: the sources' own",
    )
    mqar: MqarConfig = section(MqarConfig)
    needle: NeedleConfig = section(NeedleConfig)

    def __post_init__(self) -> None:
        if self.mixture or self.mixture_schedule:
            self._check_mixture()
            return
        is_set = f"is set although data.source is {self.source}"
        self._check_fields(is_set)
        if self.source in WITHOUT_PATHS and self.paths:
            raise ConfigError("paths", is_set, self.paths, "set data.source to text or jsonl")
        if self.source == "prepared" and self.eval_paths:
            remedy = "leave it empty: the store holds out what it was prepared with"
            raise ConfigError("eval_paths", is_set, self.eval_paths, remedy)
        if self.source == "prepared" and len(self.paths) != 1:
            raise ConfigError("paths", "must name one store", self.paths, "its folder")
        if self.is_task and self.eval_paths:
            raise ConfigError("eval_paths", is_set, self.eval_paths, "leave it empty")
        if self.is_task and self.bos != "auto":
            raise ConfigError("bos", f"{is_set}, which has no BOS", self.bos, "auto")
        if self.source not in WITHOUT_PATHS and not self.paths:
            problem = f"is empty although data.source is {self.source}"
            raise ConfigError("paths", problem, accepted="files or globs, separated by commas")

    def _check_fields(self, is_set: str) -> None:
        """Rows are plain text, prompts with completions or conversations, one of the three."""
        given = [name for name in FIELDS if getattr(self, name)]
        if given and self.source not in WITH_FIELDS:
            accepted = f"{', '.join(WITH_FIELDS)}, or leave it empty"
            raise ConfigError(given[0], is_set, getattr(self, given[0]), accepted)
        if given and self.text_field != "text":
            raise ConfigError("text_field", f"is set although data.{given[0]} is", self.text_field)
        if self.messages_field and len(given) > 1:
            problem = f"is set although data.{given[0]} is"
            raise ConfigError("messages_field", problem, self.messages_field)
        prompt, completion = self.pair or ("", " ")
        if prompt == completion:
            raise ConfigError("completion_field", "is the field of the prompt too", completion)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The fields of prompt and completion; None where rows are no such pairs."""
        if not self.prompt_field and not self.completion_field:
            return None
        return self.prompt_field or "prompt", self.completion_field or "completion"

    def _check_mixture(self) -> None:
        names = [source.name for source in self.mixture]
        if not names:
            problem = "is set although data.mixture names no source"
            raise ConfigError("mixture_schedule", problem, self.mixture_schedule)
        if len(set(names)) < len(names):
            raise ConfigError("mixture", "has two sources of one name", names)
        if not any(source.weight for source in self.mixture):
            raise ConfigError("mixture", "has weights that sum to nothing", [0.0] * len(names))
        for name, unset in {"source": "stdlib", "paths": (), "eval_paths": ()}.items():
            value, remedy = getattr(self, name), f"{unset or 'empty'}: each source has its own"
            if value != unset:
                raise ConfigError(name, "is set although data.mixture is", value, remedy)
        self._check_schedule(self.mixture_schedule)
        _ = self.parts

    def _check_schedule(self, schedule: tuple[tuple[int, tuple[float, ...]], ...]) -> None:
        steps = [step for step, _ in schedule]
        if any(step < 0 for step in steps) or sorted(set(steps)) != steps:
            problem = "must have steps from 0 on that ascend"
            raise ConfigError("mixture_schedule", problem, steps)
        for _, weights in schedule:
            if len(weights) != len(self.mixture):
                problem = f"must have a weight for each of the {len(self.mixture)} sources"
                raise ConfigError("mixture_schedule", problem, weights)
            if min(weights) < 0 or not any(weights):
                problem = "must have weights of at least 0 that sum to more"
                raise ConfigError("mixture_schedule", problem, weights)

    @property
    def parts(self) -> "tuple[DataConfig, ...]":
        """Each source of the mixture as if it were alone."""
        found = []
        for index, source in enumerate(self.mixture):
            alone: dict = {**source.data_keys, "mixture": (), "mixture_schedule": ()}
            try:
                found.append(dataclasses.replace(self, **alone))
            except ConfigError as error:
                raise error.under(source.key_of(index, error.key)) from None
        return tuple(found)

    @property
    def is_task(self) -> bool:
        """Whether the source is a task, not text."""
        return self.source in TASKS

    @property
    def task(self) -> MqarConfig | NeedleConfig:
        """The task's section of keys.  Only where the source is one."""
        return getattr(self, self.source)

"""What an experiment's `eval.retrieval` asks of a model: its groups of prompts, all checked.

No model is needed: a sweep asks for the benchmarks of its cells before anything is trained.

Read first: `prompts.py`. Read next: `command.py`.
"""

import dataclasses

from hybrid.config import ConfigError
from hybrid.data import chat, tokenizers
from hybrid.evaluation.retrieval import haystack, mrcr, prompts
from hybrid.evaluation.retrieval.prompts import Encoder, Group
from hybrid.experiment import Experiment
from hybrid.process.remote import AnyPath

CHAT_KEY = "eval.retrieval.chat_template"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The groups of an evaluation, in order, and what turns their text into ids.

    Attributes:
      base: the Hugging Face folder that the model began as; None: of none.
    """

    groups: tuple[Group, ...]
    encoder: Encoder
    base: AnyPath | None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of its groups, each once."""
        return tuple(dict.fromkeys(group.task for group in self.groups))

    @property
    def num_samples(self) -> int:
        """Prompts in all."""
        return sum(group.count for group in self.groups)

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts and replies, at most; of MRCR's files as their bins count them."""
        return sum(group.count * group.length for group in self.groups)


def benchmark(config: Experiment, base: AnyPath | None = None) -> Benchmark:
    """The benchmark of a config.

    A prompt of each task is made at its shortest length, which must do for all of its samples.

    Args:
      base: the Hugging Face folder whose chat template prompts are turns of.
    Raises: ConfigError by key for a task that can't be made.
    """
    encoder = _encoder(config, base)
    groups = tuple(_groups(config, encoder))
    shortest = {group.task: group for group in sorted(groups, key=lambda group: -group.length)}
    for group in groups:
        if group.length == shortest[group.task].length:
            prompts.check_length(group)
    for group in shortest.values():
        group.make(0)
    return Benchmark(groups, encoder, base)


def _groups(config: Experiment, encoder: Encoder) -> list[Group]:
    retrieval, data = config.eval.retrieval, config.data
    essay = haystack.essay(data) if prompts.reads_essay(retrieval) else ()
    found = list(prompts.Maker(retrieval, encoder, essay, data.needle).groups())
    return [*found, *(mrcr.groups(retrieval, encoder) if "mrcr" in retrieval.tasks else ())]


def _encoder(config: Experiment, base: AnyPath | None) -> Encoder:
    tokenizer = tokenizers.load(config.data.tokenizer)
    bos = tokenizers.resolve_bos(config.data.bos, tokenizer)
    template = None
    if config.eval.retrieval.chat_template:
        if base is None:
            problem = "is the template of a Hugging Face folder, and the model is of none"
            raise ConfigError(CHAT_KEY, problem, True, "false")
        template = chat.read(base, CHAT_KEY)
    bos_id = None if bos == "never" else tokenizer.bos_id
    model = config.model
    return Encoder(tokenizer, bos_id, model.vocab_size, template, model.learned_positions)

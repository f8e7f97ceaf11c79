"""The `eval.` section: how often, over which context lengths, how much text, and which tasks.

Read next: `windows.py`, which turns a length and a stride into windows; `retrieval/` for tasks.
"""

import dataclasses

from hybrid.config import ConfigError, key, section

RULER = (
    *("niah_single_1", "niah_single_2", "niah_single_3"),
    *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue"),
    *("niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
)  # rows of the table in `retrieval/ruler.py`
NEEDLES = ("needle_keys", "needle_noise", "needle_essay")  # of the table by length and depth


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Keys under `eval.retrieval.`."""

    tasks: tuple[str, ...] = key(
        (),
        "what eval.py measures in place of losses: tasks of RULER (niah_single_1, …, qa_2), tables "
        "of one needle by length and depth (needle_keys: ids of data.needle; needle_noise, "
        "needle_essay: text), mrcr; empty: losses",
        choices=(*RULER, *NEEDLES, "mrcr"),
    )
    lengths: tuple[int, ...] = key(
        (4096,), "tokens of a sample, BOS and those to generate included", at_least=8
    )
    depths: tuple[float, ...] = key(
        (0.0, 25.0, 50.0, 75.0, 100.0),
        "percent of the haystack before the needle, in the tables of one needle",
        at_least=0, at_most=100,
    )  # fmt: skip
    num_samples: int = key(
        100, "samples of each task and length, or of each cell of a table", at_least=1
    )
    seed: int = key(42, "of the samples", at_least=0)
    chat_template: bool = key(
        False, "prompts are turns of the Hugging Face folder's own chat template"
    )
    squad_path: str = key("", "path of a SQuAD 2.0 file, whose questions qa_1 asks", path=True)
    hotpotqa_path: str = key("", "path of a HotpotQA file, whose questions qa_2 asks", path=True)
    mrcr_paths: tuple[str, ...] = key(
        (),
        "files or globs of MRCR in its public form, .parquet or .jsonl; empty: conversations made "
        "by rule",
        path=True,
    )
    mrcr_tokenizer: str = key(
        "",
        "what counts the tokens of MRCR's bins: own (the model's tokenizer) or the path of a "
        "tokenizer.json (o200k_base's gives the published bins); empty: characters / 4.9, an "
        "estimate of o200k_base's",
        path=True,
    )
    num_needles: tuple[int, ...] = key(
        (2, 4, 8), "equal requests in a conversation of mrcr", at_least=1, at_most=8
    )

    def __post_init__(self):
        for name in ("lengths", "depths", "num_needles"):
            if not getattr(self, name):
                raise ConfigError(name, "must name at least one", "()")
        for name in ("tasks", "lengths", "depths", "num_needles"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(name, "must name each one once", values)


@dataclasses.dataclass(frozen=True)
class LongPerplexityConfig:
    """Keys under `eval.long_perplexity.`."""

    judge: str = key(
        "",
        "folder of a second model, a workdir or Hugging Face folder, whose losses tell which "
        "tokens need far context; eval.py then gives the perplexity on these (LongPPL); empty: "
        "plain losses",
        path="remote",
    )
    short_length: int = key(
        4096, "tokens of context that are not far; key tokens have at least as many", at_least=1
    )
    stride: int = key(1024, "tokens that windows of the short context move by", at_least=1)
    gain: float = key(
        2.0, "nats that a key token's loss under the judge is above behind the short context"
    )
    most_loss: float = key(2.0, "nats that its loss behind the whole context is below")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Keys under `eval.`."""

    every_steps: int = key(
        0, "steps between evaluations in training; the last step always is; 0: only it", at_least=0
    )
    context_length: tuple[int, ...] = key(
        (0,), "inputs a scored window holds, or a list of such; 0: training.context_length",
        at_least=0,
    )  # fmt: skip
    stride: int = key(
        0, "tokens a window goes beyond the one before; 0: the context length", at_least=0
    )
    max_tokens: int = key(0, "stop after exactly so many predicted tokens; 0: all", at_least=0)
    mode: str = key(
        "forward",
        "forward: windows at once, several a row; cached: chunk by chunk through the cache of "
        "inference.*, for contexts that do not fit otherwise and to measure a cache's dtype",
        choices=("forward", "cached"),
    )
    count_eos: bool = key(
        True,
        "each document's EOS is predicted and counted, as in training; it has no bytes, so bits a "
        "byte of short documents rise by it; false: neither",
    )
    batch_size: int = key(0, "rows scored at a time; 0: chosen by size", at_least=0)
    retrieval: RetrievalConfig = section(RetrievalConfig)
    long_perplexity: LongPerplexityConfig = section(LongPerplexityConfig)

    def __post_init__(self):
        if not self.context_length:
            raise ConfigError("context_length", "must name at least one length", "()")

    def lengths(self, training_context_length: int) -> tuple[int, ...]:
        """The context lengths to score, in the order given, each 0 resolved.

        Raises: ConfigError under `eval.stride` for a stride above the shortest.
        """
        lengths = tuple(length or training_context_length for length in self.context_length)
        if self.stride > min(lengths):
            raise ConfigError(
                "eval.stride",
                "must not exceed the shortest eval.context_length",
                self.stride,
                f"at most {min(lengths)}, or 0 for the context length itself",
            )
        return lengths

    def check_one_measure(self) -> None:
        """Raises: ConfigError where two measures are asked for, of which one would be left out."""
        if self.retrieval.tasks and self.long_perplexity.judge:
            problem = "is set although eval.retrieval.tasks are"
            judge = self.long_perplexity.judge
            raise ConfigError("eval.long_perplexity.judge", problem, judge, "one of the two")

    def first_length_only(self) -> "EvalConfig":
        """What training evaluates on its way: the first of several context lengths."""
        return dataclasses.replace(self, context_length=self.context_length[:1])

    def counted(self) -> list[int | bool]:
        """The keys that decide which tokens training's evaluations count, and behind what."""
        return [self.context_length[0], self.stride, self.max_tokens, self.count_eos]

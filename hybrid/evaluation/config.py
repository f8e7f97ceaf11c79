"""The `eval.` section: how often, over which context lengths, and how much text.

Read next: `windows.py`, which turns a length and a stride into windows.
"""

import dataclasses

from hybrid.config import ConfigError, key


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

    def first_length_only(self) -> "EvalConfig":
        """What training evaluates on its way: the first of several context lengths."""
        return dataclasses.replace(self, context_length=self.context_length[:1])

    def counted(self) -> list[int | bool]:
        """The keys that decide which tokens training's evaluations count, and behind what."""
        return [self.context_length[0], self.stride, self.max_tokens, self.count_eos]

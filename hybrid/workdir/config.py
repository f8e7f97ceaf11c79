"""The `checkpoint.` section."""

import dataclasses

from hybrid.config import key


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Keys under `checkpoint.`."""

    every_steps: int = key(
        1000, "steps between checkpoints; the last step always has one; 0: only it", at_least=0
    )
    keep: int = key(3, "newest checkpoints to keep, besides the best by eval/loss", at_least=1)
    asynchronous: bool = key(True, "write while training goes on")

"""What the model is fed: one small dataclass from the pipeline to the loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Not only arrays of jax: numpy's on their way to a device, and shapes or shardings in their place.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed documents or of a task's examples; `t` is how many inputs a row holds.

    Attributes:
      tokens: inputs, int32 [b, t].
      targets: the token that follows each input (in a task: that answers it), int32 [b, t].
      segment_ids: which document of the row a token belongs to, int32 [b, t]; 0 is padding.
      positions: place within the segment, from 0, int32 [b, t].
      loss_mask: whether a target is predicted (not BOS, not padding, nor what
        is no question of a task), bool [b, t].
      is_of_source: of a mixture, which source each row comes from, one True a row, bool
        [b, num_sources]; else None, which is no array: other runs' programs have no such input.
    """

    tokens: Leaf
    targets: Leaf
    segment_ids: Leaf
    positions: Leaf
    loss_mask: Leaf
    is_of_source: Leaf = None


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """A batch of rows, each given by the fields of `Batch`."""
    return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})

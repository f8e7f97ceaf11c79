"""What the model is fed: one small dataclass from the pipeline to the loss."""

import dataclasses

import jax

from hybrid.axes import Mask, Positions, Segments, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed documents; `t` is the number of predicted positions.

    Attributes:
      tokens: inputs, int32 [b, t].
      targets: the token that follows each input, int32 [b, t].
      segment_ids: which document of the row a token belongs to, int32 [b, t]; 0 is padding.
      positions: place within the segment, from 0, int32 [b, t].
      loss_mask: whether a target is predicted (not BOS, not padding), bool [b, t].
    """

    tokens: Tokens
    targets: Tokens
    segment_ids: Segments
    positions: Positions
    loss_mask: Mask

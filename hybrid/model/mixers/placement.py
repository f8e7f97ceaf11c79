"""Where the tokens of a batch stand: what mixers know of them besides the stream itself.

Tokens are whole rows, in training and evaluation, or they go behind those in a cache: then
`step` says how many are there and what was before them.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hybrid.axes import Positions, Segments
from hybrid.model.mixers.kv_cache import CacheStep
from hybrid.model.pattern import LayerPlan, LayerSpec
from hybrid.ops import rope


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placement:
    """Positions and documents of the tokens, and the rotary angles that follow from them.

    Attributes:
      positions: int32 [b, t], from 0 within a document.
      segment_ids: int32 [b, t], or None where every row is one document.
      rotations: cos and sin for each (rope, head_dim) of the plan, computed once for all layers.
      step: the cache that the tokens go behind; None: there is none.
    """

    positions: Positions
    segment_ids: Segments | None
    rotations: dict[str, rope.Rotation]
    step: CacheStep | None = None

    @classmethod
    def of(cls, plan: LayerPlan, positions, segment_ids, dtype, step=None) -> "Placement":
        """The placement of a batch under `plan`; angles in at least float32."""
        specs = {spec.rope_key: spec for spec in plan.layers()}
        rotations = {key: angles(spec, positions, dtype) for key, spec in specs.items()}
        return cls(positions, segment_ids, rotations, step)

    def rotation(self, spec: LayerSpec) -> rope.Rotation:
        """The angles of a layer's heads."""
        return self.rotations[spec.rope_key]


def angles(spec: LayerSpec, positions: Positions, dtype) -> rope.Rotation:
    """cos and sin of a layer's angles at `positions` [b, t], in at least float32."""
    return rope.rotation(
        positions,
        spec.head_dim,
        theta=spec.rope.theta,
        fraction=spec.rope.fraction,
        factor=spec.rope.factor,
        dtype=jnp.promote_types(dtype, jnp.float32),
    )

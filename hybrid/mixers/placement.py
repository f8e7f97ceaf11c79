"""Where the tokens of a batch stand: what mixers know of them besides the stream itself."""

import dataclasses

import jax
import jax.numpy as jnp

from hybrid.axes import Positions, Segments
from hybrid.ops import rope
from hybrid.pattern import LayerPlan, LayerSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placement:
    """Positions and documents of the tokens, and the rotary angles that follow from them.

    Attributes:
      positions: int32 [b, t], from 0 within a document.
      segment_ids: int32 [b, t], or None where every row is one document.
      rotations: cos and sin for each (rope, head_dim) of the plan, computed once for all layers.
    """

    positions: Positions
    segment_ids: Segments | None
    rotations: dict[str, rope.Rotation]

    @classmethod
    def of(cls, plan: LayerPlan, positions, segment_ids, dtype) -> "Placement":
        """The placement of a batch under `plan`; angles in at least float32."""
        wide = jnp.promote_types(dtype, jnp.float32)
        specs = {_key(spec): spec for spec in plan.layers()}
        rotations = {
            key: rope.rotation(
                positions,
                spec.head_dim,
                theta=spec.rope.theta,
                fraction=spec.rope.fraction,
                factor=spec.rope.factor,
                dtype=wide,
            )
            for key, spec in specs.items()
        }
        return cls(positions, segment_ids, rotations)

    def rotation(self, spec: LayerSpec) -> rope.Rotation:
        """The angles of a layer's heads."""
        return self.rotations[_key(spec)]


def _key(spec: LayerSpec) -> str:
    return f"{spec.rope}/{spec.head_dim}"

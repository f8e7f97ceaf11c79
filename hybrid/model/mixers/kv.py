"""Keys and values of a layer, as they are kept.

`Unified` stores one tensor for both: the projection is normalised once, without a weight, and
that is the value. The key is the same vector times the key norm's weight, rotated:

    v = rms(x·W)        k = rope(v · k_scale)

so caches and gathers move half as much, and no norm is redone on reading.
Source: Gemma 4 (2607.02770), sec. 2; the identity holds because RMS normalisation commutes with
its own weight.
"""

import dataclasses
from typing import NamedTuple

from hybrid.axes import Key, Value
from hybrid.ops import rope


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position encoding of a layer: `fraction` of the pairs turn, at base `theta`.

    `factor` divides all frequencies (linear scaling).
    """

    theta: float
    fraction: float = 1.0
    factor: float = 1.0


class Separate(NamedTuple):
    """k: [b, s, k, h], normed and rotated.  v: [b, s, k, h], normed."""

    k: Key
    v: Value

    def keys_values(self, turn: rope.Rotation) -> tuple[Key, Value]:
        """Keys and values to attend to; `turn` is not needed, keys are rotated already."""
        return self.k, self.v


class Unified(NamedTuple):
    """v: [b, s, k, h], normed; k_scale: [h], the key norm's weight."""

    v: Value
    k_scale: Key

    def keys_values(self, turn: rope.Rotation) -> tuple[Key, Value]:
        """Keys made from the values, rotated by `turn` (the angles of the values' positions)."""
        scale = self.k_scale.astype(self.v.dtype)[None, None, None]
        return rope.apply(self.v * scale, turn), self.v


KV = Separate | Unified

"""What the slots of a cache hold of a layer's keys and values, and how keys are made of it.

A cache need not hold keys. Of unified keys and values k = rope(v ∘ k_scale), so with u the
dimensions that turn, a score is a sum of products of parts of the query with what is stored:

    q·k = (q ∘ k_scale)·v over the other dimensions  +  q_u·rope(v_u ∘ k_scale_u)

The first term needs no key, and of the second either v_u is turned on reading or the turned part is
kept besides. `Slots` is the one value that says which; every implementation of attention to a cache
reads it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybrid.ops import rope


class Stored(NamedTuple):
    """A tensor of a cache, or a tile of one.

    Attributes:
      values: [..., b, k, s, h].
      scales: [..., b, k, s], what `values` are to be multiplied with; None: 1.
    """

    values: Any
    scales: Any = None


class Tile(NamedTuple):
    """Some slots of a cache: parts of keys to go with the parts of queries, and values."""

    keys: Sequence[Stored]
    values: Stored


class Slots(NamedTuple):
    """Keys and values of a layer's slots, one row of stacked arrays.

    Tiles are cut out of the whole stack: a layer cut out first would be copied.

    Attributes:
      values: [layers, b, k, s, h].
      row: the layer's among them, an integer.
      keys: whole keys, stored like values; None: they are made of the values.
      rotated: the turned part of such keys, [layers, b, k, s, 2·pairs]; None: made on reading.
      k_scale: [h], of keys that are made of values.
      turn: angles of the positions 0 … s − 1, [1, s, 1, pairs], and
      frequencies: [pairs], where the turned part is made on reading: slot p then holds position p.
        None: no pair turns, or the part is stored.
    """

    values: Stored
    row: Any = 0
    keys: Stored | None = None
    rotated: Stored | None = None
    k_scale: Any = None
    turn: Any = None
    frequencies: Any = None

    @property
    def num_slots(self) -> int:
        """s."""
        return self.values.values.shape[3]

    @property
    def num_pairs(self) -> int:
        """Pairs that turn of keys that are made of values."""
        if self.rotated is not None:
            return self.rotated.values.shape[-1] // 2
        return 0 if self.turn is None else self.turn.cos.shape[-1]

    def queries(self, q: jax.Array) -> list[jax.Array]:
        """q [b, t, n, h] in the parts that go with the parts of keys."""
        if self.keys is not None:
            return [q]
        turned, pairs = rope.is_turned(q.shape[-1], self.num_pairs), self.num_pairs
        plain = q * jnp.where(turned, 0, self.k_scale.astype(q.dtype))[None, None, None]
        parts = [] if turned.all() else [plain]
        return parts + ([rope.turned_part(q, pairs)] if pairs else [])

    def read(self, start: jax.Array | int, size: int) -> Tile:
        """`size` slots from `start` on."""

        def tile(stored):
            return jax.tree.map(lambda array: _tile(array, self.row, start, size), stored)

        value = tile(self.values)
        if self.keys is not None:
            return Tile([tile(self.keys)], value)
        pairs = self.num_pairs
        keys = [] if rope.is_turned(value.values.shape[-1], pairs).all() else [value]
        if self.rotated is not None:
            keys.append(tile(self.rotated))
        elif pairs:
            keys.append(self._rotated(value, start, size))
        return Tile(keys, value)

    def _rotated(self, value: Stored, start, size: int) -> Stored:
        """The turned part of the keys of a tile of values."""
        turn = jax.tree.map(
            lambda angle: jax.lax.dynamic_slice_in_dim(angle, start, size, axis=1).swapaxes(1, 2),
            self.turn,
        )
        pairs, wide = self.num_pairs, turn.cos.dtype
        scale = rope.turned_part(self.k_scale, pairs).astype(wide)[None, None, None]
        part = rope.turned_part(value.values, pairs).astype(wide) * scale
        return Stored(rope.apply(part, turn), value.scales)


def _tile(stacked: jax.Array, row, start, size: int) -> jax.Array:
    """[b, k, size, ...] of one layer."""
    starts = [jnp.asarray(at, jnp.int32) for at in (row, 0, 0, start, *[0] * (stacked.ndim - 4))]
    sizes = (1, *stacked.shape[1:3], size, *stacked.shape[4:])
    return jax.lax.dynamic_slice(stacked, starts, sizes)[0]

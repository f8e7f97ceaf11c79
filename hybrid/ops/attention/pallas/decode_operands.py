"""How a call of the decode kernel is cut, what it reads, and in which blocks.

Blocks are of slots, and large: a step of the grid takes about as long to start as half a megabyte
takes to come. The last one may be cut short by the end of the cache; the kernel has a step for it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl

from hybrid.ops import rope
from hybrid.ops.attention.pallas import LANES
from hybrid.ops.attention.slots import Slots, Stored

_MOST_BYTES, _MOST_SLOTS = 2 * 2**20, 4096  # of a block
_TURNED = 256  # slots for which queries are turned back at once
_ALIGNED = 8  # rows of a register


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a call is cut.

    Attributes:
      block: slots of a block.  num_blocks: of all slots.
      turned: slots for which queries are turned back at once.
      rows: queries of a KV head and row of the batch, padding included.
    """

    num_slots: int
    block: int
    num_blocks: int
    turned: int
    rows: int

    @classmethod
    def of(cls, slots: Slots, num_queries: int) -> "Layout":
        stored = (x.values for x in (slots.values, slots.keys, slots.rotated) if x is not None)
        slot_bytes = sum(x.shape[-1] * x.dtype.itemsize for x in stored)
        most = max(1, min(_MOST_SLOTS, _MOST_BYTES // slot_bytes) // _TURNED) * _TURNED
        block = min(most, slots.num_slots)
        num_blocks = -(-slots.num_slots // block)
        rows = -(-num_queries // _ALIGNED) * _ALIGNED
        return cls(slots.num_slots, block, num_blocks, min(_TURNED, block), rows)

    @property
    def last_block(self) -> int:
        """Slots of the last block."""
        return self.num_slots - (self.num_blocks - 1) * self.block


class Operands(NamedTuple):
    """What a call reads, by its blocks; None where it has no such operand.

    Attributes:
      q, q_turned: [b, k, rows, h], float32; scores are the sum of both's products.
      q_positions: int32 [b, rows, 1].  kv_positions: int32 [b, 1, s].
      values, keys: [layers, b, k, s, h]; `keys` are whole ones, or their turned parts.
      value_scales, key_scales: [layers, b, k, s].
      sinks: [k, rows, 1].
      k_scale: [1, h]; 1 for dimensions that do not turn.
      cos, sin: [turned, pairs], angles of the first slots.
      start_cos, start_sin: [blocks of `turned` slots, 1, pairs], angles of each one's first slot.
    """

    q: Any
    q_turned: Any
    q_positions: Any
    kv_positions: Any
    values: Any
    value_scales: Any
    keys: Any
    key_scales: Any
    sinks: Any
    k_scale: Any = None
    cos: Any = None
    sin: Any = None
    start_cos: Any = None
    start_sin: Any = None

    @property
    def is_turning(self) -> bool:
        """Whether keys are made by turning values."""
        return self.cos is not None

    @property
    def widths(self) -> int:
        """Of all products with a slot: of its scores, and of its value."""
        parts = (x for x in (self.q, self.q_turned) if x is not None)
        return sum(x.shape[-1] for x in parts) + self.values.shape[-1]

    @property
    def bytes_read(self) -> int:
        """Of full rows: a layer's part of what is stored, and small arrays."""
        stored = ("values", "value_scales", "keys", "key_scales")
        return sum(
            x.size * x.dtype.itemsize // (x.shape[0] if name in stored else 1)
            for name, x in self._asdict().items()
            if x is not None
        )


def operands_of(
    layout: Layout, q: jax.Array, slots: Slots, q_positions: Any, kv_positions: Any, sinks: Any
) -> Operands:
    """The operands of a call; q [b, t, n, h] in the dtype of sums."""
    num_kv_heads = slots.values.values.shape[2]
    length, group = q.shape[1], q.shape[2] // num_kv_heads

    def padded(x, value=0):
        return jnp.pad(
            x,
            [(0, 0)] * (x.ndim - 2) + [(0, layout.rows - x.shape[-2]), (0, 0)],
            constant_values=value,
        )

    def rows(q):
        return padded(rearrange(q, "b t (k g) h -> b k (t g) h", k=num_kv_heads))

    is_turning = slots.keys is None and slots.rotated is None and slots.num_pairs > 0
    if is_turning:
        parts, tables = _turning(layout, q, slots)
    else:
        parts, tables = slots.queries(q), {}
    other = slots.keys or slots.rotated
    if other is not None and len(parts) == 1:
        parts = [None, *parts]
    if sinks is not None:
        heads = rearrange(sinks.astype(q.dtype), "(k g) -> k g 1", k=num_kv_heads)
        sinks = padded(jnp.tile(heads, (1, length, 1)))
    keys = other or Stored(None)
    plain, turned = (None if part is None else rows(part) for part in (*parts, None)[:2])
    return Operands(
        q=plain,
        q_turned=turned,
        q_positions=padded(jnp.repeat(q_positions, group, axis=1)[..., None], -1),
        kv_positions=kv_positions[:, None],
        values=slots.values.values,
        value_scales=slots.values.scales,
        keys=keys.values,
        key_scales=keys.scales,
        sinks=sinks,
        **tables,
    )


def _turning(layout: Layout, q, slots: Slots):
    """Whole queries, and the tables of (4), whole registers wide: more pairs turn by 0."""
    head_dim, pairs = q.shape[-1], slots.num_pairs
    width = min(head_dim // 2, -(-pairs // LANES) * LANES)
    is_turned = rope.is_turned(head_dim, pairs)
    k_scale = slots.k_scale.astype(q.dtype)
    frequencies = jnp.pad(slots.frequencies.astype(q.dtype), (0, width - pairs))

    def angles(positions):
        return positions.astype(q.dtype)[:, None] * frequencies[None]

    first = angles(jnp.arange(layout.turned))
    starts = angles(jnp.arange(0, slots.num_slots, layout.turned))[:, None]
    tables = {
        "k_scale": jnp.where(is_turned, k_scale, 1)[None],
        "cos": jnp.cos(first),
        "sin": jnp.sin(first),
        "start_cos": jnp.cos(starts),
        "start_sin": jnp.sin(starts),
    }
    return [q * jnp.where(is_turned, 1, k_scale)[None, None, None]], tables


def block_at(i: Any, used: Any) -> Any:
    """The block of step `i` of a row that uses `used` of them."""
    return jnp.maximum(jnp.minimum(i, used - 1), 0)


def specs_of(layout: Layout, operands: Operands) -> Operands:
    """The block of each operand that a step of the grid reads."""

    def per_row(x):
        return pl.BlockSpec((1, *x.shape[1:]), lambda b, k, i, row, blocks: (b, 0, 0))

    def per_head(x):
        return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, k, i, row, blocks: (b, k, 0, 0))

    def positions(x):
        return pl.BlockSpec(
            (1, 1, layout.block), lambda b, k, i, row, blocks: (b, 0, block_at(i, blocks[b]))
        )

    def stored(x):
        return pl.BlockSpec(
            (1, 1, 1, layout.block, x.shape[-1]),
            lambda b, k, i, row, blocks: (row[0], b, k, block_at(i, blocks[b]), 0),
        )

    def scales(x):
        # Of all heads: one row alone is no block of memory.
        return pl.BlockSpec(
            (1, 1, x.shape[2], layout.block),
            lambda b, k, i, row, blocks: (row[0], b, 0, block_at(i, blocks[b])),
        )

    def whole(x):
        return pl.BlockSpec(x.shape, lambda b, k, i, row, blocks: (0,) * x.ndim)

    def starts(x):
        return pl.BlockSpec(
            (-(-layout.block // layout.turned), *x.shape[1:]),
            lambda b, k, i, row, blocks: (block_at(i, blocks[b]), 0, 0),
        )

    def of_head(x):
        return pl.BlockSpec((1, *x.shape[1:]), lambda b, k, i, row, blocks: (k, 0, 0))

    makers = Operands(
        *(per_head, per_head, per_row, positions),
        *(stored, scales, stored, scales),
        *(of_head, whole, whole, whole, starts, starts),
    )
    return Operands(
        *(None if x is None else spec(x) for spec, x in zip(makers, operands, strict=True))
    )

"""Few new tokens put into the slots of a cache, in place.

    grid      rows of the batch × blocks of slots that a row's new tokens fall into

A block is read, its new slots are replaced, and it goes back to where it came from: the result is
the stack of all layers itself. XLA's scatter on TPUs would have the stack in another order of axes,
so that each layer's write copied the whole cache there and back.

A step replaces all of a row's tokens that fall into its block. So a block may be named again, which
changes nothing, and the blocks of up to _TALL consecutive tokens are three at most: the first
token's, the highest, and the lowest, which a ring's end is followed by.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid.ops.attention.pallas import LANES
from hybrid.ops.attention.pallas.tile import call, over

_TALL = 32  # slots of a block, as many as a register of int8 has rows


def write(
    stacked: jax.Array, row: jax.Array, new: jax.Array, at: jax.Array, num_slots: int
) -> jax.Array:
    """As `hybrid.ops.attention.writing.write`, of one array."""
    _, heads, length = new.shape[:3]
    width = stacked.shape[4:]
    size = min(_TALL if width else LANES, num_slots)
    visits = _visits(at, num_slots, size)

    def kernel(row, visits, at, new, old, out):
        b = pl.program_id(0)
        first = visits[b, pl.program_id(1)] * size
        tile = old[0, 0]
        slot = first + jax.lax.broadcasted_iota(jnp.int32, tile.shape, 1)
        for token in range(length):
            tile = jnp.where(slot == at[b, token], new[0, :, token : token + 1], tile)
        out[0, 0] = tile

    still = (0,) * len(width)
    of_new = pl.BlockSpec((1, heads, length, *width), lambda b, i, *_: (b, 0, 0, *still))
    of_slots = pl.BlockSpec(
        (1, 1, heads, size, *width),
        lambda b, i, row, visits, at: (row[0], b, 0, visits[b, i], *still),
    )
    block_bytes = heads * size * math.prod(width) * stacked.dtype.itemsize
    (out,) = call(
        kernel,
        (new, stacked),
        grid=visits.shape,
        in_specs=[of_new, of_slots],
        out_specs=[of_slots],
        out_shapes=[(stacked.shape, stacked.dtype)],
        scalars=[jnp.asarray(row, jnp.int32)[None], visits, at],
        is_in_place=True,
        flops=0,
        bytes_accessed=2 * visits.size * block_bytes,
    )
    return out


def _visits(at: jax.Array, num_slots: int, size: int) -> jax.Array:
    """int32 [b, 1 or 3]: the blocks of the slots `at` [b, t]; `num_slots` is no slot."""
    is_slot = at < num_slots
    block = over(jnp.where(is_slot, at, 0), size)
    if at.shape[1] == 1:
        return block
    first = jnp.take_along_axis(block, jnp.argmax(is_slot, axis=1)[:, None], axis=1)
    lowest = jnp.where(is_slot, block, first)
    highest = jnp.max(block, axis=1, keepdims=True)
    return jnp.concatenate([first, highest, jnp.min(lowest, axis=1, keepdims=True)], axis=1)

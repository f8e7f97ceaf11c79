"""Attention of a few new queries to a cache, whose keys come tile by tile and in parts.

Where one vector serves as value and (scaled, rotated) key, the score is a sum of products of parts
of the query with what is stored (`slots.py`), so no whole key is ever built:

    (1)  s  = Σ_i q_i·k_iᵀ · scale_of_slot        k_i: parts of a tile of slots
    (2)  m' = max(m, max_keys s)                   p = exp(s − m')
    (3)  l  = l·exp(m − m') + Σ_keys p             o = o·exp(m − m') + (p · scale_of_slot)·v

with the state of `chunked.py`: a sink starts it at m = sink, l = 1. Slots of int8 have a scale
each, which multiplies a column of scores and of weights in place of the stored tensor.

Where queries are few, one tile holds all slots: a step of decoding is two products. Else the walk
ends at the last slot in use, a traced number, so a prompt pays for what it has and no program
depends on its length. Inference only: there is no gradient.

The stored side stands left in (1) and right in (3): of all forms the fastest on 2 CPU cores
(16 384 slots of 128, 4 queries: 0.11 ms each; the query left 0.16; the value left 1.0).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.axes import Query
from hybrid.ops.attention.slots import Slots, Stored
from hybrid.ops.band import visible
from hybrid.ops.dense import dot

TILE = 512  # slots of a tile, or more where queries are few
FEW_ROWS = 64  # up to which the stored side of a product stands left
MOST_SCORES = 1 << 20  # of a row that are held at once, where a tile is larger than TILE


def attend(
    q: Query,
    slots: Slots,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    *,
    in_use: jax.Array | None = None,
    window_size: int | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    tile_size: int | None = None,
    sees: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Query:
    """As `hybrid.ops.attention.attend_cached`.

    Args:
      sees: (q_position, kv_position) -> bool, in place of the window.
      tile_size: slots at a time; None: as many as MOST_SCORES and TILE say.
    """
    (batch, length, num_heads, _), num_slots = q.shape, slots.num_slots
    num_kv_heads, width = slots.values.values.shape[2], slots.values.values.shape[4]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    rows = [
        rearrange(part, "b t (k g) h -> b k (t g) h", k=num_kv_heads) for part in slots.queries(q)
    ]
    group = num_heads // num_kv_heads
    lowest = jnp.finfo(wide).min
    sees = functools.partial(visible, window_size=window_size) if sees is None else sees
    if tile_size is None:
        tile_size = max(TILE, MOST_SCORES // (length * num_heads))
    tile_size = min(tile_size, num_slots)

    def mask(start, first_new):
        """bool [b, 1, rows, slots] of the tile at `start`; slots before `first_new` came before."""
        kv = _cut(kv_positions, start, tile_size, 1)[:, None, None, :]
        rows = jnp.repeat(q_positions, group, axis=1)[:, None, :, None]
        is_new = (start + jnp.arange(tile_size) >= first_new)[None, None, None, :]
        return sees(rows, kv) & is_new

    def step(state, start, first_new):
        peak, total, out = state
        tile = slots.read(start, tile_size)
        parts = zip(rows, tile.keys, strict=True)
        s = sum(_scores(q, k) for q, k in parts)  # (1)
        s = s if scale == 1 else s * scale
        s = s if softcap is None else softcap * jnp.tanh(s / softcap)
        s = jnp.where(mask(start, first_new), s, lowest)
        new_peak = jnp.maximum(peak, jnp.max(s, axis=-1, keepdims=True))  # (2)
        p = jnp.where(s == lowest, 0, jnp.exp(s - new_peak))
        shrink = jnp.exp(peak - new_peak)
        total = total * shrink + jnp.sum(p, axis=-1, keepdims=True)  # (3)
        p = p if tile.values.scales is None else p * tile.values.scales[:, :, None, :]
        return new_peak, total, out * shrink + dot("bkrs,bksh->bkrh", p, tile.values.values)

    shape = (batch, num_kv_heads, length * group)
    state = (
        jnp.full((*shape, 1), lowest, wide) if sinks is None else _sink_rows(sinks, shape, wide),
        jnp.full((*shape, 1), 0 if sinks is None else 1, wide),
        jnp.zeros((*shape, width), wide),
    )
    if tile_size == num_slots:
        state = step(state, 0, 0)
    else:
        # The last tile ends with the cache, so it may begin among slots that came before.
        last, used = num_slots - tile_size, num_slots if in_use is None else jnp.max(in_use)
        state = jax.lax.fori_loop(
            0,
            (used + tile_size - 1) // tile_size,
            lambda i, state: step(state, jnp.minimum(i * tile_size, last), i * tile_size),
            state,
        )
    _, total, out = state
    out = out / jnp.where(total == 0, 1, total)
    return rearrange(out, "b k (t g) h -> b t (k g) h", t=length).astype(q.dtype)


def _scores(q, key: Stored):
    """[b, k, rows, slots] of [b, k, rows, h] and a stored part."""
    if q.shape[2] <= FEW_ROWS:
        s = rearrange(dot("bksh,bkrh->bksr", key.values, q), "b k s r -> b k r s")
    else:
        s = dot("bkrh,bksh->bkrs", q, key.values)
    return s if key.scales is None else s * key.scales[:, :, None, :]


def _sink_rows(sinks, shape, dtype):
    heads = rearrange(sinks.astype(dtype), "(k g) -> 1 k 1 g", k=shape[1])
    times = shape[2] // heads.shape[3]
    return jnp.broadcast_to(
        jnp.tile(heads, (1, 1, times, 1)).reshape(1, shape[1], -1, 1), (*shape, 1)
    )


def _cut(array, start, size, axis):
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis=axis)

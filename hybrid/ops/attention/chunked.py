"""Attention as one scan over the visible tiles, in O(t) memory, with its own backward.

A tile is a block of queries against a block of keys. Which tiles hold a visible pair is known
while tracing (`_tiles`): those under the diagonal, and with a window those near it. Both
directions walk that list, so a local layer costs O(t·w), a global one O(t²/2), and no mask is
computed for tiles that are visible throughout.

Forward, for tile (i, j) with q_i scaled, and state m, l, o of query block i (Milakov & Gimelshein
1805.02867; FlashAttention 2205.14135, algorithm 1):

    (1)  s  = k_j·q_iᵀ                           or softcap·tanh(s/softcap); −∞ where not visible
    (2)  m' = max(m, max_keys s)                 p = exp(s − m')
    (3)  l  = l·exp(m − m') + Σ_keys p           o = o·exp(m − m') + v_jᵀ·p
    (4)  out = o / l                             lse = m + log l

Kept: q, k, v, out and lse, nothing of size t². Backward, with δ = Σ_h dout·out (one number a
query), since softmax gives ds = p·(dp − Σ p·dp) and Σ_keys p·dp = δ:

    (5)  p  = exp(s − lse)                       dp = v_j·dout_iᵀ
    (6)  ds = p·(dp − δ)                         times 1 − (s/softcap)² with a softcap
    (7)  dv_j += p·dout_i      dk_j += ds·q_i    dq_iᵀ += k_jᵀ·ds

Scores are key-major, [keys, queries]: the reductions of (2), (3) then run over the major axis and
the minor one vectorises, and no product of (3), (7) has to transpose a tile of scores (o and dq are
transposed instead, once, at the end). The g query heads of one KV head are rows of one matrix.

A sink is a key of score sink and value 0 that every query has seen before the first tile: the state
begins at m = sink, l = 1 instead of m = −∞, l = 0, and (2) to (7) stay as they are. Its gradient,
since dp = 0 for it, is by (6)

    (8)  dsink = −Σ_queries exp(sink − lse)·δ

A query that sees no key has m = −∞ (here the lowest finite number): its out is zero, and lse is
set to the highest, so that (5) gives zero.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from hybrid.axes import Key, Query, Value
from hybrid.ops import cpu, dispatch
from hybrid.ops.attention import context
from hybrid.ops.attention.tiles import add, cut, key_rows, query_rows, scores, sink_rows
from hybrid.ops.band import Band, same_segment, visible
from hybrid.ops.dense import dot


class Blocks(NamedTuple):
    """Tile sizes: queries and keys a tile, forward and backward."""

    forward: tuple[int, int]
    backward: tuple[int, int]


def default_blocks(
    window_size: int | None, query_length: int, key_length: int, backend: str = "cpu"
) -> Blocks:
    """Tile sizes by backend: on a CPU those measured fastest, elsewhere larger ones.

    A 2-core CPU prefers, with a window, query blocks of 128 against one tile of keys (smaller
    blocks waste fewer scores but multiply slower), without one 256, forward 512 on long rows.
    Accelerators want fewer, larger steps; theirs are not tuned, since kernels come before this
    path there.
    """
    on_cpu = backend == "cpu"
    if window_size is not None and window_size <= 512:
        queries = max(64, min(128, window_size)) if on_cpu else 256
        keys = queries * -(-(queries + window_size - 1) // queries)
        return Blocks((queries, keys), (queries, keys))
    forward = 256 if on_cpu and query_length <= 1024 else 512
    backward = 256 if on_cpu else 512
    return Blocks(
        (min(forward, query_length), min(forward, key_length)),
        (min(backward, query_length), min(backward, key_length)),
    )


def attend(
    q: Query,
    k: Key,
    v: Value,
    band: Band,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    blocks: Blocks | None = None,
) -> Query:
    """Attention in tiles; arguments and result as `hybrid.ops.attention.attend`."""
    window, farthest = band.window_size, q.shape[1] + band.offset
    if band.is_regular and window is not None and window >= farthest:
        band = dataclasses.replace(band, window_size=None)
    if blocks is None:
        sizes = band.window_size, q.shape[1], k.shape[1]
        blocks = default_blocks(*sizes, dispatch.backend())
    if band.part is not None:
        blocks = Blocks(*(_divisors(k.shape[1] // (2 * band.num_parts), *pair) for pair in blocks))
    # Only arrays go in as arguments: differentiation fills their places with what is no Band.
    arrays, structure = jax.tree.flatten(band)
    return _attend(q, k, v, sinks, arrays, structure, scale, softcap, blocks)


def _divisors(size, *most):
    """The largest divisors of `size` up to each of `most`."""
    return tuple(max(d for d in range(1, limit + 1) if size % d == 0) for limit in most)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _attend(q, k, v, sinks, arrays, structure, scale, softcap, blocks):
    return _forward(q, k, v, sinks, arrays, structure, scale, softcap, blocks)[0]


# ---------------------------------------------------------------------------- tiles


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How one call is cut into tiles. Key starts are in tokens; `left` keys are padding."""

    queries: int
    keys: int
    num_blocks: int
    left: int
    right: int
    edge: Any  # tiles in which causality, window or padding hides a pair,
    inner: Any  # and the others; int32 [tiles, 2]: query block, first padded key

    @classmethod
    def of(cls, band, query_length, key_length, queries, keys):
        num_blocks = -(-query_length // queries)
        if band.part is not None:
            chunk = key_length // (2 * band.num_parts)
            both = context.tiles(band.part, band.num_parts, chunk, queries, keys)
            return cls(queries, keys, num_blocks, 0, 0, *both)
        tiles = list(_tiles(band, num_blocks, key_length, queries, keys))
        starts = [start for _, start, _ in tiles]
        left = max(0, -min(starts))
        right = max(0, max(starts) + keys - key_length)

        def table(edge):
            rows = [(block, start + left) for block, start, at_edge in tiles if at_edge == edge]
            return np.array(rows, np.int32).reshape(-1, 2)

        return cls(queries, keys, num_blocks, left, right, table(True), table(False))


def _tiles(band, num_blocks, key_length, queries, keys):
    """(query block, first key, whether at an edge) of each tile that the band may show."""
    if not band.is_regular:
        for block in range(num_blocks):
            yield from ((block, start, True) for start in range(0, key_length, keys))
        return
    window = band.window_size
    for block in range(num_blocks):
        first = band.offset + block * queries  # as keys are counted
        last = first + queries - 1
        lowest = 0 if window is None else max(0, first - window + 1)
        # With a window, tiles end at the block's last query: the fewest that reach `lowest`.
        leftmost = 0 if window is None else last + 1 - keys * -(-(last + 1 - lowest) // keys)
        for start in range(leftmost, last + 1, keys):
            hidden = start + keys - 1 > first or start < 0
            hidden |= window is not None and start < last - window + 1
            yield block, start, hidden


# ---------------------------------------------------------------------------- forward


def _forward(q, k, v, sinks, arrays, structure, scale, softcap, blocks):
    band = jax.tree.unflatten(structure, arrays)
    layout = _Layout.of(band, q.shape[1], k.shape[1], *blocks.forward)
    num_kv_heads = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    rows = query_rows(q, layout.num_blocks, layout.queries, num_kv_heads)
    keys, values_t = key_rows(k, layout.left, layout.right), _columns(v, layout)
    mask = _masks(band, layout, q.shape[2] // num_kv_heads)
    lowest = jnp.finfo(wide).min

    def step(edge, state, tile):
        block, start = tile[0], tile[1]
        peak, total, out = (_at(array, block) for array in state)
        s = scores(cut(keys, start, layout.keys), _at(rows, block), scale, softcap)  # (1)
        s = _hide(s, mask(block, start, edge), lowest)
        new_peak = jnp.maximum(peak, jnp.max(s, axis=-2, keepdims=True))  # (2)
        p = jnp.exp(s - new_peak)
        shrink = jnp.exp(peak - new_peak)
        total = total * shrink + jnp.sum(p, axis=-2, keepdims=True)  # (3)
        out = out * shrink + dot("bkhc,bkcr->bkhr", cut(values_t, start, layout.keys, 3), p)
        new = (new_peak, total, out)
        return jax.tree.map(lambda array, part: _put(array, block, part), state, new), None

    *outer, count, head_dim = rows.shape
    first = lowest
    if sinks is not None:
        first = sink_rows(sinks.astype(wide), layout.queries, num_kv_heads)[None]
    state = (
        jnp.broadcast_to(jnp.asarray(first, wide), (*outer, 1, count)),
        jnp.full((*outer, 1, count), 0 if sinks is None else 1, wide),
        jnp.zeros((*outer, head_dim, count), wide),
    )
    peak, total, out = _walk(step, state, layout, q)
    unseen = peak == lowest
    out = jnp.where(unseen, 0, out / jnp.where(unseen, 1, total))  # (4)
    lse = jnp.where(unseen, -lowest, peak + jnp.log(jnp.where(unseen, 1, total)))
    lse = rearrange(lse, "i b k 1 (c g) -> b (i c) (k g)", c=layout.queries)[:, : q.shape[1]]
    out = rearrange(out, "i b k h (c g) -> b (i c) (k g) h", c=layout.queries)[:, : q.shape[1]]
    out, lse = (checkpoint_name(each, "attention_out") for each in (out.astype(q.dtype), lse))
    return out, (q, k, v, sinks, arrays, out, lse)


# ---------------------------------------------------------------------------- backward


def _backward(structure, scale, softcap, blocks, kept, dout):
    q, k, v, sinks, arrays, out, lse = kept
    band = jax.tree.unflatten(structure, arrays)
    layout = _Layout.of(band, q.shape[1], k.shape[1], *blocks.backward)
    num_kv_heads = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    delta = jnp.sum(cpu.without_lead(dout.astype(wide) * out.astype(wide)), axis=-1)
    delta = delta.reshape(*out.shape[:-1], 1)
    dsinks = None
    if sinks is not None:
        share = jnp.exp(sinks.astype(wide)[None, None] - lse)
        dsinks = -jnp.sum(share * delta[..., 0], axis=(0, 1)).astype(sinks.dtype)  # (8)
    by_query = q, dout, lse[..., None], delta
    blocks_heads = layout.num_blocks, layout.queries, num_kv_heads
    rows, douts, lse, delta = (query_rows(array, *blocks_heads) for array in by_query)
    lse, delta = jnp.swapaxes(lse, -1, -2), jnp.swapaxes(delta, -1, -2)
    keys, values = (key_rows(array, layout.left, layout.right) for array in (k, v))
    keys_t = _columns(k, layout)
    mask = _masks(band, layout, q.shape[2] // num_kv_heads)

    def step(edge, state, tile):
        block, start = tile[0], tile[1]
        dq, dk, dv = state
        q_i, dout_i = _at(rows, block), _at(douts, block)
        s = scores(cut(keys, start, layout.keys), q_i, scale, softcap)
        shown = _hide(s, mask(block, start, edge), jnp.finfo(wide).min)
        p = jnp.exp(shown - _at(lse, block))  # (5)
        dp = dot("bkch,bkrh->bkcr", cut(values, start, layout.keys), dout_i)
        ds = p * (dp - _at(delta, block))  # (6)
        if softcap is not None:
            ds = ds * (1 - jnp.square(s / softcap))
        if scale != 1:
            ds = ds * scale
        dv = add(dv, start, dot("bkcr,bkrh->bkch", p, dout_i))  # (7)
        dk = add(dk, start, dot("bkcr,bkrh->bkch", ds, q_i))
        dq_i = dot("bkhc,bkcr->bkhr", cut(keys_t, start, layout.keys, 3), ds)
        dq = _put(dq, block, _at(dq, block) + dq_i)
        return (dq, dk, dv), None

    *outer, count, head_dim = rows.shape
    state = (
        jnp.zeros((*outer, head_dim, count), wide),
        jnp.zeros(keys.shape, wide),
        jnp.zeros(values.shape, wide),
    )
    dq, dk, dv = _walk(step, state, layout, q)
    dq = rearrange(dq, "i b k h (c g) -> b (i c) (k g) h", c=layout.queries)[:, : q.shape[1]]
    dk, dv = (
        rearrange(array[:, :, layout.left :][:, :, : k.shape[1]], "b k s h -> b s k h")
        for array in (dk, dv)
    )
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dsinks, None


_attend.defvjp(_forward, _backward)


# ---------------------------------------------------------------------------- pieces


def _walk(step, state, layout, q):
    """Both lists of tiles, those at an edge first: after them every m is finite.

    The lists are made to depend on q. Masks depend on tiles and segments alone, and whatever does
    not depend on parameters is lifted out of rematerialised layers and kept for their backward: the
    masks of all tiles at once, 0.9 GiB in a global layer of 32 heads at 8192 tokens.
    """
    edge, inner, _ = jax.lax.optimization_barrier((layout.edge, layout.inner, q[0, 0, 0, 0]))
    for at_edge, tiles in ((True, edge), (False, inner)):
        if len(tiles):
            state, _ = jax.lax.scan(functools.partial(step, at_edge), state, tiles)
    return state


def _columns(array, layout):
    """[b, s, k, h] as [b, k, h, padded s]: a left operand that products need not transpose."""
    array = jnp.pad(array, ((0, 0), (layout.left, layout.right), (0, 0), (0, 0)))
    return rearrange(array, "b s k h -> b k h s")


def _hide(s, seen, lowest):
    return s if seen is None else jnp.where(seen, s, lowest)


def _at(array, block):
    return jax.lax.dynamic_index_in_dim(array, block, axis=0, keepdims=False)


def _put(array, block, new):
    return jax.lax.dynamic_update_index_in_dim(array, new, block, axis=0)


def _masks(band, layout, group):
    """A function (block, start, edge) -> one tile's mask, bool [b or 1, 1, keys, rows].

    Inside the band (`edge` false) only segments can hide a pair: None where there are none.
    """

    def of_queries(array):
        rows = query_rows(array[:, :, None, None], layout.num_blocks, layout.queries, 1)
        blocks = rows[:, :, 0, :, 0]
        return jnp.repeat(blocks, group, axis=-1)[:, :, None, None, :]

    def of_keys(array):
        pad = ((0, 0), (layout.left, layout.right))
        return jnp.pad(array, pad, constant_values=-1)[:, None, :, None]

    query = band.offset + np.repeat(np.arange(layout.queries), group)[None, None, None, :]
    key = np.arange(layout.keys)[None, None, :, None] - layout.left
    if not band.is_regular:
        q_positions, kv_positions = of_queries(band.q_positions), of_keys(band.kv_positions)
    if band.q_segments is not None:
        q_segments, kv_segments = of_queries(band.q_segments), of_keys(band.kv_segments)

    def mask(block, start, edge):
        segments = ()
        if band.q_segments is not None:
            segments = _at(q_segments, block), cut(kv_segments, start, layout.keys)
        if not edge:
            return same_segment(*segments) if segments else None
        if band.is_regular:
            positions = block * layout.queries + query, start + key
        else:
            positions = _at(q_positions, block), cut(kv_positions, start, layout.keys)
        return visible(*positions, band.window_size, *segments)

    return mask

"""Sparse attention: tiles of queries against the keys near them and the few blocks far away.

The keys of a tile of queries are those that its queries can see (`sparse_band.py`):

    near   one slice of the row, which ends with the tile and reaches back over the window
    far    pieces of the tile's deep document: its global blocks, and random ones

Only a query at position `window_size` of its document or behind sees further than its window. A
tile is no longer than that, so a document that begins inside it has no such query: all far keys of
a tile are of the document of its first token, however many others follow. Pieces are found from
where that document begins, so packed rows need no other layout, and nothing is ever dropped. In
packed rows the tile's deep queries may lie in several blocks, each with random blocks of its own; a
row that is one document has tiles that are blocks.

Work and memory are O(t·(near + far)), whatever the documents. All keys of a query are in one tile,
so a tile is a plain softmax and its gradient autodiff's; gradients of keys and values are added
where the tile's keys stand (autodiff of the whole walk would add an array of the row's length for
every tile: O(t²)). Kept for the backward: q, k and v.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from hybrid import axes
from hybrid.axes import Key, Query, Segments, Value
from hybrid.ops.attention import cached
from hybrid.ops.attention.request import ROWS, head_names
from hybrid.ops.attention.slots import Slots
from hybrid.ops.attention.tiles import add, cut, key_rows, query_rows, scores, sink_rows
from hybrid.ops.dense import dot
from hybrid.ops.dispatch import per_device
from hybrid.ops.sparse_band import NONE, SparseBand

TILE = 128  # queries at most, where no random blocks are drawn
_ALL = -2  # the block of queries that a global piece is for


def attend(
    q: Query,
    k: Key,
    v: Value,
    band: SparseBand,
    segments: Segments | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> Query:
    """Softmax attention over the keys that `band` lets each query of a row see.

    Args:
      q: [b, t, n, h].  k, v: [b, t, k, h]; query head i reads KV head i // (n / k).
      segments: int32 [b, t], documents that follow each other; None: a row is one document.
      scale, softcap, sinks: as of `hybrid.ops.attention.attend`.
    Returns: [b, t, n, h] in q's dtype; scores and softmax in at least float32.
    """
    layout = _Layout.of(band, q.shape[1], segments is not None)
    starts = jnp.zeros(q.shape[:2], jnp.int32) if segments is None else document_starts(segments)

    def call(q, k, v, sinks, starts):
        return _attend(q, k, v, sinks, starts, band, layout, scale, softcap)

    heads, kv_heads = head_names(k.shape[2])
    q_names, kv_names = ((*ROWS, name, axes.HEAD_DIM) for name in (heads, kv_heads))
    names = (q_names, kv_names, kv_names, None if sinks is None else (heads,), ROWS)
    return per_device(call, (q, k, v, sinks, starts), names)


def document_starts(segments: Segments) -> jax.Array:
    """int32 [b, t]: where in its row the document of each token begins."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    is_first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.cummax(jnp.where(is_first, index, 0), axis=1)


def attend_cached(
    q: Query,
    slots: Slots,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    band: SparseBand,
    **options: Any,
) -> Query:
    """The same of new queries and the slots of a cache, `options` as of `attend_cached` there.

    Every slot is read and those unseen are masked: for caches that keep little more than is seen.
    """
    return cached.attend(q, slots, q_positions, kv_positions, sees=band.visible, **options)


def attend_blocks(
    q: Query, slots: Slots, q_positions: jax.Array, band: SparseBand, **options: Any
) -> Query:
    """The same of one query a row, of whose blocks alone the slots are read.

    Args:
      q: [b, 1, n, h].  slots: position p in slot p, with keys of their own.
    """
    blocks = band.blocks_read(q_positions[:, 0] // band.block_size)[:, :, None]
    inside = jnp.arange(band.block_size, dtype=jnp.int32)[None, None]
    positions = jnp.where(blocks == NONE, NONE, blocks * band.block_size + inside)
    positions = positions.reshape(len(q), -1)
    at = jnp.clip(positions, 0, slots.num_slots - 1)

    def read(stacked):
        """[1, b, k, positions, ...] of [layers, b, k, s, ...]."""
        rows = jax.vmap(lambda row, at: row[slots.row, :, at], (1, 0))(stacked, at)
        return jnp.moveaxis(rows, 1, 2)[None]

    few = Slots(jax.tree.map(read, slots.values), keys=jax.tree.map(read, slots.keys))
    return cached.attend(q, few, q_positions, positions, **options)


class _Layout(NamedTuple):
    """How a row is cut.

    Attributes:
      queries: of a tile.  num_tiles: of the row.
      near: keys of the slice that ends with a tile.
      piece: keys of a far piece.  num_pieces: of those at the document's first tokens.
      num_owners: blocks in which a tile's deep queries lie, where random blocks are drawn.
      left, right: padding of the keys.
    """

    queries: int
    num_tiles: int
    near: int
    piece: int
    num_pieces: int
    num_owners: int
    left: int
    right: int

    @classmethod
    def of(cls, band: SparseBand, length: int, is_packed: bool) -> "_Layout":
        block, is_random = band.block_size, band.num_random_blocks > 0
        queries = min(block if is_random else min(TILE, band.window_size), length)
        num_tiles = -(-length // queries)
        # The window begins with a block: where tiles do not, up to a block less one token earlier.
        slack = 0 if not is_packed and queries % block == 0 else block - 1
        near = min(queries + band.window_size - block + slack, num_tiles * queries)
        if length <= band.window_size:  # all see all earlier tokens
            return cls(queries, num_tiles, near, 0, 0, 0, near - queries, 0)
        piece = block if is_random else block * band.num_global_blocks
        num_pieces = band.num_global_blocks if is_random else min(band.num_global_blocks, 1)
        num_owners = (2 if is_packed and block > 1 else 1) if is_random else 0
        right = num_tiles * queries - length + piece
        return cls(queries, num_tiles, near, piece, num_pieces, num_owners, near - queries, right)


# --- The walk over tiles ---------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _attend(q, k, v, sinks, starts, band, layout, scale, softcap):
    keys, values = (key_rows(array, layout.left, layout.right) for array in (k, v))
    rows = query_rows(q, layout.num_tiles, layout.queries, k.shape[2])
    tile_of = _tiles(starts, q, band, layout)
    sinks = None if sinks is None else sink_rows(sinks, layout.queries, k.shape[2])

    def step(_, tile):
        index, rows = tile
        near, pieces, seen = tile_of(index)
        both = (_gathered(array, near, pieces, layout) for array in (keys, values))
        return None, _softmax(rows, *both, sinks, seen, scale, softcap)

    _, out = jax.lax.scan(step, None, (jnp.arange(layout.num_tiles), rows))
    out = rearrange(out, "i b k h (c g) -> b (i c) (k g) h", c=layout.queries)[:, : q.shape[1]]
    return checkpoint_name(out.astype(q.dtype), "attention_out")


def _forward(q, k, v, sinks, starts, *options):
    return _attend(q, k, v, sinks, starts, *options), (q, k, v, sinks, starts)


def _backward(band, layout, scale, softcap, kept, dout):
    q, k, v, sinks, starts = kept
    num_kv_heads = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    keys, values = (key_rows(array, layout.left, layout.right) for array in (k, v))
    rows, douts = (
        query_rows(array, layout.num_tiles, layout.queries, num_kv_heads) for array in (q, dout)
    )
    tile_of = _tiles(starts, q, band, layout)

    def step(sums, tile):
        dk, dv, dsinks = sums
        index, rows, dout = tile
        near, pieces, seen = tile_of(index)
        both = (_gathered(array, near, pieces, layout) for array in (keys, values))

        def function(rows, keys, values, sinks):
            sinks = None if sinks is None else sink_rows(sinks, layout.queries, num_kv_heads)
            return _softmax(rows, keys, values, sinks, seen, scale, softcap)

        out, pull = jax.vjp(function, rows, *both, sinks)
        dq, dk_tile, dv_tile, dsinks_tile = pull(jnp.swapaxes(dout, -1, -2).astype(out.dtype))
        dk, dv = (
            _scattered(array, near, pieces, more, layout)
            for array, more in ((dk, dk_tile), (dv, dv_tile))
        )
        return (dk, dv, None if sinks is None else dsinks + dsinks_tile), dq

    zeros = [jnp.zeros(array.shape, wide) for array in (keys, values)]
    sums = (*zeros, None if sinks is None else jnp.zeros_like(sinks))
    (dk, dv, dsinks), dq = jax.lax.scan(step, sums, (jnp.arange(layout.num_tiles), rows, douts))
    dq = rearrange(dq, "i b k (c g) h -> b (i c) (k g) h", c=layout.queries)[:, : q.shape[1]]
    dk, dv = (
        rearrange(array[:, :, layout.left :][:, :, : k.shape[1]], "b k s h -> b s k h")
        for array in (dk, dv)
    )
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dsinks, None


_attend.defvjp(_forward, _backward)


def _softmax(rows, keys, values, sinks, seen, scale, softcap):
    """[b, k, h, rows], what a tile of rows [b, k, rows, h] reads of its keys [b, k, keys, h].

    sinks: [1, k, 1, rows] or None.  seen: bool [b, 1, keys, queries, 1].
    """
    s = scores(keys, rows, scale, softcap)
    by_query = (*s.shape[:3], seen.shape[3], -1)
    s = jnp.where(seen, s.reshape(by_query), jnp.finfo(s.dtype).min).reshape(s.shape)
    peak = jnp.max(s, axis=2, keepdims=True)
    if sinks is not None:
        sinks = sinks.astype(s.dtype)
        peak = jnp.maximum(peak, sinks)
    peak = jax.lax.stop_gradient(peak)
    p = jnp.exp(s - peak)
    total = jnp.sum(p, axis=2, keepdims=True)
    total = total if sinks is None else total + jnp.exp(sinks - peak)
    return dot("bkch,bkcr->bkhr", values, p) / total


# --- The keys of a tile ----------------------------------------------------------------------


def _tiles(starts, q, band, layout):
    """A function of a tile's index -> where its near slice begins, its pieces [b, pieces], and
    who sees whom, bool [b, 1, keys, queries, 1].

    It is made to depend on q: what depends on documents alone would be lifted out of a
    rematerialised layer and kept for its backward, the masks of all tiles at once.
    """
    starts, _ = jax.lax.optimization_barrier((starts, q[0, 0, 0, 0]))
    pad = layout.num_tiles * layout.queries - starts.shape[1]
    starts = jnp.pad(starts, ((0, 0), (layout.left, pad)), constant_values=-1)
    blocks = (jnp.arange(starts.shape[1]) - layout.left)[None] - starts
    blocks = blocks // band.block_size

    def tile(index):
        near = index * layout.queries  # as padded keys are counted
        first = near + layout.left
        of_keys = [cut(array, near, layout.near, 1)[:, :, None] for array in (starts, blocks)]
        of_queries = [cut(array, first, layout.queries, 1)[:, None] for array in (starts, blocks)]
        seen = [_seen_near(*of_keys, *of_queries, band, layout)]
        pieces = jnp.zeros((len(starts), 0), jnp.int32)
        if layout.piece:
            positions, owners = _pieces(of_queries[1][:, 0, 0], band, layout)
            pieces = starts[:, first][:, None] + layout.left + jnp.maximum(positions, 0)
            seen.append(_seen_far(positions, owners, *of_queries, band, layout))
        return near, pieces, jnp.concatenate(seen, axis=1)[:, None, :, :, None]

    return tile


def _seen_near(key_starts, key_blocks, starts, blocks, band, layout):
    """bool [b, near, queries]: earlier keys of the query's document that its window reaches."""
    index = np.arange(layout.near)[:, None] - (layout.near - layout.queries)
    is_earlier = (index <= np.arange(layout.queries)[None, :])[None]
    return is_earlier & (key_starts == starts) & (blocks - key_blocks < band.window_blocks)


def _pieces(block, band, layout):
    """int32 [b, pieces] twice: the position in the deep document that each piece begins at (NONE:
    no such piece), and the block of queries that it is for.

    block: int32 [b], of the tile's first query.
    """
    shape = (len(block), layout.num_pieces)
    first = layout.piece * jnp.arange(layout.num_pieces, dtype=jnp.int32)[None]
    owners = block[:, None] + jnp.arange(layout.num_owners, dtype=jnp.int32)[None]
    drawn = band.drawn(owners)
    drawn = jnp.where(drawn == NONE, NONE, drawn * band.block_size)
    owners = jnp.broadcast_to(owners[..., None], drawn.shape)
    all_owners = jnp.full(shape, _ALL, jnp.int32)
    return (
        jnp.concatenate([jnp.broadcast_to(first, shape), drawn.reshape(len(block), -1)], axis=1),
        jnp.concatenate([all_owners, owners.reshape(len(block), -1)], axis=1),
    )


def _seen_far(positions, owners, starts, blocks, band, layout):
    """bool [b, far, queries]: keys of the pieces before the window, for queries that they are for.

    The queries are those of the tile's deep document: that of its first one.
    """
    keys = positions[..., None] + jnp.arange(layout.piece, dtype=jnp.int32)[None, None]
    is_before = blocks - (keys // band.block_size).reshape(len(keys), -1, 1) >= band.window_blocks
    is_for = (owners[..., None] == _ALL) | (owners[..., None] == blocks)
    is_for &= (positions != NONE)[..., None] & (starts == starts[:, :, :1])
    return is_before & jnp.repeat(is_for, layout.piece, axis=1)


def _gathered(array, near, pieces, layout):
    """The near and far keys of a tile, [b, k, keys, h] of [b, k, s, h]."""
    parts = [cut(array, near, layout.near)]
    if layout.piece:
        one = functools.partial(cut, size=layout.piece, axis=1)
        far = jax.vmap(jax.vmap(one, (None, 0)))(array, pieces)
        parts.append(rearrange(far, "b i k c h -> b k (i c) h"))
    return jnp.concatenate(parts, axis=2)


def _scattered(array, near, pieces, more, layout):
    """The array with the gradients of what `_gathered` took of it added."""
    array = add(array, near, more[:, :, : layout.near])
    one = jax.vmap(functools.partial(add, axis=1))
    for number in range(pieces.shape[1]):
        far = cut(more, layout.near + number * layout.piece, layout.piece)
        array = one(array, pieces[:, number], far)
    return array

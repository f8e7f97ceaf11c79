"""Kernels for windows that fit in fast memory: a block of queries meets all its keys at once.

Queries go in blocks of c; block i needs the keys of its own tokens and of the `halo` before them
(window_size − 1, in whole blocks), which come as one piece:

    keys of block i      i·c − halo … i·c + c − 1, counted from the token of the first query

So a grid step reads what it needs, once, and no state is carried from step to step. In a block,
rows go in pieces, and a piece meets just the keys of its own windows: with 64 queries a piece and a
window of 1024, 1088 keys.

The backward is one walk over the same blocks. Its gradients of keys and values gather in a buffer
of halo + c tokens, which moves by c from block to block; what leaves it on the left is complete.
Each score is formed once, five products in all, and nothing is summed outside the kernel.
"""

import dataclasses
import functools
import itertools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid.ops.attention.pallas import LANES
from hybrid.ops.attention.pallas.tile import (
    Scoring,
    call,
    column,
    dot,
    each_piece,
    finish,
    online,
    start,
)

MOST_BYTES = 2 * 2**20  # of a window's keys, beyond which `whole.py` is used
_MOST_ROWS = 1024  # of a block
_MOST_KEYS = 1152  # of a tile
_ALIGNED = 16  # what slices of keys start at: rows of a register, two bfloat16 each


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a call is cut.

    Attributes:
      reach: keys before its own that a query sees.
      queries: of a block.  halo: keys before a block's own.  num_blocks: of queries.
      piece: queries of a piece of a block.
    """

    scoring: Scoring
    reach: int
    queries: int
    halo: int
    num_blocks: int
    piece: int

    @classmethod
    def of(cls, scoring: Scoring, query_length: int) -> "Layout":
        assert scoring.window_size is not None, "whole.py serves calls without a window"
        window = scoring.window_size
        is_small = min(window, query_length) <= 256 or 2 * LANES * scoring.group > _MOST_ROWS
        queries = LANES if is_small else 2 * LANES
        halo = -(-(window - 1) // queries) * queries
        # About a sixteenth of the window, so that pieces meet few keys that they don't see.
        piece = scoring.piece(queries, max(16, window // 16))
        return cls(scoring, window - 1, queries, halo, -(-query_length // queries), piece)

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self.queries * self.scoring.group

    @property
    def key_start(self) -> int:
        """The first key that is read, as keys are counted; negative ones are padding."""
        return self.scoring.offset - self.halo

    @property
    def num_keys(self) -> int:
        """Keys that are read, padding included."""
        return self.halo + self.num_blocks * self.queries

    def tiles(self) -> list[tuple[int, int]]:
        """(first key, number of keys) of the tiles of a block's first piece, within the block.

        Those of a piece that begins n queries later are n keys further on.
        """
        lowest = (self.halo - self.reach) // _ALIGNED * _ALIGNED
        units = (self.halo + self.piece - lowest) // _ALIGNED
        parts = -(-units * _ALIGNED // _MOST_KEYS)
        cuts = [lowest + _ALIGNED * (units * i // parts) for i in range(parts + 1)]
        return [(first, last - first) for first, last in itertools.pairwise(cuts)]

    def pairs(self) -> int:
        """Rows and keys that meet in a tile, of one KV head of one row of the batch."""
        return self.num_blocks * self.block_rows * sum(size for _, size in self.tiles())


def forward(layout: Layout, q, k, v, segments, sinks):
    """out [b, n, t, h] and lse [b, k, 1, rows].

    Args:
      q: [b, n, t, h].  k, v: [b, k, layout.num_keys, h].
      segments: int32 [b, 1, rows] and [b, 1, keys], or (None, None).
      sinks: [k, 1, rows of a piece], or None.
    """
    batch, heads, head_dim = k.shape[0], k.shape[1], k.shape[3]
    rows = layout.num_blocks * layout.block_rows
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def kernel(q, k, v, q_segments, kv_segments, sinks, out, lse, kv_column):
        def one(piece, tiles):
            q_rows = piece.read(q)
            sink = None if sinks is None else sinks[0]
            state = start(sink, len(q_rows), head_dim, wide)
            for keys, seen in tiles:
                s = layout.scoring.scores(k[0, 0, keys], q_rows)
                state = online(state, s, seen(), v[0, 0, keys])
            o, lse[0, 0, :, piece.rows] = finish(state)
            piece.write(out, o)

        _over_pieces(layout, pl.program_id(2), q_segments, kv_segments, kv_column, one)

    of_rows, of_lse, of_keys, *of_segments = _specs(layout, head_dim)
    sink_spec = pl.BlockSpec((1, 1, layout.scoring.group * layout.piece), lambda b, k, i: (k, 0, 0))
    return call(
        kernel,
        (q, k, v, *segments, sinks),
        grid=(batch, heads, layout.num_blocks),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, sink_spec],
        out_specs=[of_rows, of_lse],
        out_shapes=[(q.shape, q.dtype), ((batch, heads, 1, rows), wide)],
        scratch=[_column_shape(layout)],
        flops=2 * _product_flops(layout, q),
    )


def backward(layout: Layout, q, k, v, segments, dout, lse, delta):
    """dq [b, n, t, h], dk and dv [b, k, keys, h].

    Args:
      q, k, v, segments: as of `forward`.
      dout: [b, n, t, h].  lse, delta: [b, k, 1, rows].
    Returns: dk and dv have `layout.halo` keys more at the end, of no meaning.
    """
    batch, heads, head_dim = k.shape[0], k.shape[1], k.shape[3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    queries, halo, scoring = layout.queries, layout.halo, layout.scoring
    steps = layout.num_blocks + halo // queries

    def kernel(q, k, v, q_segments, kv_segments, dout, lse, delta, dq, dk, dv, *scratch):
        i, (dk_kept, dv_kept, kv_column) = pl.program_id(2), scratch
        kept = dk_kept, dv_kept

        @pl.when(i == 0)
        def _():
            for gradient in kept:
                gradient[...] = jnp.zeros(gradient.shape, wide)

        @pl.when(i > 0)
        def _():
            for gradient in kept:
                for at in range(0, halo, queries):
                    gradient[at : at + queries] = gradient[at + queries : at + 2 * queries]
                gradient[halo:] = jnp.zeros((queries, head_dim), wide)

        def one(piece, tiles):
            q_rows, dout_rows = piece.read(q), piece.read(dout)
            dq_rows = jnp.zeros((head_dim, len(q_rows)), wide)
            row = lse[0, 0, :, piece.rows], delta[0, 0, :, piece.rows]
            for keys, seen in tiles:
                s = scoring.scores(k[0, 0, keys], q_rows)
                p, ds = scoring.backward(s, seen(), *row, v[0, 0, keys], dout_rows)
                dv_kept[keys] += dot(p, dout_rows, (1, 0))  # (7)
                dk_kept[keys] += dot(ds, q_rows, (1, 0))
                dq_rows += dot(k[0, 0, keys], ds, (0, 0))
            piece.write(dq, dq_rows)

        @pl.when(i < layout.num_blocks)
        def _():
            _over_pieces(layout, i, q_segments, kv_segments, kv_column, one)

        dk[0, 0] = dk_kept[:queries].astype(dk.dtype)
        dv[0, 0] = dv_kept[:queries].astype(dv.dtype)

    of_rows, of_lse, of_keys, *of_segments = _specs(layout, head_dim)
    leaving = pl.BlockSpec((1, 1, queries, head_dim), lambda b, k, i: (b, k, i, 0))
    kept = ((halo + queries, head_dim), wide)
    shape = (batch, heads, steps * queries, head_dim)
    return call(
        kernel,
        (q, k, v, *segments, dout, lse, delta),
        grid=(batch, heads, steps),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, of_rows, of_lse, of_lse],
        out_specs=[of_rows, leaving, leaving],
        out_shapes=[(q.shape, q.dtype), (shape, k.dtype), (shape, v.dtype)],
        scratch=[kept, kept, _column_shape(layout)],
        flops=5 * _product_flops(layout, q),
    )


def _over_pieces(layout: Layout, block, q_segments, kv_segments, kv_column, do):
    """Calls `do` with each piece of a block and its tiles: (keys, a function that makes the mask).

    kv_column: memory for the segments of keys, as a column.
    """
    first = block * layout.queries + layout.key_start  # as keys are counted
    if kv_segments is not None:
        kv_column[...] = column(kv_segments[0])

    def one(piece):
        def mask(keys, at, size):
            ids = () if kv_segments is None else (q_segments[0, :, piece.rows], kv_column[keys])
            places = first + layout.halo + piece.first, layout.piece, first + at, size
            return layout.scoring.seen(*places, ids)

        tiles = []
        for start_key, size in layout.tiles():
            at = start_key + piece.first
            keys = pl.ds(pl.multiple_of(at, _ALIGNED), size)
            tiles.append((keys, functools.partial(mask, keys, at, size)))
        do(piece, tiles)

    each_piece(layout.queries, layout.piece, layout.scoring.group, one)


def _column_shape(layout: Layout):
    return (layout.halo + layout.queries, 1), jnp.int32


def _specs(layout: Layout, head_dim: int):
    """Blocks of queries, lse, keys, and the two segments; the last block is repeated."""
    last, size, group = layout.num_blocks - 1, layout.block_rows, layout.scoring.group
    span = layout.halo + layout.queries

    def block(i):
        return jnp.minimum(i, last)

    return (
        pl.BlockSpec((1, group, layout.queries, head_dim), lambda b, k, i: (b, k, block(i), 0)),
        pl.BlockSpec((1, 1, 1, size), lambda b, k, i: (b, k, 0, block(i))),
        pl.BlockSpec(
            tuple(map(pl.Element, (1, 1, span, head_dim))),
            lambda b, k, i: (b, k, block(i) * layout.queries, 0),
        ),
        pl.BlockSpec((1, 1, size), lambda b, k, i: (b, 0, block(i))),
        pl.BlockSpec(
            tuple(map(pl.Element, (1, 1, span))),
            lambda b, k, i: (b, 0, block(i) * layout.queries),
        ),
    )


def _product_flops(layout: Layout, q) -> int:
    """Of one product over all tiles."""
    heads = q.shape[1] // layout.scoring.group
    return 2 * q.shape[0] * heads * layout.pairs() * q.shape[3]

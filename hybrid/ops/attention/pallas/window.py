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
    over,
    start,
)

MOST_BYTES = 2 * 2**20  # of a window's keys, beyond which `whole.py` is used
_MOST_ROWS = 1024  # of a block
_PIECE_ROWS, _MOST_KEYS = 256, 1152  # of a tile: the compiler unrolls it, and takes time for that
_ALIGNED = 16  # what slices of keys start at: rows of a register, two bfloat16 each


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a call is cut.

    Attributes:
      reach: keys before its own that a query sees.
      queries: of a block.  halo: keys before a block's own.  num_blocks: of queries.
      rows: of a piece of a block.  span: keys that a piece meets.
    """

    scoring: Scoring
    reach: int
    queries: int
    halo: int
    num_blocks: int
    rows: int
    span: int

    @classmethod
    def of(cls, scoring: Scoring, query_length: int) -> "Layout":
        assert scoring.window_size is not None, "whole.py serves calls without a window"
        window, group = scoring.window_size, scoring.group
        is_small = min(window, query_length) <= 256 or 2 * LANES * group > _MOST_ROWS
        queries = LANES if is_small else 2 * LANES
        halo = -(-(window - 1) // queries) * queries
        num_blocks = -(-query_length // queries)
        # About a sixteenth of the window, so that pieces meet few keys that they don't see.
        most = max(LANES, min(_PIECE_ROWS, group * max(16, window // 16)))
        rows = max(n for n in range(LANES, most + 1, LANES) if queries * group % n == 0)
        layout = cls(scoring, window - 1, queries, halo, num_blocks, rows, 0)
        return dataclasses.replace(layout, span=max(map(layout._own_span, range(layout.pieces))))

    def _own_span(self, piece: int) -> int:
        first, last = (at // self.scoring.group for at in self._ends(piece))
        lowest = (first - self.reach) // _ALIGNED * _ALIGNED
        return -(-(last + 1 - lowest) // _ALIGNED) * _ALIGNED

    def _ends(self, piece: int) -> tuple[int, int]:
        return piece * self.rows, (piece + 1) * self.rows - 1

    @property
    def pieces(self) -> int:
        """Of a block."""
        return self.block_rows // self.rows

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

    def lowest(self, first_row):
        """The first key that the piece from `first_row` on meets, counted within the block."""
        own = self.halo + over(first_row, self.scoring.group)
        aligned = over(own - self.reach, _ALIGNED) * _ALIGNED
        return jnp.minimum(aligned, self.halo + self.queries - self.span)

    def tiles(self) -> list[tuple[int, int]]:
        """(first key, number of keys) of a piece's tiles, from its lowest key on."""
        units = self.span // _ALIGNED
        parts = -(-self.span // _MOST_KEYS)
        cuts = [_ALIGNED * (units * i // parts) for i in range(parts + 1)]
        return [(first, last - first) for first, last in itertools.pairwise(cuts)]

    def pairs(self) -> int:
        """Rows and keys that meet in a tile, of one KV head of one row of the batch."""
        return self.num_blocks * self.block_rows * self.span


def forward(layout: Layout, q, k, v, segments, sinks):
    """out [b, k, h, rows] and lse [b, k, 1, rows].

    Args:
      q: [b, k, rows, h].  k, v: [b, k, layout.num_keys, h].
      segments: int32 [b, 1, rows] and [b, 1, keys], or (None, None).
      sinks: [k, 1, rows of a block], or None.
    """
    batch, heads, rows, head_dim = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def kernel(q, k, v, q_segments, kv_segments, sinks, out, lse, kv_column):
        def piece(rows, tiles):
            sink = None if sinks is None else sinks[0, :, rows]
            state = start(sink, layout.rows, head_dim, wide)
            for keys, seen in tiles:
                s = layout.scoring.scores(k[0, 0, keys], q[0, 0, rows])
                state = online(state, s, seen(), v[0, 0, keys])
            o, lse[0, 0, :, rows] = finish(state)
            out[0, 0, :, rows] = o.astype(out.dtype)

        _over_pieces(layout, pl.program_id(2), q_segments, kv_segments, kv_column, piece)

    of_rows, of_columns, of_keys, *of_segments = _specs(layout, head_dim)
    sink_spec = pl.BlockSpec((1, 1, layout.block_rows), lambda b, k, i: (k, 0, 0))
    return call(
        kernel,
        (q, k, v, *segments, sinks),
        grid=(batch, heads, layout.num_blocks),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, sink_spec],
        out_specs=[of_columns(head_dim), of_columns(1)],
        out_shapes=[((batch, heads, head_dim, rows), q.dtype), ((batch, heads, 1, rows), wide)],
        scratch=[_column_shape(layout)],
        flops=2 * _product_flops(layout, q),
    )


def backward(layout: Layout, q, k, v, segments, dout, lse, delta):
    """dq [b, k, h, rows], dk and dv [b, k, keys, h].

    Args:
      q, k, v, segments: as of `forward`.
      dout: [b, k, rows, h].  lse, delta: [b, k, 1, rows].
    Returns: dk and dv have `layout.halo` keys more at the end, of no meaning.
    """
    batch, heads, rows, head_dim = q.shape
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

        def piece(rows, tiles):
            q_rows, dout_rows = q[0, 0, rows], dout[0, 0, rows]
            dq_rows = jnp.zeros((head_dim, layout.rows), wide)
            for keys, seen in tiles:
                key, row = k[0, 0, keys], (lse[0, 0, :, rows], delta[0, 0, :, rows])
                s = scoring.scores(key, q_rows)
                p, ds = scoring.backward(s, seen(), *row, v[0, 0, keys], dout_rows)
                dv_kept[keys] += dot(p, dout_rows, (1, 0))  # (7)
                dk_kept[keys] += dot(ds, q_rows, (1, 0))
                dq_rows += dot(key, ds, (0, 0))
            dq[0, 0, :, rows] = dq_rows.astype(dq.dtype)

        @pl.when(i < layout.num_blocks)
        def _():
            _over_pieces(layout, i, q_segments, kv_segments, kv_column, piece)

        dk[0, 0] = dk_kept[:queries].astype(dk.dtype)
        dv[0, 0] = dv_kept[:queries].astype(dv.dtype)

    of_rows, of_columns, of_keys, *of_segments = _specs(layout, head_dim)
    leaving = pl.BlockSpec((1, 1, queries, head_dim), lambda b, k, i: (b, k, i, 0))
    kept = ((halo + queries, head_dim), wide)
    shape = (batch, heads, steps * queries, head_dim)
    return call(
        kernel,
        (q, k, v, *segments, dout, lse, delta),
        grid=(batch, heads, steps),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, of_rows, of_columns(1), of_columns(1)],
        out_specs=[of_columns(head_dim), leaving, leaving],
        out_shapes=[((batch, heads, head_dim, rows), q.dtype), (shape, k.dtype), (shape, v.dtype)],
        scratch=[kept, kept, _column_shape(layout)],
        flops=5 * _product_flops(layout, q),
    )


def _over_pieces(layout: Layout, block, q_segments, kv_segments, kv_column, piece):
    """Calls `piece` with the rows and the tiles, (keys, mask), of each piece of a block.

    kv_column: memory for the segments of keys, as a column.
    """
    first = block * layout.queries + layout.key_start  # as keys are counted
    if kv_segments is not None:
        kv_column[...] = column(kv_segments[0])

    def one(first_row, rows):
        lowest = layout.lowest(first_row)

        def mask(keys, at, size):
            ids = () if kv_segments is None else (q_segments[0, :, rows], kv_column[keys])
            places = first + layout.halo, first_row, layout.rows, first + lowest + at, size
            return layout.scoring.seen(*places, ids)

        tiles = []
        for at, size in layout.tiles():
            keys = pl.ds(pl.multiple_of(lowest + at, _ALIGNED), size)
            tiles.append((keys, functools.partial(mask, keys, at, size)))
        piece(rows, tiles)

    each_piece(layout.block_rows, layout.rows, one)


def _column_shape(layout: Layout):
    return (layout.halo + layout.queries, 1), jnp.int32


def _specs(layout: Layout, head_dim: int):
    """Blocks of rows, columns of rows, keys, and the two segments; the last block is repeated."""
    last, size = layout.num_blocks - 1, layout.block_rows
    span = layout.halo + layout.queries

    def block(i):
        return jnp.minimum(i, last)

    def of_columns(height):
        return pl.BlockSpec((1, 1, height, size), lambda b, k, i: (b, k, 0, block(i)))

    return (
        pl.BlockSpec((1, 1, size, head_dim), lambda b, k, i: (b, k, block(i), 0)),
        of_columns,
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
    return 2 * q.shape[0] * q.shape[1] * layout.pairs() * q.shape[3]

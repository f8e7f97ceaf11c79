"""Kernels that walk blocks of keys: global layers, and windows too wide for `window.py`.

A block of queries is one row of the grid, and its blocks of keys are the steps along it, from the
first that a window reaches to the one that holds the last query's own token. Which they are is
arithmetic in the block's number, so there is no table of blocks to make, move or read. Rows near
the start have fewer blocks: the steps left over compute nothing and read nothing.

The backward is two walks, one along keys for dq and one along queries for dk and dv, each of which
forms the scores again: no partial sums of the length of a row leave the kernels.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from hybrid.ops.attention.pallas.tile import (
    LANES,
    Scoring,
    call,
    column,
    dot,
    finish,
    online,
    over,
    start,
)

_MOST_ROWS, _MOST_KEYS = 1024, 512  # of a tile


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a call is cut.

    Attributes:
      queries, keys: of a block.  num_blocks, num_key_blocks: of queries and of keys.
    """

    scoring: Scoring
    queries: int
    keys: int
    num_blocks: int
    num_key_blocks: int

    @classmethod
    def of(cls, scoring: Scoring, query_length: int) -> "Layout":
        keys = min(_MOST_KEYS, -(-(query_length + scoring.offset) // LANES) * LANES)
        wanted = max(LANES, _MOST_ROWS // scoring.group // LANES * LANES)
        queries = min(wanted, -(-query_length // LANES) * LANES)
        num_blocks = -(-query_length // queries)
        num_key_blocks = -(-(query_length + scoring.offset) // keys)
        return cls(scoring, queries, keys, num_blocks, num_key_blocks)

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self.queries * self.scoring.group

    @property
    def key_start(self) -> int:
        """The first key that is read."""
        return 0

    @property
    def num_keys(self) -> int:
        """Keys that are read, padding included."""
        return self.num_key_blocks * self.keys

    def keys_of(self, block, xp=jnp):
        """(first, last) block of keys that a block of queries sees; xp: numpy or jax.numpy."""
        first_query = block * self.queries + self.scoring.offset
        last = xp.minimum(over(first_query + self.queries - 1, self.keys), self.num_key_blocks - 1)
        if self.scoring.window_size is None:
            return 0 * last, last
        lowest = xp.maximum(first_query - self.scoring.window_size + 1, 0)
        return over(lowest, self.keys), last

    def queries_of(self, block, xp=jnp):
        """(first, last) block of queries that sees a block of keys; none where first > last."""
        first_key = block * self.keys - self.scoring.offset
        first = over(xp.maximum(first_key, 0), self.queries)
        last = 0 * block + self.num_blocks - 1
        if self.scoring.window_size is not None:
            farthest = first_key + self.keys - 1 + self.scoring.window_size - 1
            farthest = over(xp.maximum(farthest + self.queries, 0), self.queries) - 1
            last = xp.minimum(farthest, last)
        return first, last

    def is_inner(self, block, key_block):
        """Whether every query of one block is in reach of every key of the other."""
        first_query, first_key = block * self.queries + self.scoring.offset, key_block * self.keys
        inner = first_key + self.keys - 1 <= first_query
        if self.scoring.window_size is not None:
            inner &= first_query + self.queries - 1 - first_key < self.scoring.window_size
        return inner

    def pairs(self) -> int:
        """Rows and keys that meet in a tile, of one KV head of one row of the batch."""
        steps = _steps(self.keys_of, self.num_blocks)
        return int(steps.sum()) * self.block_rows * self.keys


def _steps(reach, num_blocks: int) -> np.ndarray:
    """How many steps each block takes along `keys_of` or `queries_of`."""
    first, last = reach(np.arange(num_blocks), np)
    return np.maximum(last - first + 1, 0)


def forward(layout: Layout, q, k, v, segments, sinks):
    """As of `window.py`."""
    batch, heads, rows, head_dim = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def kernel(q, k, v, q_segments, kv_segments, sinks, out, lse, *state):
        def begin():
            sink = None if sinks is None else sinks[0]
            fresh = start(sink, layout.block_rows, head_dim, wide)
            for ref, value in zip(state, fresh, strict=True):
                ref[...] = value

        def tile(seen):
            s = layout.scoring.scores(k[0, 0], q[0, 0])
            new = online([ref[...] for ref in state], s, seen, v[0, 0])
            for ref, value in zip(state, new, strict=True):
                ref[...] = value

        def end():
            o, lse[0, 0] = finish([ref[...] for ref in state])
            out[0, 0] = o.astype(out.dtype)

        _walk(layout, layout.keys_of, False, q_segments, kv_segments, begin, tile, end)

    of_rows, of_columns, of_keys, *of_segments = _specs(layout, head_dim, layout.keys_of, False)
    sink_spec = pl.BlockSpec((1, 1, layout.block_rows), lambda b, k, i, j: (k, 0, 0))
    row = ((1, layout.block_rows), wide)
    return call(
        kernel,
        (q, k, v, *segments, sinks),
        grid=(batch, heads, layout.num_blocks, _most_steps(layout.keys_of, layout.num_blocks)),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, sink_spec],
        out_specs=[of_columns(head_dim), of_columns(1)],
        out_shapes=[((batch, heads, head_dim, rows), q.dtype), ((batch, heads, 1, rows), wide)],
        scratch=[row, row, ((head_dim, layout.block_rows), wide)],
        flops=2 * _product_flops(layout, q),
    )


def backward(layout: Layout, q, k, v, segments, dout, lse, delta):
    """As of `window.py`."""
    operands = q, k, v, *segments, dout, lse, delta
    return _along_keys(layout, *operands), *_along_queries(layout, *operands)


def _along_keys(layout: Layout, *operands):
    """dq."""
    q = operands[0]
    batch, heads, rows, head_dim = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def kernel(q, k, v, q_segments, kv_segments, dout, lse, delta, dq, total):
        def begin():
            total[...] = jnp.zeros(total.shape, wide)

        def tile(seen):
            s = layout.scoring.scores(k[0, 0], q[0, 0])
            row = lse[0, 0], delta[0, 0]
            _, ds = layout.scoring.backward(s, seen, *row, v[0, 0], dout[0, 0])
            total[...] += dot(k[0, 0], ds, (0, 0))  # (7)

        def end():
            dq[0, 0] = total[...].astype(dq.dtype)

        _walk(layout, layout.keys_of, False, q_segments, kv_segments, begin, tile, end)

    of_rows, of_columns, of_keys, *of_segments = _specs(layout, head_dim, layout.keys_of, False)
    (dq,) = call(
        kernel,
        operands,
        grid=(batch, heads, layout.num_blocks, _most_steps(layout.keys_of, layout.num_blocks)),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, of_rows, of_columns(1), of_columns(1)],
        out_specs=[of_columns(head_dim)],
        out_shapes=[((batch, heads, head_dim, rows), q.dtype)],
        scratch=[((head_dim, layout.block_rows), wide)],
        flops=3 * _product_flops(layout, q),
    )
    return dq


def _along_queries(layout: Layout, *operands):
    """dk and dv."""
    q, k, v = operands[:3]
    batch, heads, _, head_dim = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def kernel(q, k, v, q_segments, kv_segments, dout, lse, delta, dk, dv, *totals):
        dk_total, dv_total = totals

        def begin():
            for total in totals:
                total[...] = jnp.zeros(total.shape, wide)

        def tile(seen):
            s = layout.scoring.scores(k[0, 0], q[0, 0])
            row = lse[0, 0], delta[0, 0]
            p, ds = layout.scoring.backward(s, seen, *row, v[0, 0], dout[0, 0])
            dv_total[...] += dot(p, dout[0, 0], (1, 0))  # (7)
            dk_total[...] += dot(ds, q[0, 0], (1, 0))

        def end():
            dk[0, 0] = dk_total[...].astype(dk.dtype)
            dv[0, 0] = dv_total[...].astype(dv.dtype)

        _walk(layout, layout.queries_of, True, q_segments, kv_segments, begin, tile, end)

    of_rows, of_columns, of_keys, *of_segments = _specs(layout, head_dim, layout.queries_of, True)
    shape, total = (batch, heads, layout.num_keys, head_dim), ((layout.keys, head_dim), wide)
    steps = _most_steps(layout.queries_of, layout.num_key_blocks)
    return call(
        kernel,
        operands,
        grid=(batch, heads, layout.num_key_blocks, steps),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, of_rows, of_columns(1), of_columns(1)],
        out_specs=[of_keys, of_keys],
        out_shapes=[(shape, k.dtype), (shape, v.dtype)],
        scratch=[total, total],
        flops=4 * _product_flops(layout, q),
    )


def _most_steps(reach, num_blocks: int) -> int:
    return max(1, int(_steps(reach, num_blocks).max()))


def _product_flops(layout: Layout, q) -> int:
    """Of one product over all tiles."""
    return 2 * q.shape[0] * q.shape[1] * layout.pairs() * q.shape[3]


def _walk(layout: Layout, reach, along_queries, q_segments, kv_segments, begin, tile, end):
    """One step of the grid: `tile` of a mask, or of None where all is seen."""
    outer, step = pl.program_id(2), pl.program_id(3)
    first, last = reach(outer)
    inner = first + step
    block, key_block = (inner, outer) if along_queries else (outer, inner)
    pl.when(step == 0)(begin)
    has_tile = inner <= last
    masked = has_tile
    if q_segments is None:
        is_inner = layout.is_inner(block, key_block)
        pl.when(has_tile & is_inner)(lambda: tile(None))
        masked = has_tile & ~is_inner

    @pl.when(masked)
    def _():
        segments = () if q_segments is None else (q_segments[0], column(kv_segments[0]))
        first_query = block * layout.queries + layout.scoring.offset
        places = first_query, 0, layout.block_rows, key_block * layout.keys, layout.keys
        tile(layout.scoring.seen(*places, segments))

    pl.when(step == pl.num_programs(3) - 1)(end)


def _specs(layout: Layout, head_dim: int, reach, along_queries: bool):
    """Blocks of rows, columns of rows, keys, and the two segments.

    A step without a tile names the block before it, which is not read again.
    """

    def at(outer, step):
        first, last = reach(outer)
        inner = jnp.maximum(jnp.minimum(first + step, last), 0)
        return (inner, outer) if along_queries else (outer, inner)

    def spec(shape, which, axis):
        def index(b, k, outer, step):
            places = [b, k if len(shape) == 4 else 0, 0, 0][: len(shape)]
            places[axis] = at(outer, step)[which]
            return tuple(places)

        return pl.BlockSpec(shape, index)

    rows, keys = layout.block_rows, layout.keys
    return (
        spec((1, 1, rows, head_dim), 0, 2),
        lambda height: spec((1, 1, height, rows), 0, 3),
        spec((1, 1, keys, head_dim), 1, 2),
        spec((1, 1, rows), 0, 2),
        spec((1, 1, keys), 1, 2),
    )

"""Kernels that walk blocks of keys: global layers, and windows too wide for `window.py`.

A block of queries is one row of the grid, and its blocks of keys are the steps along it, from the
first that a window reaches to the one that holds the last query's own token. Which they are is
arithmetic in the block's number, so there is no table of blocks to make, move or read. Rows near
the start have fewer blocks: the steps left over compute nothing and read nothing.

The backward walks blocks of queries behind each block of keys, and forms each score once. dk and dv
gather in fast memory; of dq, which all blocks of keys add to, a block comes from main memory and
goes back while its neighbours are computed (`sums.py`): no partial sums are left to add up.

Of a row split over devices (`context.py`), a device has queries of two chunks, and keys stand in
the stream's order. Blocks of keys are walked in the row's order all the same: `key_block` says
where each is found (`SplitLayout`), and the device's number is a scalar that index maps read.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hybrid.ops.attention import context
from hybrid.ops.attention.pallas import LANES
from hybrid.ops.attention.pallas.sums import Sums
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

_MOST_ROWS, _MOST_KEYS = 1024, 512  # of a block


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
    def piece(self) -> int:
        """Queries of a piece of a block; a tile is a piece against a block of keys."""
        return self.scoring.piece(self.queries, self.queries)

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

    def first_query(self, block, part, xp=jnp):
        """The place in the row, as keys are counted, of a block's first query."""
        del part, xp
        return block * self.queries + self.scoring.offset

    def key_block(self, block):
        """Where the row's block of keys is found among the keys."""
        return block

    def keys_of(self, block, part, xp=jnp):
        """(first, last) block of keys that a block of queries sees; xp: numpy or jax.numpy."""
        first_query = self.first_query(block, part, xp)
        last = xp.minimum(over(first_query + self.queries - 1, self.keys), self.num_key_blocks - 1)
        if self.scoring.window_size is None:
            return 0 * last, last
        lowest = xp.maximum(first_query - self.scoring.window_size + 1, 0)
        return over(lowest, self.keys), last

    def queries_of(self, block, part, xp=jnp):
        """(first, last) block of queries that sees a block of keys; none where first > last."""
        del part
        first_key = block * self.keys - self.scoring.offset
        first = over(xp.maximum(first_key, 0), self.queries)
        last = 0 * block + self.num_blocks - 1
        if self.scoring.window_size is not None:
            farthest = first_key + self.keys - 1 + self.scoring.window_size - 1
            farthest = over(xp.maximum(farthest + self.queries, 0), self.queries) - 1
            last = xp.minimum(farthest, last)
        return first, last

    def is_inner(self, first_query, first_key):
        """Whether every query of one block is in reach of every key of the other."""
        inner = first_key + self.keys - 1 <= first_query
        if self.scoring.window_size is not None:
            inner &= first_query + self.queries - 1 - first_key < self.scoring.window_size
        return inner

    def pairs(self) -> int:
        """Rows and keys that meet in a tile, of one KV head of one row of the batch."""
        steps = _steps(self.keys_of, self.num_blocks)
        return int(steps.sum()) * self.block_rows * self.keys


@dataclasses.dataclass(frozen=True)
class SplitLayout(Layout):
    """Of a row split over `num_parts` devices; `part` is a device's number.

    Attributes:
      chunk: tokens; a device has chunks `part` and 2 · num_parts - 1 - part of the row.
    """

    num_parts: int
    chunk: int

    @classmethod
    def of_part(cls, scoring: Scoring, num_parts: int, chunk: int) -> "SplitLayout":
        """The layout of calls without a window; `chunk` is a multiple of LANES."""
        wanted = max(LANES, _MOST_ROWS // scoring.group // LANES * LANES)
        queries, keys = (_divisor(chunk, most) for most in (wanted, _MOST_KEYS))
        blocks = 2 * chunk // queries, 2 * num_parts * chunk // keys
        return cls(scoring, queries, keys, *blocks, num_parts, chunk)

    def _starts(self, part):
        """The places of the device's two chunks."""
        return part * self.chunk, (2 * self.num_parts - 1 - part) * self.chunk

    def first_query(self, block, part, xp=jnp):
        """As of any layout."""
        half, (first, second) = self.num_blocks // 2, self._starts(part)
        within = block * self.queries
        return xp.where(block < half, first + within, second - self.chunk + within)

    def key_block(self, block):
        """As of any layout; a chunk's place is `context.place`."""
        blocks = self.chunk // self.keys
        chunk = over(block, blocks)
        return context.place(chunk, self.num_parts) * blocks + block - chunk * blocks

    def queries_of(self, block, part, xp=jnp):
        """As of any layout: chunks before the key's see nothing of it, those behind all."""
        first = 0 * block
        for chunk_start in self._starts(part):
            within = over(xp.maximum(block * self.keys - chunk_start, 0), self.queries)
            first = first + xp.minimum(within, self.num_blocks // 2)
        return first, 0 * block + self.num_blocks - 1


def _divisor(size: int, most: int) -> int:
    """The largest multiple of LANES up to `most` that divides `size`."""
    return max(n for n in range(LANES, most + 1, LANES) if size % n == 0)


def _steps(reach, num_blocks: int) -> np.ndarray:
    """How many steps each block takes along `keys_of` or `queries_of`; the first device's if split.

    Its second chunk is the row's last, so no device has a block of more.
    """
    first, last = reach(np.arange(num_blocks), 0, np)
    return np.maximum(last - first + 1, 0)


def forward(layout: Layout, q, k, v, segments, sinks, part):
    """As of `window.py`; part: int32 [1], the device's number where a row is split."""
    batch, heads, head_dim = k.shape[0], k.shape[1], k.shape[3]
    wide, rows = jnp.promote_types(q.dtype, jnp.float32), layout.num_blocks * layout.block_rows
    piece_rows = layout.scoring.group * layout.piece

    def kernel(part, q, k, v, q_segments, kv_segments, sinks, out, lse, *state):
        def begin(piece):
            sink = None if sinks is None else sinks[0]
            put(piece, start(sink, piece_rows, head_dim, wide))

        def tile(piece, seen):
            s = layout.scoring.scores(k[0, 0], piece.read(q))
            put(piece, online([ref[:, piece.rows] for ref in state], s, seen, v[0, 0]))

        def put(piece, values):
            for ref, value in zip(state, values, strict=True):
                ref[:, piece.rows] = value

        def end(piece):
            o, lse[0, 0, :, piece.rows] = finish([ref[:, piece.rows] for ref in state])
            piece.write(out, o)

        each = _each_piece(layout)
        pl.when(pl.program_id(3) == 0)(lambda: each(begin))
        _walk(layout, part, False, (q_segments, kv_segments), tile)
        pl.when(pl.program_id(3) == pl.num_programs(3) - 1)(lambda: each(end))

    of_rows, of_lse, of_keys, *of_segments = _specs(layout, head_dim, False)
    sink_spec = pl.BlockSpec((1, 1, piece_rows), lambda b, k, *_: (k, 0, 0))
    row = ((1, layout.block_rows), wide)
    return call(
        kernel,
        (q, k, v, *segments, sinks),
        grid=(batch, heads, layout.num_blocks, _most_steps(layout.keys_of, layout.num_blocks)),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, sink_spec],
        out_specs=[of_rows, of_lse],
        out_shapes=[(q.shape, q.dtype), ((batch, heads, 1, rows), wide)],
        scratch=[row, row, ((head_dim, layout.block_rows), wide)],
        scalars=[part],
        flops=2 * _product_flops(layout, q),
    )


def backward(layout: Layout, q, k, v, segments, dout, lse, delta, part):
    """As of `window.py`, dq in at least float32; part: as of `forward`."""
    batch, heads, head_dim = k.shape[0], k.shape[1], k.shape[3]
    wide, group = jnp.promote_types(q.dtype, jnp.float32), layout.scoring.group

    def kernel(part, q, k, v, q_segments, kv_segments, dout, lse, delta, dq, dk, dv, *scratch):
        dk_total, dv_total, *for_sums = scratch
        row, kv_head, key_block, step = (pl.program_id(axis) for axis in range(4))
        first, last = layout.queries_of(key_block, part[0])
        sums = Sums(
            *(dq, row, kv_head, *for_sums),
            group=group,
            queries=layout.queries,
            is_new=lambda block: layout.keys_of(block, part[0])[0] == key_block,
        )

        @pl.when(step == 0)
        def _():
            for total in (dk_total, dv_total):
                total[...] = jnp.zeros(total.shape, wide)

        def tile(piece, seen):
            q_rows, dout_rows = piece.read(q), piece.read(dout)
            s = layout.scoring.scores(k[0, 0], q_rows)
            of_rows = lse[0, 0, :, piece.rows], delta[0, 0, :, piece.rows]
            p, ds = layout.scoring.backward(s, seen, *of_rows, v[0, 0], dout_rows)
            dv_total[...] += dot(p, dout_rows, (1, 0))  # (7)
            dk_total[...] += dot(ds, q_rows, (1, 0))
            sums.add(step, piece, dot(k[0, 0], ds, (0, 0)))

        sums.before(step, first, last)
        _walk(layout, part, True, (q_segments, kv_segments), tile)
        sums.after(step, first, last)

        @pl.when(step == pl.num_programs(3) - 1)
        def _():
            dk[0, 0] = dk_total[...].astype(dk.dtype)
            dv[0, 0] = dv_total[...].astype(dv.dtype)

    of_rows, of_lse, of_keys, *of_segments = _specs(layout, head_dim, True)
    shape, total = (batch, heads, layout.num_keys, head_dim), ((layout.keys, head_dim), wide)
    steps = _most_steps(layout.queries_of, layout.num_key_blocks)
    return call(
        kernel,
        (q, k, v, *segments, dout, lse, delta),
        grid=(batch, heads, layout.num_key_blocks, steps),
        in_specs=[of_rows, of_keys, of_keys, *of_segments, of_rows, of_lse, of_lse],
        out_specs=[pl.BlockSpec(memory_space=pl.ANY), of_keys, of_keys],
        out_shapes=[(q.shape, wide), (shape, k.dtype), (shape, v.dtype)],
        scratch=[
            total,
            total,
            ((2, group, layout.queries, head_dim), wide),
            pltpu.SemaphoreType.DMA((2, 2)),
        ],
        scalars=[part],
        num_in_order=2,
        flops=5 * _product_flops(layout, q),
    )


def _most_steps(reach, num_blocks: int) -> int:
    return max(1, int(_steps(reach, num_blocks).max()))


def _product_flops(layout: Layout, q) -> int:
    """Of one product over all tiles."""
    heads = q.shape[1] // layout.scoring.group
    return 2 * q.shape[0] * heads * layout.pairs() * q.shape[3]


def _each_piece(layout: Layout):
    return functools.partial(each_piece, layout.queries, layout.piece, layout.scoring.group)


def _walk(layout: Layout, part, along_queries: bool, segments, tile):
    """One step of the grid: `tile` of each piece and its mask, None where all is seen."""
    outer, step = pl.program_id(2), pl.program_id(3)
    reach = layout.queries_of if along_queries else layout.keys_of
    first, last = reach(outer, part[0])
    inner = first + step
    block, key_block = (inner, outer) if along_queries else (outer, inner)
    first_query, first_key = layout.first_query(block, part[0]), key_block * layout.keys
    q_segments, kv_segments = segments
    each = _each_piece(layout)
    masked = has_tile = inner <= last
    if q_segments is None:
        is_inner = layout.is_inner(first_query, first_key)
        pl.when(has_tile & is_inner)(lambda: each(lambda piece: tile(piece, None)))
        masked = has_tile & ~is_inner

    @pl.when(masked)
    def _():
        of_keys = None if kv_segments is None else column(kv_segments[0])

        def one(piece):
            ids = () if of_keys is None else (q_segments[0, :, piece.rows], of_keys)
            places = first_query + piece.first, layout.piece, first_key, layout.keys
            tile(piece, layout.scoring.seen(*places, ids))

        each(one)


def _specs(layout: Layout, head_dim: int, along_queries: bool):
    """Blocks of queries, lse, keys, and the two segments.

    A step without a tile names the block before it, which is not read again.
    """
    reach = layout.queries_of if along_queries else layout.keys_of

    def at(outer, step, part):
        first, last = reach(outer, part[0])
        inner = jnp.maximum(jnp.minimum(first + step, last), 0)
        block, key_block = (inner, outer) if along_queries else (outer, inner)
        return block, layout.key_block(key_block)

    def spec(shape, which, axis):
        def index(b, k, outer, step, part):
            places = [b, k if len(shape) == 4 else 0, 0, 0][: len(shape)]
            places[axis] = at(outer, step, part)[which]
            return tuple(places)

        return pl.BlockSpec(shape, index)

    rows, keys = layout.block_rows, layout.keys
    return (
        spec((1, layout.scoring.group, layout.queries, head_dim), 0, 2),
        spec((1, 1, 1, rows), 0, 3),
        spec((1, 1, keys, head_dim), 1, 2),
        spec((1, 1, rows), 0, 2),
        spec((1, 1, keys), 1, 2),
    )

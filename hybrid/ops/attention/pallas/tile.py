"""What the kernels of this folder share: one tile of scores, and how a kernel is called.

A piece is c queries of the g heads of one KV head, [g, c, h], whose rows are taken as one axis: row
r is head r // c of query r mod c. So a tile of scores is a matrix, keys by rows, and a key is read
once for its group. Keys are the major axis, as in `chunked.py`: peaks, sums, lse and δ are then
vectors over the minor axis, and no tile of scores is ever transposed. lse and δ are kept in the
order of pieces.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hybrid.ops.attention.pallas import LANES
from hybrid.ops.band import visible

PIECE_ROWS = 256  # at most: the compiler unrolls a tile, and takes time for that
VMEM_BYTES = 64 * 2**20  # what a kernel may take; the least that generations from v5e on have


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What a call does to its scores, and who sees whom in it.

    Attributes:
      group: query heads of a KV head.
      window_size, offset: as of the band.
    """

    group: int
    window_size: int | None
    offset: int
    scale: float
    softcap: float | None

    def scores(self, k: jax.Array, q: jax.Array) -> jax.Array:
        """[keys, rows] of [keys, h] and [rows, h]; (1) of `chunked.py`, unmasked."""
        s = dot(k, q, (1, 1))
        s = s if self.scale == 1 else s * self.scale
        return s if self.softcap is None else self.softcap * jnp.tanh(s / self.softcap)

    def backward(self, s, seen, lse, delta, v, dout):
        """p and ds of scores s, (5) and (6) of `chunked.py`; seen: a mask, or None for all."""
        shown = s if seen is None else jnp.where(seen, s, jnp.finfo(s.dtype).min)
        p = jnp.exp(shown - lse)
        ds = p * (dot(v, dout, (1, 1)) - delta)
        if self.softcap is not None:
            ds = ds * (1 - jnp.square(s / self.softcap))
        return p, ds if self.scale == 1 else ds * self.scale

    def seen(self, first_query, queries: int, first_key, keys: int, segments=()):
        """The mask [keys, rows] of a piece of `queries` against `keys`, from places in the row."""
        row = jax.lax.broadcasted_iota(jnp.int32, (1, self.group * queries), 1)
        key = first_key + jax.lax.broadcasted_iota(jnp.int32, (keys, 1), 0)
        query = first_query + jax.lax.rem(row, jnp.int32(queries))
        return visible(query, key, self.window_size, *segments)

    def piece(self, block_queries: int, most_queries: int) -> int:
        """Queries of a piece: a part of a block whose rows fill registers."""
        sizes = [n for n in (16, 32, 64, LANES) if n * self.group % LANES == 0]
        assert block_queries % LANES == 0, "blocks hold whole pieces of any size"
        fitting = [n for n in sizes if n <= most_queries and n * self.group <= PIECE_ROWS]
        return max(fitting) if fitting else min(sizes)


def over(x: Any, size: int) -> Any:
    """x // size of integers that are not negative: numpy's, or traced ones.

    jnp's own rounds to minus infinity by way of signs, which ask for a TPU at hand.
    """
    return x // size if isinstance(x, np.ndarray) else jax.lax.div(x, jnp.int32(size))


def dot(x: jax.Array, y: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each, in at least float32.

    As by `ops/dense.py` on accelerators, the wider one is cast to the other's dtype.
    """
    wide = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    x, y = x.astype(narrow), y.astype(narrow)
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=wide)


def online(state, s, seen, v):
    """(2) and (3) of `chunked.py`: (peak, total [1, rows], out [h, rows]) after one more tile."""
    peak, total, out = state
    s = s if seen is None else jnp.where(seen, s, jnp.finfo(s.dtype).min)
    new_peak = jnp.maximum(peak, jnp.max(s, axis=0, keepdims=True))
    p, shrink = jnp.exp(s - new_peak), jnp.exp(peak - new_peak)
    total = total * shrink + jnp.sum(p, axis=0, keepdims=True)
    return new_peak, total, out * shrink + dot(v, p, (0, 0))


def finish(state):
    """(4) of `chunked.py`: out and lse; a row that has seen no key gives zeros."""
    peak, total, out = state
    lowest = jnp.finfo(peak.dtype).min
    unseen = peak == lowest
    total = jnp.where(unseen, 1, total)
    return jnp.where(unseen, 0, out / total), jnp.where(unseen, -lowest, peak + jnp.log(total))


def start(sinks, rows: int, head_dim: int, dtype):
    """The state before the first tile; sinks: [1, rows] or None."""
    peak = jnp.full((1, rows), jnp.finfo(dtype).min, dtype) if sinks is None else sinks
    total = jnp.full((1, rows), 0 if sinks is None else 1, dtype)
    return peak, total, jnp.zeros((head_dim, rows), dtype)


def column(row: jax.Array) -> jax.Array:
    """[1, n] as [n, 1]."""
    return jnp.broadcast_to(row, (8, row.shape[1])).T[:, :1]


class Piece(NamedTuple):
    """A piece's place in its block: its first query, and slices of queries and of rows."""

    first: Any
    queries: Any
    rows: Any

    def read(self, block) -> jax.Array:
        """Its rows [g · c, h] of a block [1, g, queries, h]."""
        array = block[0, :, self.queries]
        return array.reshape(-1, array.shape[-1])

    def write(self, block, columns: jax.Array) -> None:
        """Puts [h, g · c] into a block [1, g, queries, h]."""
        shape = block.shape[1], -1, block.shape[3]
        block[0, :, self.queries] = columns.T.reshape(shape).astype(block.dtype)


def each_piece(block_queries: int, queries: int, group: int, do: Callable[[Piece], None]) -> None:
    """Calls `do` with each piece of `queries` of a block, in a loop."""

    def one(number, carry):
        first, rows = number * queries, group * queries
        first_row = pl.multiple_of(number * rows, LANES)
        do(Piece(first, pl.ds(pl.multiple_of(first, queries), queries), pl.ds(first_row, rows)))
        return carry

    jax.lax.fori_loop(jnp.int32(0), jnp.int32(block_queries // queries), one, 0)


def call(
    kernel: Callable[..., None],
    operands: Sequence[Any],
    *,
    grid: tuple[Any, ...],
    in_specs: Sequence[Any],
    out_specs: Sequence[Any],
    out_shapes: Sequence[tuple[tuple[int, ...], Any]],
    scratch: Sequence[Any] = (),
    scalars: Sequence[jax.Array] = (),
    num_in_order: int = 1,
    is_in_place: bool = False,
    flops: float,
    bytes_accessed: int | None = None,
) -> Any:
    """Runs a kernel over `grid`; on other machines than TPUs it is interpreted.

    Args:
      grid: its last size may be traced.
      operands, in_specs: None where a call has no such operand.
      scratch: (shape, dtype) of arrays in fast memory, or other kinds of scratch.
      scalars: int32 arrays, which index maps take last and the kernel first.
      num_in_order: the last axes of the grid that go in order.
      is_in_place: the last operand's memory becomes the first result's.
      flops: of the products, for whoever counts a program's work.
      bytes_accessed: None: of all operands and results, once.
    """
    shapes = [jax.ShapeDtypeStruct(*shape) for shape in out_shapes]
    given = [(x, spec) for x, spec in zip(operands, in_specs, strict=True) if x is not None]
    has = [True] * len(scalars) + [x is not None for x in operands]

    def of_all(*refs):
        refs = iter(refs)
        kernel(*[next(refs) if there else None for there in has], *refs)

    if bytes_accessed is None:
        bytes_accessed = sum(
            math.prod(s.shape) * s.dtype.itemsize for s in (*shapes, *(x for x, _ in given))
        )
    run = functools.partial(
        pl.pallas_call,
        of_all,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=[spec for _, spec in given],
            out_specs=list(out_specs),
            scratch_shapes=[pltpu.VMEM(*s) if isinstance(s, tuple) else s for s in scratch],
        ),
        out_shape=shapes,
        input_output_aliases={len(scalars) + len(given) - 1: 0} if is_in_place else {},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=[
                *[pltpu.PARALLEL] * (len(grid) - num_in_order),
                *[pltpu.ARBITRARY] * num_in_order,
            ],
            vmem_limit_bytes=VMEM_BYTES,
        ),
        cost_estimate=pl.CostEstimate(
            flops=int(flops), transcendentals=0, bytes_accessed=int(bytes_accessed)
        ),
    )
    return jax.lax.platform_dependent(
        *scalars, *(x for x, _ in given), tpu=run(), default=run(interpret=True)
    )

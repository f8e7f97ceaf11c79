"""Rows whose time is split over the mesh axis `context`: who holds what, what moves, who does what.

For n devices a row of t tokens is cut into 2n equal chunks, and device i holds chunks i and
2n − 1 − i ("zigzag"). The order in which the devices' tokens follow each other is the stream's:

    device             0       1       2       3
    chunks           0   7   1   6   2   5   3   4

Chunk c meets c + 1 chunks of keys under the diagonal, so every device meets 2n + 1: equal work by
shapes alone, in a program that all devices share. With contiguous parts the last device would
have almost twice the mean. What works token by token takes the stream as it comes; attention does
one of two things (functions of one device's part, under `shard_map`):

    window      each chunk with the `halo` = window − 1 keys before it (`with_halo`): neighbours
                send the ends of their chunks, the same bytes whatever t is. The first chunks go up
                a device, the second ones down. A halo longer than a chunk takes several hops.
    no window   queries stay, keys and values are gathered in the stream's order (`gathered`);
                `tiles` lists what is under the diagonal.

Positions and segments are small: every device has those of whole rows, in their own order, and
cuts out what it needs (`cut`). What a halo holds before the row's first token is in no segment.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid import axes, sharding
from hybrid.ops.band import Band

CONTEXT = sharding.RULES[axes.TIME]
NO_SEGMENT = -1


def num_parts(length: int) -> int:
    """How many devices share a row of `length`; 1 where two chunks each do not divide it."""
    mesh = sharding.active_mesh()
    size = 1 if mesh is None else sharding.parts_of(axes.TIME, mesh)
    return size if length % (2 * size) == 0 else 1


def place(chunk, parts: int):
    """Where a chunk of the row stands in the stream, in chunks; an array or a number."""
    return jnp.minimum(2 * chunk, 4 * parts - 1 - 2 * chunk)


def _chunks_of_stream(parts):
    """The chunks of the row in the stream's order: 0, 2n − 1, 1, 2n − 2, …"""
    first = np.arange(parts)
    return np.stack([first, 2 * parts - 1 - first], axis=1).reshape(-1)


def to_stream(array: jax.Array) -> jax.Array:
    """[b, t, ...] in the row's order, put into the stream's and split over time."""
    return _reordered(array, _chunks_of_stream(num_parts(array.shape[1])))


def to_row(array: jax.Array) -> jax.Array:
    """[b, t, ...] in the stream's order, put into the row's."""
    return _reordered(array, np.argsort(_chunks_of_stream(num_parts(array.shape[1]))))


def _reordered(array, order):
    if len(order) == 2:  # one part
        return array
    names = axes.BATCH, axes.TIME, *[None] * (array.ndim - 2)
    return sharding.constrain(_in_chunks(array, order), *names)


def _in_chunks(array, order):
    chunks = array.reshape(array.shape[0], len(order), -1, *array.shape[2:])
    return chunks[:, order].reshape(array.shape)


# --- One device's part -----------------------------------------------------------------------


def attend_part(
    function: Callable[..., jax.Array],
    q: jax.Array,
    kv: Any,
    keys_values: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]],
    positions: jax.Array,
    segments: jax.Array | None,
    window_size: int | None,
    parts: int,
    **scoring: Any,
) -> jax.Array:
    """Attention of a device's queries, by an implementation of the door `attend`.

    Args:
      q: [b, 2c, n, h].
      kv: a tree of what keys and values are made of: arrays [b, 2c, k, h] move, others do not.
      keys_values: (kv, int32 [b, s] positions) -> keys and values [b, s, k, h].
      positions, segments: int32 [b, t] of whole rows, in their order; segments may be None.
      window_size: None: no window.
    """
    chunk = q.shape[1] // 2
    if window_size is None:
        band = _band_of_row(segments, q.shape[0], chunk, parts)
        kv, positions = _moved(gathered, kv), _in_chunks(positions, _chunks_of_stream(parts))
        return function(q, *keys_values(kv, positions), band, **scoring)
    halo = window_size - 1
    if segments is None:
        segments = jnp.zeros_like(positions)
    kv_segments = cut(segments, halo, chunk, parts, NO_SEGMENT)
    q_segments = kv_segments[:, halo:]
    band = Band(window_size, q_segments, kv_segments, offset=halo)
    kv = _moved(lambda array: with_halo(array, halo, parts), kv)
    key, value = keys_values(kv, cut(positions, halo, chunk, parts, 0))
    out = function(jnp.concatenate(jnp.split(q, 2, axis=1)), key, value, band, **scoring)
    return jnp.concatenate(jnp.split(out, 2), axis=1)


def _moved(move, kv):
    return jax.tree.map(lambda leaf: move(leaf) if leaf.ndim == 4 else leaf, kv)


def _band_of_row(segments, batch, chunk, parts):
    """Queries of a device against whole rows of keys, both in the stream's order."""
    order = _chunks_of_stream(parts)
    part = jax.lax.axis_index(CONTEXT)
    index = jnp.arange(2 * parts * chunk, dtype=jnp.int32)[None]
    rows = jnp.broadcast_to(index, (batch, index.shape[1]))
    return Band(
        q_positions=_own(rows, chunk, parts),
        kv_positions=_in_chunks(rows, order),
        q_segments=None if segments is None else _own(segments, chunk, parts),
        kv_segments=None if segments is None else _in_chunks(segments, order),
        part=part,
        num_parts=parts,
    )


def _own(array, chunk, parts):
    return jnp.concatenate(jnp.split(cut(array, 0, chunk, parts, 0), 2), axis=1)


def cut(array: jax.Array, halo: int, chunk: int, parts: int, fill: int) -> jax.Array:
    """[b, t] of whole rows -> [2b, halo + chunk]: a device's two chunks, each behind its halo.

    What is before the row is `fill`.
    """
    padded = jnp.pad(array, ((0, 0), (halo, 0)), constant_values=fill)
    part = jax.lax.axis_index(CONTEXT)
    starts = chunk * part, chunk * (2 * parts - 1 - part)
    size = halo + chunk
    return jnp.concatenate(
        [jax.lax.dynamic_slice_in_dim(padded, start, size, axis=1) for start in starts]
    )


def gathered(array: jax.Array) -> jax.Array:
    """[b, 2c, ...] of all devices as [b, t, ...], in the stream's order."""
    return jax.lax.all_gather(array, CONTEXT, axis=1, tiled=True)


def with_halo(array: jax.Array, halo: int, parts: int) -> jax.Array:
    """[b, 2c, ...] -> [2b, halo + c, ...]: both chunks, each behind the `halo` tokens before it.

    Chunk c − r is, for a first chunk (c = i), the first of device i − r; for a second one
    (c = 2n − 1 − i), the second of device i + r or, where there is none, the first of device
    2n − 1 − r − i. Tokens before the row's beginning are zeros.
    """
    first, second = jnp.split(array, 2, axis=1)
    chunk, part = first.shape[1], jax.lax.axis_index(CONTEXT)
    before_first, before_second = [first], [second]
    for hop in range(1, -(-halo // chunk) + 1):
        size = min(chunk, halo - (hop - 1) * chunk)
        ends = first[:, chunk - size :], second[:, chunk - size :]
        up = _sent(ends[0], lambda i, hop=hop: i + hop, parts)
        down = _sent(ends[1], lambda i, hop=hop: i - hop, parts)
        turned = _sent(ends[0], lambda i, hop=hop: 2 * parts - 1 - hop - i, parts)
        before_first.insert(0, up)
        before_second.insert(0, jnp.where(part + hop < parts, down, turned))
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in (before_first, before_second)])


def _sent(array, to, parts):
    """What device i sends to device to(i); zeros where none sends."""
    pairs = [(i, to(i)) for i in range(parts) if 0 <= to(i) < parts]
    if not pairs:
        return jnp.zeros_like(array)
    if all(i == j for i, j in pairs):  # only from a device to itself; others do not read it
        return array
    return jax.lax.ppermute(array, CONTEXT, pairs)


# --- Tiles -----------------------------------------------------------------------------------


def tiles(part: jax.Array, parts: int, chunk: int, queries: int, keys: int):
    """The tiles under the diagonal of device `part`, as many for each device.

    Args:
      queries, keys: sizes of a tile, which divide `chunk`.
    Returns: int32 [tiles, 2] twice: (block of queries, first key in the stream) of the tiles on
      the diagonal, and of those below it.
    """
    starts = np.arange(0, chunk, queries)[:, None], np.arange(0, chunk, keys)[None, :]
    every = np.stack(np.broadcast_arrays(*starts), axis=-1).reshape(-1, 2)
    above = every[:, 1] > every[:, 0] + queries - 1
    below = every[:, 1] + keys - 1 <= every[:, 0]

    def of_chunks(pairs, half, kv_chunk):
        block = (half * chunk)[:, None] + pairs[None, :, 0]
        first = (place(kv_chunk, parts) * chunk)[:, None] + pairs[None, :, 1]
        return jnp.stack([block // queries, first], axis=-1).reshape(-1, 2).astype(jnp.int32)

    own = np.arange(2), jnp.array([part, 2 * parts - 1 - part])
    step = np.arange(2 * parts - 1)  # `part` of them before the first chunk, the rest before the
    half = (step >= part).astype(jnp.int32)  # second
    earlier = jnp.where(half, step - part, step)
    inner = of_chunks(every[below], *own), of_chunks(every, half, earlier)
    return of_chunks(every[~above & ~below], *own), jnp.concatenate(inner)

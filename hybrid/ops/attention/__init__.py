"""The doors to attention: to a row of tokens and to a cache; each with reasons for every refusal.

`attend` takes queries, keys, values and a `Band`, `attend_split` what a row split over devices
keeps of them, `attend_cached` the `Slots` of a cache.
Implementations are tried in the order of the tables below (`hybrid/ops/dispatch.py` says how), and
no part of a band is ever dropped.

Read next: `reference.py` (the oracle), `chunked.py` (what serves everything), `banded.py`,
`cudnn.py`, `context.py`, `slots.py`, `cached.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hybrid import axes
from hybrid.axes import Query
from hybrid.ops.attention import banded, cached, chunked, context, cudnn, reference
from hybrid.ops.attention.pallas import door as pallas
from hybrid.ops.attention.request import (
    ROWS,
    AttentionRequest,
    CachedAttentionRequest,
    head_names,
)
from hybrid.ops.attention.slots import Slots, Stored
from hybrid.ops.band import Band
from hybrid.ops.dispatch import Implementation, Operation, per_device
from hybrid.ops.rope import Rotation

__all__ = [
    "ATTENTION",
    "CACHED_ATTENTION",
    "AttentionRequest",
    "CachedAttentionRequest",
    "attend",
    "attend_cached",
    "attend_split",
]

ATTENTION = Operation(
    "attention",
    (
        Implementation("pallas", pallas.attend, pallas.check, needs_shard_map=True),
        Implementation("cudnn", cudnn.attend, cudnn.check, needs_shard_map=True),
        Implementation("chunked", chunked.attend),
        Implementation("banded", banded.attend, banded.check),
        Implementation("reference", reference.attend),
    ),
)
CACHED_ATTENTION = Operation(
    "cached attention",
    (
        Implementation("fused", pallas.attend_cached, pallas.check_few, needs_shard_map=True),
        Implementation("tiled", cached.attend),
    ),
    is_logged=False,
)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    band: Band,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention over the keys that `band` lets each query see.

    Args:
      q: [b, t, n, h].  k, v: [b, s, k, h]; query head i reads KV head i // (n / k).
      band: who sees whom; without positions in it, s is at least t + band.offset.
      scale: multiplies the scores, before `softcap`.
      softcap: scores become softcap·tanh(scores/softcap).
      sinks: [n], a logit that joins the denominator of each head's softmax and has no value;
        neither scaled nor capped. Source: gpt-oss (2508.10925), sec. 2.2.
      implementation: "auto" or a name of `ATTENTION.names`.
    Returns: [b, t, n, h] in q's dtype; a query that sees no key gives zeros.
    Raises: ValueError where shapes disagree; Unsupported where the named implementation refuses.
    """
    _check_shapes(q, k, v, band)
    if sinks is not None and sinks.shape != q.shape[2:3]:
        raise ValueError(f"sinks: shape is {sinks.shape}, q has {q.shape[2]} heads (sinks is [n])")
    request = AttentionRequest.of(q, k, band, softcap, sinks)
    chosen = ATTENTION.choose(request, implementation)
    arrays, structure = jax.tree.flatten(band)

    def call(q, k, v, sinks, arrays):
        band = jax.tree.unflatten(structure, arrays)
        return chosen.function(q, k, v, band, scale=scale, softcap=softcap, sinks=sinks)

    operands = (q, k, v, sinks, arrays)
    if not chosen.needs_shard_map:
        return call(*operands)
    heads, kv_heads = head_names(k.shape[2])
    q_names, kv_names = ((*ROWS, name, axes.HEAD_DIM) for name in (heads, kv_heads))
    sink_names = None if sinks is None else (heads,)
    names = (q_names, kv_names, kv_names, sink_names, [ROWS] * len(arrays))
    return per_device(call, operands, names)


def attend_split(
    q: jax.Array,
    kv: Any,
    keys_values: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]],
    positions: jax.Array,
    segments: jax.Array | None,
    *,
    window_size: int | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    implementation: str = "auto",
) -> Query:
    """`attend` of rows whose time is split over `context`, under `jax.set_mesh`.

    What keys and values are made of moves between devices, they are made where they are read.

    Args:
      q: [b, t, n, h], in the order of `context.to_stream`.
      kv: a tree of what keys and values are made of: arrays [b, t, k, h] in the same order, which
        move, and smaller ones that every device has.
      keys_values: (kv, int32 [b, s] positions) -> keys and values [b, s, k, h].
      positions, segments: int32 [b, t] in the row's order; segments may be None.
      window_size, scale, softcap, sinks, implementation: as of `attend` and its band.
    Returns: [b, t, n, h], in the order of q.
    Raises: Unsupported where the named implementation refuses.
    """
    parts, length = context.num_parts(q.shape[1]), q.shape[1]
    if window_size is not None and window_size >= length:
        window_size = None
    k, _ = jax.eval_shape(keys_values, kv, positions)
    band = Band(window_size, segments, segments, positions, positions)
    request = AttentionRequest.of(q, k, band, softcap, sinks)
    if window_size is None:
        part: dict[str, Any] = {"query_length": length // parts, "num_parts": parts}
    else:
        chunk, halo = length // (2 * parts), window_size - 1
        part = {"query_length": chunk, "key_length": halo + chunk, "offset": halo}
        part |= {"is_regular": True, "has_segments": True}
    chosen = ATTENTION.choose(dataclasses.replace(request, **part), implementation)

    def call(q, kv, positions, segments, sinks):
        function = functools.partial(context.attend_part, chosen.function)
        arrays = q, kv, keys_values, positions, segments
        scoring = {"scale": scale, "softcap": softcap, "sinks": sinks}
        return function(*arrays, window_size, parts, **scoring)

    heads, kv_heads = head_names(k.shape[2])
    q_names = (axes.BATCH, axes.TIME, heads, axes.HEAD_DIM)
    kv_names = jax.tree.map(
        lambda leaf: (axes.BATCH, axes.TIME, kv_heads, None) if leaf.ndim == 4 else (None,), kv
    )
    rows = None if segments is None else ROWS
    names = (q_names, kv_names, ROWS, rows, None if sinks is None else (heads,))
    return per_device(call, (q, kv, positions, segments, sinks), names)


def attend_cached(
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
    implementation: str = "auto",
) -> Query:
    """Softmax attention of new queries over the slots of a cache; it has no gradient.

    Args:
      q: [b, t, n, h].
      slots: what is stored, s slots of k heads a row.
      q_positions: int32 [b, t].  kv_positions: int32 [b, s], -1 for an empty slot.
      in_use: int32 [b], slots of a row from here on are empty; None: all may be in use.
      window_size, scale, softcap, sinks: as of `attend`.
      implementation: "auto" or a name of `CACHED_ATTENTION.names`.
    Returns: [b, t, n, h] in q's dtype; a query that sees no slot gives zeros.
    Raises: Unsupported where the named implementation refuses.
    """
    values = slots.values.values
    request = CachedAttentionRequest.of(q, values, window_size)
    chosen = CACHED_ATTENTION.choose(request, implementation)

    def call(q, slots, q_positions, kv_positions, in_use, sinks):
        options = {"window_size": window_size, "scale": scale, "softcap": softcap}
        rows = q_positions, kv_positions
        return chosen.function(q, slots, *rows, in_use=in_use, sinks=sinks, **options)

    operands = (q, slots, q_positions, kv_positions, in_use, sinks)
    if not chosen.needs_shard_map:
        return call(*operands)
    heads, kv_heads = head_names(values.shape[2])
    operands = (q, slots._replace(row=jnp.asarray(slots.row, jnp.int32)), *operands[2:])
    names = (
        (*ROWS, heads, axes.HEAD_DIM),
        _slot_names(slots, kv_heads),
        ROWS,
        ROWS,
        None if in_use is None else (axes.BATCH,),
        None if sinks is None else (heads,),
    )
    return per_device(call, operands, names)


def _slot_names(slots: Slots, kv_heads: str | None) -> Slots:
    """Logical names of the axes of all that slots consist of."""

    def stored(tensor):
        rows = (axes.LAYERS, axes.BATCH, kv_heads, None)
        scales = None if tensor.scales is None else rows
        return Stored((*rows, axes.HEAD_DIM), scales)

    def whole(array):
        return (None,) * array.ndim

    return Slots(
        values=stored(slots.values),
        row=(),
        keys=slots.keys and stored(slots.keys),
        rotated=slots.rotated and stored(slots.rotated),
        k_scale=None if slots.k_scale is None else whole(slots.k_scale),
        turn=slots.turn and Rotation(*map(whole, slots.turn)),
        frequencies=None if slots.frequencies is None else whole(slots.frequencies),
    )


def _check_shapes(q, k, v, band):
    q_letters, k_letters = "(q is [b, t, n, h])", "(k and v are [b, s, k, h])"

    def need(name, what, got, whose, wanted, letters=q_letters):
        if got != wanted:
            raise ValueError(f"{name}: {what} is {got}, {whose} has {wanted} {letters}")

    for name, array, letters in (("q", q, q_letters), ("k", k, k_letters), ("v", v, k_letters)):
        if array.ndim != 4:
            raise ValueError(f"{name}: has {array.ndim} axes, needs 4 {letters}")
    for name, array in (("k", k), ("v", v)):
        need(name, "batch", array.shape[0], "q", q.shape[0])
        need(name, "head_dim", array.shape[3], "q", q.shape[3])
    need("v", "length", v.shape[1], "k", k.shape[1], k_letters)
    need("v", "number of heads", v.shape[2], "k", k.shape[2], k_letters)
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"k: {k.shape[2]} heads do not divide q's {q.shape[2]} {q_letters}")
    last = q.shape[1] + band.offset
    if band.is_regular and k.shape[1] < last:
        raise ValueError(
            f"k: length is {k.shape[1]}, q's {q.shape[1]} tokens from key {band.offset} on need "
            f"{last} {k_letters}"
        )
    for name in ("q_segments", "q_positions", "kv_segments", "kv_positions"):
        array, wanted, letters = getattr(band, name), k.shape[:2], "[b, s]"
        if name.startswith("q_"):
            wanted, letters = q.shape[:2], "[b, t]"
        if array is not None and array.shape != wanted:
            raise ValueError(f"band.{name}: shape is {array.shape}, needs {letters} = {wanted}")

"""A call of attention by kernels and its gradient: which walk serves it, and the arrays it takes.

The equations are those of `chunked.py`, numbered there.

Read next: `tile.py`, `window.py`, `whole.py`.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.ad_checkpoint import checkpoint_name

from hybrid.axes import Key, Query, Value
from hybrid.ops.attention.pallas import whole, window
from hybrid.ops.attention.pallas.tile import Scoring
from hybrid.ops.band import Band

Layout = whole.Layout | window.Layout


def attend(
    q: Query,
    k: Key,
    v: Value,
    band: Band,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> Query:
    """Attention by kernels; arguments and result as `hybrid.ops.attention.attend`."""
    group, length = q.shape[2] // k.shape[2], q.shape[1]
    reach = band.window_size
    if reach is not None and reach >= length + band.offset:
        reach = None
    scoring = Scoring(group, reach, band.offset, scale, softcap)
    arrays = sinks, band.q_segments, band.kv_segments, band.part
    return _attend(q, k, v, *arrays, scoring, band.num_parts)


def layout_of(scoring: Scoring, q: jax.Array | jax.ShapeDtypeStruct, num_parts: int = 1) -> Layout:
    """How a call with queries q [b, t, n, h] is cut, and so which file's kernels serve it."""
    reach = scoring.window_size
    if num_parts > 1:
        return whole.SplitLayout.of_part(scoring, num_parts, q.shape[1] // 2)
    fits = reach is not None and reach * q.shape[3] * q.dtype.itemsize <= window.MOST_BYTES
    return (window if fits else whole).Layout.of(scoring, q.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _attend(q, k, v, sinks, q_segments, kv_segments, part, scoring, num_parts):
    arrays = sinks, q_segments, kv_segments, part
    return _forward(q, k, v, *arrays, scoring, num_parts)[0]


def _forward(q, k, v, sinks, q_segments, kv_segments, part, scoring, num_parts):
    layout = layout_of(scoring, q, num_parts)
    of_piece = None
    if sinks is not None:
        wide = jnp.promote_types(q.dtype, jnp.float32)
        of_piece = repeat(sinks.astype(wide), "(k g) -> k 1 (g c)", g=scoring.group, c=layout.piece)
    laid = _operands(layout, q, k, v, q_segments, kv_segments)
    if isinstance(layout, window.Layout):
        out, lse = window.forward(layout, *laid, of_piece)
    else:
        out, lse = whole.forward(layout, *laid, of_piece, _scalar(part))
    out = _heads_last(out, q.shape[1])
    out, lse = (checkpoint_name(each, "attention_out") for each in (out, lse))
    return out, (q, k, v, sinks, q_segments, kv_segments, part, out, lse)


def _backward(scoring, num_parts, kept, dout):
    q, k, v, sinks, q_segments, kv_segments, part, out, lse = kept
    layout = layout_of(scoring, q, num_parts)
    wide = lse.dtype
    delta = jnp.sum(dout.astype(wide) * out.astype(wide), axis=-1)
    dsinks = None
    if sinks is not None:
        sizes = {"g": scoring.group, "c": layout.piece}
        seen = rearrange(lse, "b k 1 (i g c) -> b (i c) (k g)", **sizes)[:, : q.shape[1]]
        share = jnp.exp(sinks.astype(wide)[None, None] - seen)
        dsinks = -jnp.sum(share * delta, axis=(0, 1)).astype(sinks.dtype)  # (8)
    laid = _operands(layout, q, k, v, q_segments, kv_segments)
    of_out = _heads_first(layout, dout), lse, _in_pieces(layout, delta)
    if isinstance(layout, window.Layout):
        dq, dk, dv = window.backward(layout, *laid, *of_out)
    else:
        dq, dk, dv = whole.backward(layout, *laid, *of_out, _scalar(part))
    dk, dv = (_fit(array, -layout.key_start, k.shape[1], 2) for array in (dk, dv))
    dq = _heads_last(dq.astype(q.dtype), q.shape[1])
    dk, dv = (_heads_last(array, k.shape[1]) for array in (dk, dv))
    return dq, dk, dv, dsinks, None, None, None


_attend.defvjp(_forward, _backward)


def _scalar(part):
    """The device's number as the kernels take it."""
    return jnp.reshape(jnp.int32(0) if part is None else part.astype(jnp.int32), 1)


def _operands(layout, q, k, v, q_segments, kv_segments):
    """q, k, v and segments as the kernels take them."""

    def keys(array):
        return _fit(rearrange(array, "b s k h -> b k s h"), layout.key_start, layout.num_keys, 2)

    segments = None, None
    if q_segments is not None:
        of_rows = _in_pieces(layout, repeat(q_segments, "b t -> b t g", g=layout.scoring.group))
        of_keys = _fit(kv_segments, layout.key_start, layout.num_keys, 1)[:, None]
        segments = of_rows[:, 0], of_keys
    return _heads_first(layout, q), keys(k), keys(v), segments


def _heads_first(layout, array):
    """[b, t, n, h] as [b, n, whole blocks of t, h]."""
    array = rearrange(array, "b t n h -> b n t h")
    return _fit(array, 0, layout.num_blocks * layout.queries, 2)


def _heads_last(array, length):
    """[b, n, t or more, h] as [b, t, n, h]."""
    return rearrange(array[:, :, :length], "b n t h -> b t n h")


def _in_pieces(layout, array):
    """[b, t, n] as [b, k, 1, rows], in the order of the kernels' pieces."""
    array = _fit(array, 0, layout.num_blocks * layout.queries, 1)
    sizes = {"g": layout.scoring.group, "c": layout.piece}
    return rearrange(array, "b (i c) (k g) -> b k 1 (i g c)", **sizes)


def _fit(array, start, size, axis):
    """`size` entries of an axis from `start` on, zeros where there are none."""
    length, left = array.shape[axis], min(size, max(0, -start))
    first = min(max(0, start), length)
    last = max(first, min(start + size, length))
    pads = [(0, 0)] * array.ndim
    pads[axis] = (left, size - left - (last - first))
    return jnp.pad(jax.lax.slice_in_dim(array, first, last, axis=axis), pads)

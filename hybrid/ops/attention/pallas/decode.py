"""A step of decoding as one kernel: what a row's slots hold is read once, block by block.

    grid      rows of the batch × KV heads × blocks of slots, the last in order
    tile      the t·g queries of a KV head by the slots of a block: sums run along lanes

The equations are those of `cached.py`, with the stored side on the right: a tile is queries by
slots, and nothing is transposed. Blocks go up to the last one that the longest row uses, a traced
number, so no read and no step of the grid depends on the capacity. A shorter row's steps behind its
last block name that block again, which is not read again, and compute nothing. The arrays are the
stacks of all layers, and the index of a block picks the layer: nothing is cut out first.

Where values serve as keys, the block that weights multiply is the one that scores were made of, and
its turned dimensions turn in registers. Slot p holds position p = P + j, P the first of c
slots (`Layout.turned`), and

    (4)  q·R(P + j)(v ∘ k_scale)  =  (R(−P)q)·(R(j)(v ∘ k_scale))

so queries are turned back once for c slots, and keys by the angles of 0 … c − 1, which
stay in fast memory: no angle is read for a slot. The sum of two rounded angles is off by ε·p·f at
most, and so is the rounded angle of p (f: the pair's frequency, ε: 2⁻²⁴ in float32, 2⁻⁵³ in
float64); the two may differ by 2·ε·p·f.

Read next: `decode_operands.py`.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl

from hybrid.axes import Query
from hybrid.ops.attention.pallas.decode_operands import Layout, Operands, operands_of, specs_of
from hybrid.ops.attention.pallas.tile import call, dot, over
from hybrid.ops.attention.slots import Slots
from hybrid.ops.band import visible


def attend(
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
) -> Query:
    """Attention by a kernel; arguments and result as `hybrid.ops.attention.attend_cached`."""
    (batch, length, num_heads, head_dim), wide = q.shape, jnp.promote_types(q.dtype, jnp.float32)
    num_kv_heads = slots.values.values.shape[2]
    group = num_heads // num_kv_heads
    layout = Layout.of(slots, length * group)
    blocks, longest = _blocks(layout, batch, in_use)
    operands = operands_of(layout, q.astype(wide), slots, q_positions, kv_positions, sinks)
    shape = (batch, num_kv_heads, layout.rows, head_dim)
    (out,) = call(
        _kernel(layout, q.dtype, window_size, scale, softcap),
        operands,
        grid=(batch, num_kv_heads, longest),
        in_specs=specs_of(layout, operands),
        out_specs=[pl.BlockSpec((1, 1, *shape[2:]), lambda b, k, i, *_: (b, k, 0, 0))],
        out_shapes=[(shape, wide)],
        scratch=[((layout.rows, width), wide) for width in (1, 1, head_dim)],
        scalars=[jnp.asarray(slots.row, jnp.int32)[None], blocks],
        flops=2 * layout.num_slots * layout.rows * batch * num_kv_heads * operands.widths,
        bytes_accessed=operands.bytes_read,
    )
    out = rearrange(out[:, :, : length * group], "b k (t g) h -> b t (k g) h", t=length)
    return out.astype(q.dtype)


def _blocks(layout: Layout, batch: int, in_use):
    """Blocks that each row uses, int32 [b], and the longest one, which steps of the grid there are.

    One step at least: the last writes the result.
    """
    if in_use is None:
        return jnp.full(batch, layout.num_blocks, jnp.int32), layout.num_blocks
    used = jnp.minimum(over(in_use + layout.block - 1, layout.block), layout.num_blocks)
    return used, jnp.maximum(jnp.max(used), 1)


# --- The kernel -------------------------------------------------------------------------------


def _kernel(layout: Layout, dtype, window_size, scale, softcap):
    """One step of the grid; `dtype` is that of the products with integers."""

    def kernel(row, blocks, *refs):
        count = len(Operands._fields)
        operands, (out, *state) = Operands(*refs[:count]), refs[count:]
        used, head, i = blocks[pl.program_id(0)], pl.program_id(1), pl.program_id(2)
        last_step = pl.num_programs(2) - 1

        @pl.when(i == 0)
        def _():
            _begin(operands, state)

        def tile(size):
            s = _scores(layout, operands, head, size, dtype)
            s = s if scale == 1 else s * scale
            s = s if softcap is None else softcap * jnp.tanh(s / softcap)
            seen = visible(operands.q_positions[0], operands.kv_positions[0, :, :size], window_size)
            _add(operands, state, s, seen, head, dtype)

        if layout.last_block == layout.block:
            pl.when(i < used)(lambda: tile(layout.block))
        else:  # Behind the last slot a block holds nothing.
            last = layout.num_blocks - 1
            pl.when((i < used) & (i < last))(lambda: tile(layout.block))
            pl.when((i < used) & (i == last))(lambda: tile(layout.last_block))

        @pl.when(i == last_step)
        def _():
            _, total, summed = state
            out[0, 0] = summed[...] / jnp.where(total[...] == 0, 1, total[...])

    return kernel


def _begin(operands: Operands, state):
    peak, total, summed = state
    if operands.sinks is None:
        peak[...] = jnp.full(peak.shape, jnp.finfo(peak.dtype).min, peak.dtype)
        total[...] = jnp.zeros(total.shape, total.dtype)
    else:
        peak[...] = operands.sinks[0]
        total[...] = jnp.ones(total.shape, total.dtype)
    summed[...] = jnp.zeros(summed.shape, summed.dtype)


def _add(operands: Operands, state, s, seen, head, dtype):
    """(2) and (3) for one more block."""
    peak, total, summed = state
    s = jnp.where(seen, s, jnp.finfo(s.dtype).min)
    new_peak = jnp.maximum(peak[...], jnp.max(s, axis=1, keepdims=True))
    p = jnp.where(seen, jnp.exp(s - new_peak), 0)
    shrink = jnp.exp(peak[...] - new_peak)
    peak[...] = new_peak
    total[...] = total[...] * shrink + jnp.sum(p, axis=1, keepdims=True)
    p = _scaled(p, operands.value_scales, head)
    summed[...] = summed[...] * shrink + dot(p, _floats(operands.values, s.shape[1], dtype), (1, 0))


def _scores(layout: Layout, operands: Operands, head, size, dtype):
    """(1): [rows, size]."""
    if operands.is_turning:
        parts = [
            _turned_scores(operands, j, slice(start, min(start + layout.turned, size)), dtype)
            for j, start in enumerate(range(0, size, layout.turned))
        ]
        s = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        return _scaled(s, operands.value_scales, head)

    def scores(q, keys, scales):
        s = dot(q[0, 0].astype(dtype), _floats(keys, size, dtype), (1, 1))
        return _scaled(s, scales, head)

    parts = []
    if operands.q is not None:
        parts.append(scores(operands.q, operands.values, operands.value_scales))
    if operands.q_turned is not None:
        parts.append(scores(operands.q_turned, operands.keys, operands.key_scales))
    return sum(parts[1:], parts[0])


def _turned_scores(operands: Operands, j, cut, dtype):
    """[rows, slots] by (4), of slots that queries are turned back for at once."""
    q, values = operands.q[0, 0], operands.values[0, 0, 0, cut]
    cos, sin = operands.cos[: len(values)], operands.sin[: len(values)]
    keys = _turned(values, cos, sin, operands.k_scale[...], _float_of(values, dtype))
    q = _turned(q, operands.start_cos[j], -operands.start_sin[j], None, dtype)
    return dot(q, keys, (1, 1))


def _turned(x, cos, sin, scale, dtype):
    """x [., h] times `scale` with its first pairs turned, in `dtype`."""
    width, half = cos.shape[-1], x.shape[-1] // 2
    first, second = x[:, :width].astype(cos.dtype), x[:, half : half + width].astype(cos.dtype)
    if scale is not None:
        first, second = first * scale[:, :width], second * scale[:, half : half + width]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if width < half:
        parts = [parts[0], x[:, width:half], parts[1], x[:, half + width :]]
    return jnp.concatenate([part.astype(dtype) for part in parts], axis=1)


def _floats(stored, size, dtype):
    """[size, h] of a block; integers in `dtype`."""
    values = stored[0, 0, 0, :size]
    return values.astype(_float_of(values, dtype))


def _float_of(values, dtype):
    return values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else dtype


def _scaled(tile, scales, head):
    """A tile [rows, slots] whose columns are multiplied with the scales of a head's slots."""
    if scales is None:
        return tile
    of_heads = scales[0, 0, :, : tile.shape[1]].astype(tile.dtype)
    is_own = jax.lax.broadcasted_iota(jnp.int32, of_heads.shape, 0) == head
    return tile * jnp.sum(jnp.where(is_own, of_heads, 0), axis=0, keepdims=True)

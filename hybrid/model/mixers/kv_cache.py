"""What one attention layer keeps of earlier tokens: which slots, in which form, and how it is read.

Slots. A global layer keeps position p in slot p. A local layer is a ring of R = w + slack slots,
position p in slot p mod R, since no later token sees further back than w. With `written` tokens
seen at most and `length` of them valid (fewer after a rewind), slot j of a ring holds

    p(j) = written − 1 − ((written − 1 − j) mod R)          valid where 0 <= p(j) < length

A query at `length` needs positions from length − w + 1 on, and the ring holds those from
written − R on: any rewind by up to `slack` tokens leaves all that is needed. A layer that sees the
first P tokens of a row besides keeps them in slots of their own behind the ring, which then holds
the positions from P on: p in slot (p − P) mod R, and p < P in slot R + p.

Forms. Separate keys and values are kept as they are attended to. Of unified ones (`kv.py`) the
value alone is enough ("value"), since k = rope(v · k_scale), or the part of the key that p-RoPE
turns is kept besides ("value_and_rotated": 62.5 % instead of 50 % of the bytes of keys and values
at Gemma's quarter). `hybrid/ops/attention/slots.py` says how scores are made of either.

int8 keeps a vector of a head and token as steps of 1/127 of its largest element. The step is
rounded to bfloat16 before it divides, so its rounding adds no error of its own.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybrid.axes import Positions
from hybrid.model.mixers.kv import KV, Rope, Unified
from hybrid.model.mixers.protocol import CacheFormat, CacheStep, LayerState, MixerSpec
from hybrid.ops import rope
from hybrid.ops.attention.slots import Slots, Stored
from hybrid.ops.attention.writing import write
from hybrid.ops.rope import Rotation

SCALE_DTYPE = jnp.bfloat16
Kept = dict[str, Stored]


@dataclasses.dataclass(frozen=True)
class KVSpec(MixerSpec):
    """What decides which keys and values a layer keeps, and how: the state half of an attention.

    Attributes:
      window_size: tokens seen, the own included; None sees all earlier ones.
      num_kv_heads, head_dim: geometry of keys and values.
      rope: rotary encoding.
      unified_kv: one projection serves keys and values.
      in_chunks: only the tokens of the own chunk of `window_size` are seen.
    """

    window_size: int | None
    num_kv_heads: int
    head_dim: int
    rope: Rope
    unified_kv: bool
    in_chunks: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def chunk_size(self) -> int | None:
        """The window where it is that of chunks, else None."""
        return self.window_size if self.in_chunks else None

    @property
    def owns_kv(self) -> bool:
        """Whether the layer computes (and caches) keys and values of its own."""
        return self.donor is None

    @property
    def num_rotated_pairs(self) -> int:
        """Pairs of a head's dimensions that turn."""
        return rope.num_rotated_pairs(self.head_dim, self.rope.fraction)

    @property
    def num_pinned(self) -> int:
        """P: first tokens of a row that stay beside the ring."""
        return 0

    def ring_size(self, form: CacheFormat) -> int:
        """R, of a layer with a window."""
        assert self.window_size is not None
        return min(self.window_size + form.slack, form.capacity)

    def num_slots(self, form: CacheFormat) -> int:
        """Slots of the cache: all positions, or a ring and what is pinned."""
        if self.window_size is None:
            return form.capacity
        return self.ring_size(form) + self.num_pinned

    def widths(self, unified: str) -> dict[str, int]:
        """The tensors that are kept and their widths; none for a layer that reuses others'."""
        if not self.owns_kv:
            return {}
        if not self.unified_kv or unified == "keys_and_values":
            return {"k": self.head_dim, "v": self.head_dim}
        if unified == "value" or not self.num_rotated_pairs:
            return {"v": self.head_dim}
        return {"v": self.head_dim, "rotated": 2 * self.num_rotated_pairs}

    def init_state(self, form: CacheFormat, repetitions: int, batch: int) -> Kept:
        """Empty arrays [repetitions, b, k, slots, width]."""
        outer = (repetitions, batch, self.num_kv_heads, self.num_slots(form))

        def empty(width: int) -> Stored:
            scales = jnp.zeros(outer, SCALE_DTYPE) if form.dtype == "int8" else None
            return Stored(jnp.zeros((*outer, width), form.dtype), scales)

        return {name: empty(width) for name, width in self.widths(form.unified).items()}

    def state_bytes(self, form: CacheFormat) -> int:
        """Bytes of one row's slots, int8's scales included."""
        scale = jnp.dtype(SCALE_DTYPE).itemsize if form.dtype == "int8" else 0
        sizes = (
            w * jnp.dtype(form.dtype).itemsize + scale for w in self.widths(form.unified).values()
        )
        return self.num_slots(form) * self.num_kv_heads * sum(sizes)

    def state_bytes_all_global(self, form: CacheFormat) -> int:
        """Bytes if the layer kept keys and values apart for the whole context, none shared."""
        whole = dataclasses.replace(self, donor=None, window_size=None)
        return whole.state_bytes(dataclasses.replace(form, unified="keys_and_values"))

    def grow(self, state: Kept, form: CacheFormat, larger: CacheFormat) -> Kept:
        """More slots before those pinned: a ring below its full size has not wrapped."""
        more = self.num_slots(larger) - self.num_slots(form)
        end = self.num_slots(form) - self.num_pinned

        def grown(array):
            empty = jnp.zeros((*array.shape[:3], more, *array.shape[4:]), array.dtype)
            parts = array[:, :, :, :end], empty, array[:, :, :, end:]
            return jnp.concatenate(parts, axis=3)

        return jax.tree.map(grown, state)

    def earliest_rewind(self, form: CacheFormat, written: jax.Array) -> jax.Array:
        """A ring that has wrapped holds what a rewind by `form.slack` needs; else all is there."""
        if self.window_size is None:
            return jnp.zeros_like(written)
        return jnp.where(written <= self.num_slots(form), 0, written - form.slack)

    @property
    def shared_key(self) -> str:
        """Equal for all layers whose heads turn alike."""
        return f"{self.rope}/{self.head_dim}"

    def shared(self, positions: Positions, dtype: Any) -> Rotation:
        """cos and sin of the angles at `positions` [b, t], in at least float32."""
        wide = jnp.promote_types(dtype, jnp.float32)
        return rope.rotation(positions, self.head_dim, **dataclasses.asdict(self.rope), dtype=wide)

    def reads_slots(self, form: CacheFormat) -> bool:
        """Keys of unified layers are made on reading where only values are kept."""
        return self.unified_kv and form.unified == "value"


class View(NamedTuple):
    """Keys and values as a layer attends to them: the cache, or what it held and the new tokens.

    Attributes:
      slots: what is stored.
      positions: int32 [b, s], -1 where a slot is empty.
      in_use: int32 [b], slots of a row from here on are empty; None: all may be in use.
    """

    slots: Slots
    positions: jax.Array
    in_use: Any


def extend(
    spec: KVSpec, state: LayerState, kv: KV, turn: Rotation, step: CacheStep
) -> tuple[View, Kept]:
    """What the new tokens attend to, and the stacked arrays with them written.

    A chunk that a ring has slack for is written first and then read; a longer one would overwrite
    what its first tokens still see, so it attends to the old ring and itself and is written after.
    """
    form, length = step.form, kv.v.shape[1]
    new = _stored(kv, turn, step)
    after = step.length + step.num_new
    highest = jnp.maximum(step.written, after)
    k_scale = kv.k_scale if isinstance(kv, Unified) else None
    kept = _write(spec, state, new, step, after)
    is_ring = spec.window_size is not None
    if not is_ring or length <= form.slack + 1:
        positions = _positions(spec, form, highest, after)
        angles = None if is_ring else step.slots.get(spec.shared_key)
        slots = Slots(kept["v"], state.row, kept.get("k"), kept.get("rotated"), k_scale)
        if angles is not None:
            frequencies = rope.frequencies(spec.head_dim, **dataclasses.asdict(spec.rope))
            per_pair = jnp.asarray(frequencies, angles.cos.dtype)
            slots = slots._replace(turn=angles, frequencies=per_pair)
        return View(slots, positions, None if is_ring else after), kept
    old = _positions(spec, form, step.written, step.length)
    index = jnp.arange(length, dtype=jnp.int32)[None, :]
    fresh = jnp.where(index < step.num_new[:, None], step.length[:, None] + index, -1)

    def behind(rings, chunk):
        ring = jax.lax.dynamic_index_in_dim(rings, state.row, axis=0, keepdims=False)
        return jnp.concatenate([ring, chunk], axis=2)[None]

    both = jax.tree.map(behind, state.arrays, new)
    slots = Slots(both["v"], 0, both.get("k"), both.get("rotated"), k_scale)
    return View(slots, jnp.concatenate([old, fresh], axis=1), None), kept


def _stored(kv: KV, turn: Rotation, step: CacheStep) -> Kept:
    """Keys and values of new tokens in the form that is kept, [b, k, t, width]."""
    key, value = kv.keys_values(turn)
    tensors = {"k": key, "v": value}
    if isinstance(kv, Unified) and step.form.unified != "keys_and_values":
        pairs = turn.cos.shape[-1]
        tensors = {"v": value}
        if step.form.unified == "value_and_rotated" and pairs:
            tensors["rotated"] = rope.turned_part(key, pairs)
    return {name: _quantised(x.swapaxes(1, 2), step.form.dtype) for name, x in tensors.items()}


def _quantised(x: jax.Array, dtype: str) -> Stored:
    if dtype != "int8":
        return Stored(x.astype(dtype))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scales = (jnp.max(jnp.abs(wide), axis=-1) / 127).astype(SCALE_DTYPE)
    divisor = jnp.where(scales == 0, 1, scales.astype(wide.dtype))
    # bfloat16 is within 1/256 of the number, so the largest element is still 127 steps.
    return Stored(jnp.round(wide / divisor[..., None]).astype(jnp.int8), scales)


def _write(spec: KVSpec, state: LayerState, new: Kept, step: CacheStep, after) -> Kept:
    """The stacked arrays with new tokens in their slots; padding and overrun tokens go nowhere."""
    slots, length = spec.num_slots(step.form), next(iter(new.values())).values.shape[2]
    index = jnp.arange(length, dtype=jnp.int32)[None, :]
    positions = step.length[:, None] + index
    at, is_kept = positions, positions < slots
    if spec.window_size is not None:
        ring, pinned = spec.ring_size(step.form), spec.num_pinned
        is_pinned = positions < pinned
        at = jnp.where(is_pinned, ring + positions, (positions - pinned) % ring)
        is_kept = is_pinned | (positions >= after[:, None] - ring)
    at = jnp.where(is_kept & (index < step.num_new[:, None]), at, slots)
    return write(state.arrays, state.row, new, at, slots)


def _positions(spec: KVSpec, form: CacheFormat, written, length) -> jax.Array:
    """int32 [b, slots]: the position that each slot holds, -1 where none is valid."""
    slot = jnp.arange(spec.num_slots(form), dtype=jnp.int32)[None, :]
    if spec.window_size is None:
        return jnp.where(slot < length[:, None], slot, -1)
    ring, pinned = spec.ring_size(form), spec.num_pinned
    newest = written[:, None] - 1 - pinned
    held = newest - (newest - slot) % ring
    held = jnp.where(held >= 0, pinned + held, -1)
    held = jnp.where(slot < ring, held, slot - ring)
    return jnp.where((held >= 0) & (held < length[:, None]), held, -1)

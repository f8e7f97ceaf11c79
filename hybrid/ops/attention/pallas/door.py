"""Whom the kernels serve, and the calls, which load Pallas where it is first needed."""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid.axes import Key, Query, Value
from hybrid.ops.attention.pallas import LANES
from hybrid.ops.attention.request import AttentionRequest
from hybrid.ops.attention.slots import Slots
from hybrid.ops.band import Band
from hybrid.ops.dispatch import Unsupported

MOST_TOKENS = 16  # at once behind a cache
# Of generations with 16 MiB of fast memory, where others have 64 and more: what fits there.
_SMALL_KINDS, _SMALL_HEAD, _SMALL_WINDOW = ("TPU v2", "TPU v3", "TPU v4"), 256, 2**20


def check(request: AttentionRequest) -> None:
    """Serves TPUs, where indices say where tokens stand, also those of a row split over devices."""
    if request.backend != "tpu":
        raise Unsupported("its kernels are compiled for TPUs")
    if request.num_parts > 1:
        if request.query_length % (2 * LANES):
            raise Unsupported(f"a device's two chunks must be multiples of {LANES} tokens")
    elif not request.is_regular:
        raise Unsupported("the band gives explicit positions, blocks need a row's order")
    if request.device_kind in _SMALL_KINDS:
        if request.head_dim > _SMALL_HEAD:
            raise Unsupported(
                f"head_dim {request.head_dim} > {_SMALL_HEAD} on {request.device_kind}"
            )
        slot_bytes = request.head_dim * jnp.dtype(request.dtype).itemsize
        if (request.window_size or 0) * slot_bytes > _SMALL_WINDOW:
            raise Unsupported(f"a window's keys take more than 1 MiB on {request.device_kind}")


def attend(q: Query, k: Key, v: Value, band: Band, **scoring: Any) -> Query:
    """Attention by kernels; arguments and result as `hybrid.ops.attention.attend`."""
    from hybrid.ops.attention.pallas import differentiable  # Pallas takes 0.1 s

    return differentiable.attend(q, k, v, band, **scoring)


def check_few(request: Any) -> None:
    """Serves TPUs, and few new tokens: `backend` and `query_length` of a request."""
    if request.backend != "tpu":
        raise Unsupported("its kernel is compiled for TPUs")
    if request.query_length > MOST_TOKENS:
        raise Unsupported(f"{request.query_length} new tokens, it takes {MOST_TOKENS} at most")


def attend_cached(
    q: Query, slots: Slots, q_positions: jax.Array, kv_positions: jax.Array, **options: Any
) -> Query:
    """A step of decoding; arguments and result as `hybrid.ops.attention.attend_cached`."""
    from hybrid.ops.attention.pallas import decode

    return decode.attend(q, slots, q_positions, kv_positions, **options)


def write(
    stacked: jax.Array, row: jax.Array, new: jax.Array, at: jax.Array, num_slots: int
) -> jax.Array:
    """One array with new tokens in it; as `hybrid.ops.attention.writing.write`."""
    from hybrid.ops.attention.pallas import write

    return write.write(stacked, row, new, at, num_slots)

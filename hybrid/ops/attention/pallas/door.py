"""Whom the kernels serve, and the call, which loads Pallas where it is first needed."""

import jax

from hybrid.axes import Key, Query, Value
from hybrid.ops.attention.pallas import LANES
from hybrid.ops.attention.request import AttentionRequest
from hybrid.ops.band import Band
from hybrid.ops.dispatch import Unsupported


def check(request: AttentionRequest) -> None:
    """Serves TPUs, where indices say where tokens stand, also those of a row split over devices."""
    if request.backend != "tpu":
        raise Unsupported("its kernels are compiled for TPUs")
    if request.num_parts > 1:
        if request.query_length % (2 * LANES):
            raise Unsupported(f"a device's two chunks must be multiples of {LANES} tokens")
    elif not request.is_regular:
        raise Unsupported("the band gives explicit positions, blocks need a row's order")


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
    from hybrid.ops.attention.pallas import differentiable  # Pallas takes 0.1 s

    return differentiable.attend(q, k, v, band, scale=scale, softcap=softcap, sinks=sinks)

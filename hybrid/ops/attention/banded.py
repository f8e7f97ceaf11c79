"""Local attention in blocks: the simple path that one can read in a minute.

Queries in blocks meet only the keys that their window can reach, all blocks at once:

    block i          queries i·c … i·c + c − 1
    its keys         i·c − (w − 1) … i·c + c − 1, in whole blocks of c, each plus the band's offset

Cost and memory are O(t·(w + c)); the gradient is autodiff's. `chunked.py` does the same work one
block at a time, with less memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from hybrid.axes import Key, Query, Value
from hybrid.ops.attention import reference
from hybrid.ops.attention.request import AttentionRequest
from hybrid.ops.band import Band
from hybrid.ops.dispatch import Unsupported


def check(request: AttentionRequest) -> None:
    """Serves windows where indices say where tokens stand."""
    if request.window_size is None:
        raise Unsupported("needs a window: without one it would hold all t × t scores")
    if not request.is_regular:
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
    block_size: int | None = None,
) -> Query:
    """Causal attention over the last `band.window_size` tokens, the query's own included.

    Args: as `hybrid.ops.attention.attend`; `block_size` is c above, by default about w/4.
    Returns: [b, t, n, h] in q's dtype; scores and softmax in at least float32.
    """
    batch, length = q.shape[:2]
    num_keys = length + band.offset  # no query sees those behind
    window = num_keys if band.window_size is None else min(band.window_size, num_keys)
    block = min(block_size or max(16, window // 4), length)
    reach = -(-(window - 1) // block)  # blocks before its own that a query can see
    num_blocks = -(-length // block)

    def own(array):
        padded = _pad(array, 0, num_blocks * block - length)
        return rearrange(padded, "b (i c) ... -> (b i) c ...", c=block)

    def reached(array):
        padded = _pad(array[:, :num_keys], reach * block, num_blocks * block - length)
        first = band.offset + block * np.arange(num_blocks)
        at = first[:, None] + np.arange((reach + 1) * block)[None, :]
        return rearrange(padded[:, at], "b i c ... -> (b i) c ...")

    positions = jnp.broadcast_to(1 + jnp.arange(num_keys)[None], (batch, num_keys))  # 0: padding
    has_segments = band.q_segments is not None
    blocks = Band(
        window_size=window,
        q_positions=own(positions[:, band.offset :]) - 1,
        kv_positions=reached(positions) - 1,
        q_segments=own(band.q_segments) if has_segments else None,
        kv_segments=reached(band.kv_segments) if has_segments else None,
    )
    keys_values = reached(k), reached(v)
    out = reference.attend(own(q), *keys_values, blocks, scale=scale, softcap=softcap, sinks=sinks)
    return rearrange(out, "(b i) c n h -> b (i c) n h", b=batch)[:, :length]


def _pad(array, before, after):
    return jnp.pad(array, [(0, 0), (before, after)] + [(0, 0)] * (array.ndim - 2))

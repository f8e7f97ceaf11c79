"""Local attention in blocks: the simple path that one can read in a minute.

Queries in blocks meet only the keys that their window can reach, all blocks at once:

    block i          queries i·c … i·c + c − 1
    its keys         i·c − (w − 1) … i·c + c − 1, in whole blocks of c

Cost and memory are O(t·(w + c)); the gradient is autodiff's. `chunked.py` does the same work one
block at a time, with less memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from hybrid.axes import Key, Query, Value
from hybrid.ops.attention import reference
from hybrid.ops.attention.support import Request, Unsupported
from hybrid.ops.band import Band


def check(request: Request) -> None:
    """Serves rows that attend to themselves through a window."""
    if request.window_size is None:
        raise Unsupported("needs a window: without one it would hold all t × t scores")
    if not request.is_self:
        raise Unsupported("the band gives explicit positions, blocks need query i to be key i")


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
    window = length if band.window_size is None else min(band.window_size, length)
    block = min(block_size or max(16, window // 4), length)
    reach = -(-(window - 1) // block)  # blocks before its own that a query can see
    num_blocks = -(-length // block)

    def own(array):
        padded = _pad(array, 0, num_blocks * block - length)
        return rearrange(padded, "b (i c) ... -> (b i) c ...", c=block)

    def reached(array):
        padded = _pad(array, reach * block, num_blocks * block - length)
        at = block * np.arange(num_blocks)[:, None] + np.arange((reach + 1) * block)[None, :]
        return rearrange(padded[:, at], "b i c ... -> (b i) c ...")

    position = jnp.broadcast_to(1 + jnp.arange(length)[None], (batch, length))  # 0 is padding
    segments = None if band.q_segments is None else band.q_segments
    blocks = Band(
        window_size=window,
        q_positions=own(position) - 1,
        kv_positions=reached(position) - 1,
        q_segments=None if segments is None else own(segments),
        kv_segments=None if segments is None else reached(band.kv_segments),
    )
    keys_values = reached(k), reached(v)
    out = reference.attend(own(q), *keys_values, blocks, scale=scale, softcap=softcap, sinks=sinks)
    return rearrange(out, "(b i) c n h -> b (i c) n h", b=batch)[:, :length]


def _pad(array, before, after):
    return jnp.pad(array, [(0, 0), (before, after)] + [(0, 0)] * (array.ndim - 2))

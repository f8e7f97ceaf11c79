"""The oracle: dense masked attention, a dozen lines that every other path is tested against.

It holds all t × s scores, so it is for tests and for shapes that no other path serves.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.axes import Key, Query, Value
from hybrid.ops.band import Band


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
    """softmax(q·kᵀ·scale, masked by `band`)·v, with query head i reading KV head i // g.

    Args:
      q: [b, t, n, h].  k, v: [b, s, k, h], n a multiple of k.
      band: which keys each query sees.
      scale: multiplies the scores before `softcap` (scores become softcap·tanh(scores/softcap)).
      sinks: [n], a score of each head that joins the softmax after both and has no value.
    Returns: [b, t, n, h] in q's dtype; scores and softmax in at least float32. A query that sees
      no key gives zeros.
    """
    num_kv_heads = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q_grouped = rearrange(q, "b t (k g) h -> b k g t h", k=num_kv_heads)
    scores = jnp.einsum("bkgth,bskh->bkgts", q_grouped, k, preferred_element_type=wide) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    seen = band.visible(0, q.shape[1], 0, k.shape[1])[:, None, None]
    peak = jnp.max(scores, axis=-1, keepdims=True, where=seen, initial=-jnp.inf)
    if sinks is not None:
        sink = rearrange(sinks.astype(wide), "(k g) -> 1 k g 1 1", k=num_kv_heads)
        peak = jnp.maximum(peak, sink)
    weights = jnp.where(seen, jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sink - peak)
    weights = weights / jnp.where(total == 0, 1, total)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v.astype(wide))
    return rearrange(out, "b t k g h -> b t (k g) h").astype(q.dtype)

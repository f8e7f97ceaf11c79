"""Grouped-query attention, local (`L`) or global (`G`): one module, two specs.

    q = rope(rms(x·Wq, q_norm))      k = rope(rms(x·Wk, k_norm))      v = rms(x·Wv)
    y = softmax(q·kᵀ over the band)·v · Wo

The scores have scale 1: the query norm's weight carries it. A local layer sees the last
`window_size` tokens; a global one sees all earlier ones, turns only a fraction of its rotary
pairs, and may share one projection between keys and values (`kv.py`).
Source: Gemma 4 (2607.02770), sec. 2; QK-norm of 2302.05442.
"""

import jax
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.mixers.kv import KV, Separate, Unified
from hybrid.mixers.placement import Placement
from hybrid.model_config import ModelConfig
from hybrid.modules import Linear, RMSNorm
from hybrid.ops import rope
from hybrid.ops.attention import Request, attend
from hybrid.ops.band import Band
from hybrid.ops.norm import rms_norm
from hybrid.pattern import LayerSpec


class Attention(nnx.Module):
    """The attention of one layer; parameters as its spec says."""

    def __init__(self, spec: LayerSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.spec, self.config = spec, config
        width, heads, head_dim = config.d_model, spec.num_heads, spec.head_dim
        kv_shape = (width, spec.num_kv_heads, head_dim)
        kv_names = (axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM)
        self.q_proj = Linear(
            (width, heads, head_dim),
            (axes.EMBED, axes.HEADS, axes.HEAD_DIM),
            config=config,
            rngs=rngs,
        )
        self.k_proj = Linear(kv_shape, kv_names, config=config, rngs=rngs)
        if not spec.unified_kv:
            self.v_proj = Linear(kv_shape, kv_names, config=config, rngs=rngs)
        self.o_proj = Linear(
            (heads, head_dim, width),
            (axes.HEADS, axes.HEAD_DIM, axes.EMBED),
            config=config,
            rngs=rngs,
            num_axes=2,
        )
        # With scores of scale 1, unit queries and keys would start at a variance of head_dim.
        start = head_dim**-0.5 if config.init == "scaled" else 1.0
        self.q_norm = RMSNorm(head_dim, axes.HEAD_DIM, config=config, start=start)
        self.k_norm = RMSNorm(head_dim, axes.HEAD_DIM, config=config)

    def __call__(self, x: Hidden, placement: Placement) -> Hidden:
        turn = placement.rotation(self.spec)
        q = rope.apply(self.q_norm(self.q_proj(x)), turn)
        k, v = self.project_kv(x, turn).keys_values(turn)
        out = attend(
            q,
            k,
            v,
            Band.of_row(self.spec.window_size, placement.segment_ids),
            softcap=self.config.attention_softcap or None,
            implementation=self.config.attention,
        )
        return self.o_proj(out)

    def project_kv(self, x: Hidden, turn: rope.Rotation) -> KV:
        """The keys and values of x [b, t, d], whose positions have the angles `turn`."""
        raw = self.k_proj(x)
        if self.spec.unified_kv:
            return Unified(rms_norm(raw, None, eps=self.config.norm_eps), self.k_norm.scale[...])
        value = rms_norm(self.v_proj(x), None, eps=self.config.norm_eps)
        return Separate(rope.apply(self.k_norm(raw), turn), value)


def request(spec: LayerSpec, config: ModelConfig, length: int) -> Request:
    """What a layer asks of the door for rows of `length` tokens, on the default backend."""
    return Request(
        kind=spec.kind,
        backend=jax.default_backend(),
        dtype=config.dtype,
        head_dim=spec.head_dim,
        query_length=length,
        key_length=length,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        window_size=spec.window_size,
        has_segments=True,
        softcap=config.attention_softcap or None,
    )

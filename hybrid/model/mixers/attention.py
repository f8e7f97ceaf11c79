"""Grouped-query attention, local (`L`) or global (`G`): one module, two specs.

    q = rope(rms(x·Wq, q_norm))      k = rope(rms(x·Wk, k_norm))      v = rms(x·Wv)
    y = softmax(q·kᵀ over the band)·v · Wo

The scores have scale 1 unless `attention_scale` says otherwise: the query norm's weight carries
it. A local layer sees the last `window_size` tokens; a global one sees all earlier ones, turns
only a fraction of its rotary pairs, and may share one projection between keys and values
(`kv.py`). A layer that reuses keys and values takes its donor's, normed and rotated as they are.
Source: Gemma 4 (2607.02770), sec. 2; QK-norm of 2302.05442.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear, RMSNorm, param_dtype
from hybrid.model.mixers import kv_cache
from hybrid.model.mixers.kv import KV, Separate, Unified
from hybrid.model.mixers.kv_cache import Kept, LayerCache, View
from hybrid.model.mixers.placement import Placement
from hybrid.model.pattern import LayerSpec
from hybrid.ops import dispatch, rope
from hybrid.ops.attention import AttentionRequest, attend, attend_cached
from hybrid.ops.band import Band
from hybrid.ops.norm import rms_norm

_KV_NAMES = (axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM)


class Attention(nnx.Module):
    """The attention of one layer; parameters as its spec says."""

    init_state = staticmethod(kv_cache.allocate)

    def __init__(self, spec: LayerSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.spec, self.config = spec, config
        width, heads, head_dim = config.d_model, spec.num_heads, spec.head_dim
        self.q_proj = Linear(
            (width, heads, head_dim),
            (axes.EMBED, axes.HEADS, axes.HEAD_DIM),
            config=config,
            rngs=rngs,
        )
        if spec.owns_kv:
            shape, names = (width, spec.num_kv_heads, head_dim), _KV_NAMES
            self.k_proj = Linear(shape, names, config=config, rngs=rngs)
            if not spec.unified_kv:
                self.v_proj = Linear(shape, names, config=config, rngs=rngs)
        self.o_proj = Linear(
            (heads, head_dim, width),
            (axes.HEADS, axes.HEAD_DIM, axes.EMBED),
            config=config,
            rngs=rngs,
            num_axes=2,
        )
        if config.qk_norm:
            # Unit queries and keys would give scores of variance head_dim · scale².
            scaled = head_dim**-0.5 / config.attention_scale
            start = scaled if config.init == "scaled" else 1.0
            self.q_norm = RMSNorm(head_dim, axes.HEAD_DIM, config=config, start=start)
            if spec.owns_kv:
                self.k_norm = RMSNorm(head_dim, axes.HEAD_DIM, config=config)
        if config.attention_sinks:
            self.sinks = nnx.Param(jnp.zeros((heads,), param_dtype(config)), axes=(axes.HEADS,))

    def __call__(
        self,
        x: Hidden,
        placement: Placement,
        donated: KV | View | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Hidden, KV | View, Kept | None]:
        """The layer's result, the keys and values it read, and its cache with x's tokens in it.

        Args:
          donated: what another layer read, for one that owns no keys and values.
          cache: with `placement.step`, the layer's tokens so far.
        """
        config, turn = self.config, placement.rotation(self.spec)
        q = self.q_proj(x)
        q = rope.apply(self.q_norm(q) if config.qk_norm else q, turn)
        kept, seen = None, donated
        if self.spec.owns_kv:
            seen = self.project_kv(x, turn)
            if placement.step is not None and cache is not None:
                seen, kept = kv_cache.extend(self.spec, cache, seen, turn, placement.step)
        assert seen is not None, "a layer that owns no keys and values needs its donor's"
        in_cache = isinstance(seen, View)
        out = (self._attend_to_cache if in_cache else self._attend_to_row)(q, seen, placement)
        return self.o_proj(out), seen, kept

    def _attend_to_row(self, q, kv, placement: Placement):
        band = Band.of_row(self.spec.window_size, placement.segment_ids)
        key, value = kv.keys_values(placement.rotation(self.spec))
        name = self.config.attention
        return attend(q, key, value, band, implementation=name, **self._scoring())

    def _attend_to_cache(self, q, view, placement: Placement):
        pairs = rope.num_rotated_pairs(self.spec.head_dim, self.spec.rope.fraction)
        return attend_cached(
            view.queries(q, pairs),
            view.read(pairs),
            placement.positions,
            view.positions,
            in_use=view.in_use,
            window_size=self.spec.window_size,
            **self._scoring(),
        )

    def _scoring(self) -> dict[str, Any]:
        """What both doors to attention do to scores."""
        return {
            "scale": self.config.attention_scale,
            "softcap": self.config.attention_softcap or None,
            "sinks": self.sinks[...] if self.config.attention_sinks else None,
        }

    def project_kv(self, x: Hidden, turn: rope.Rotation) -> KV:
        """The keys and values of x [b, t, d], whose positions have the angles `turn`."""
        raw, norm = self.k_proj(x), {"eps": self.config.norm_eps}
        if self.spec.unified_kv:
            scale = self.k_norm.offset + self.k_norm.scale[...]
            return Unified(rms_norm(raw, None, **norm), scale)
        key = self.k_norm(raw) if self.config.qk_norm else raw
        value = self.v_proj(x)
        value = rms_norm(value, None, **norm) if self.config.v_norm else value
        return Separate(rope.apply(key, turn), value)


def request(spec: LayerSpec, config: ModelConfig, length: int) -> AttentionRequest:
    """The request that a layer makes for rows of `length` tokens."""
    return AttentionRequest(
        backend=dispatch.backend(),
        dtype=config.dtype,
        head_dim=spec.head_dim,
        query_length=length,
        key_length=length,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        window_size=spec.window_size,
        has_segments=True,
        softcap=config.attention_softcap or None,
        has_sinks=config.attention_sinks,
    )

"""Grouped-query attention, local (`L`) or global (`G`): one module, two letters.

    q = rope(rms(x·Wq, q_norm))      k = rope(rms(x·Wk, k_norm))      v = rms(x·Wv)
    y = softmax(q·kᵀ over the band)·v · Wo

The scores have scale 1 unless `attention_scale` says otherwise: the query norm's weight carries
it. A local layer sees the last `window_size` tokens; a global one sees all earlier ones, turns
only a fraction of its rotary pairs, and may share one projection between keys and values
(`kv.py`). A layer that reuses keys and values takes its donor's, normed and rotated as they are.
Source: Gemma 4 (2607.02770), sec. 2; QK-norm of 2302.05442.

Two switches for comparison. `attention_gate` scales what a head gives by sigmoid(x·Wg), a number a
head or one an element (2505.06708, its best place, G1). With `local_attention: chunk` a local
layer sees its document's chunk of `window_size` tokens instead of the last ones (iRoPE's local
kind, Llama 4); `ops/chunks.py` makes a band of it.

Read next: `kv_cache.py`, the state of an attention.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from hybrid import axes
from hybrid.axes import Hidden, Query
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear, RMSNorm, param_dtype
from hybrid.model.mixers import kv_cache
from hybrid.model.mixers.kv import KV, Rope, Separate, Unified
from hybrid.model.mixers.kv_cache import Kept, KVSpec, View
from hybrid.model.mixers.protocol import LayerState, Letter, Look, Placement
from hybrid.ops import chunks, dispatch, rope
from hybrid.ops.attention import AttentionRequest, attend, attend_cached, attend_split
from hybrid.ops.band import Band
from hybrid.ops.norm import rms_norm

_Q_NAMES = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
_KV_NAMES = (axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM)
GATES = {"head": "a head", "element": "an element"}


@dataclasses.dataclass(frozen=True)
class AttentionSpec(KVSpec):
    """The attention of one layer: `KVSpec`, and its query heads."""

    SPLITS_TIME: ClassVar[bool] = True

    num_heads: int
    gate: str = dataclasses.field(default="none", kw_only=True)

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> "Attention":
        """The module of one layer."""
        return Attention(self, config, rngs=rngs)

    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """2·d·h·(n for queries, n for the output, k for each tensor of keys and values), the same
        for a gate, and 4·n·h for each query and key that meet: for the score and for the value."""
        tensors = (1 if self.unified_kv else 2) if self.owns_kv else 0
        heads = 2 * self.num_heads + tensors * self.num_kv_heads
        keys = self.mean_visible_keys(context)
        gates = {"none": 0, "head": 1, "element": self.head_dim}[self.gate] * self.num_heads
        weights = 2 * config.d_model * (self.head_dim * heads + gates)
        return weights, 4 * self.num_heads * self.head_dim * keys

    def mean_visible_keys(self, context: int) -> float:
        """Keys that a token may see, averaged over positions 0 … context - 1."""
        if self.chunk_size:
            return mean_chunk_keys(self.chunk_size, context)
        return mean_visible_keys(self.window_size, context)

    @property
    def reach(self) -> int | None:
        """The window."""
        return self.window_size

    def request(self, config: ModelConfig, length: int) -> AttentionRequest | None:
        """The request of packed rows of `length` tokens, on the default backend."""
        return AttentionRequest(
            backend=dispatch.backend(),
            dtype=config.dtype,
            head_dim=self.head_dim,
            query_length=length,
            key_length=length,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            window_size=self.window_size,
            has_segments=True,
            softcap=config.attention_softcap or None,
            has_sinks=config.attention_sinks,
            device_kind=dispatch.device_kind(),
        )

    def summary(self) -> str:
        """What is seen, heads, form of keys and values, rotary encoding."""
        kept = "one tensor for K and V" if self.unified_kv else "K and V"
        source = kept if self.owns_kv else f"K and V of layer {self.donor}"
        turns = f"rope {self.rope.theta:,.0f}"
        turns += "" if self.rope.fraction == 1 else f" on {self.rope.fraction:.0%} of the pairs"
        turns += "" if self.rope.factor == 1 else f", frequencies / {self.rope.factor:g}"
        heads = f"{self.num_heads} heads over {self.num_kv_heads} of keys, head_dim {self.head_dim}"
        if self.gate != "none":
            heads += f", a gate {GATES[self.gate]}"
        return f"{self.sight()}, {heads}, {source}, {turns}"

    def sight(self) -> str:
        """What a token sees, in words."""
        kind = "chunk" if self.chunk_size else "window"
        return f"{kind} {self.window_size:,}" if self.window_size else "whole context"

    def facts(self) -> Iterator[str]:
        """Heads, keys and values, work and memory."""
        window = self.window_size
        yield f"sees {window} tokens" if window else "sees all earlier tokens"
        yield from self.facts_of_heads()
        yield f"work O({'t·w' if window else 't²'})"
        yield f"keeps {'w' if window else 'all t'} tokens"

    def facts_of_heads(self) -> Iterator[str]:
        """The lines of `facts` between what is seen and what that costs."""
        plural = "" if self.num_kv_heads == 1 else "s"
        yield f"{self.num_heads} heads of {self.head_dim}"
        yield f"{self.num_kv_heads} KV head{plural}" + (", K = V" if self.unified_kv else "")

    def picture(self, num_tokens: int, window_size: int) -> np.ndarray:
        """The band of a short row."""
        window = min(self.window_size, window_size) if self.window_size else None
        seen = np.asarray(Band.of_row(window).visible(0, num_tokens, 0, num_tokens))[0]
        if window and self.chunk_size:
            chunk = np.arange(num_tokens) // window
            seen = seen & (chunk[:, None] == chunk)
        return seen


def mean_visible_keys(window_size: int | None, context: int) -> float:
    """Keys that a token may see, averaged over positions 0 … context-1.

    Position i sees min(i + 1, w) keys, so with w at most T the mean is w·(T - (w - 1)/2) / T.

    >>> mean_visible_keys(4, 8), mean_visible_keys(None, 8)
    (3.25, 4.5)
    """
    window = min(window_size or context, context)
    return window * (2 * context - window + 1) / (2 * context)


def mean_chunk_keys(size: int, context: int) -> float:
    """The same where a token sees its own chunk of `size` tokens: position i sees i mod size + 1.

    >>> mean_chunk_keys(4, 8), mean_chunk_keys(4, 6)
    (2.5, 2.1666666666666665)
    """
    whole, rest = divmod(context, size)
    return (whole * size * (size + 1) + rest * (rest + 1)) / (2 * context)


# --- Letters ---------------------------------------------------------------------------------


def _local(config: ModelConfig, slot: int) -> AttentionSpec:
    return AttentionSpec(
        window_size=window_of_slot(config, slot, "L"),
        in_chunks=config.local_attention == "chunk",
        **local_heads(config),
    )


def window_of_slot(config: ModelConfig, slot: int, letter: str) -> int:
    """The window of a letter of the period.  Raises: ConfigError where it has none."""
    window = config.window_sizes[slot] if config.window_sizes else config.window_size
    if window < 1:
        problem = f"must be at least 1 at an {letter}"
        raise ConfigError("window_sizes", problem, config.window_sizes)
    return window


def check_no_window(config: ModelConfig, slot: int, letter: str) -> None:
    """Raises: ConfigError where a letter without a window is given one."""
    if config.window_sizes and config.window_sizes[slot]:
        raise ConfigError("window_sizes", f"must be 0 at a {letter}", config.window_sizes)


def local_heads(config: ModelConfig) -> dict[str, Any]:
    """Heads, gate and rotary encoding of local layers."""
    return {
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope": Rope(config.rope_theta, config.rope_fraction),
        "unified_kv": False,
        "gate": config.attention_gate,
    }


def _global(config: ModelConfig, slot: int) -> AttentionSpec:
    check_no_window(config, slot, "G")
    turns = config.global_rope_theta, config.global_rope_fraction, config.global_rope_factor
    return AttentionSpec(
        window_size=None,
        num_heads=config.num_heads,
        num_kv_heads=config.num_global_kv_heads or config.num_kv_heads,
        head_dim=config.global_head_dim or config.head_dim,
        rope=Rope(*turns),
        unified_kv=config.unified_kv,
        gate=config.attention_gate,
    )


LOCAL = Letter(
    letter="L",
    kind="local",
    title="local attention",
    spec=_local,
    look=Look("#2f6fde", "#e9f0fd", ("#6f9df0", "#12357c"), line_style=(0, (4, 1.5))),
    citation="Longformer (2004.05150)",
)
GLOBAL = Letter(
    letter="G",
    kind="global",
    title="global attention",
    spec=_global,
    look=Look("#e07b1a", "#fdf0e3", ("#f0a04b", "#7d3f06")),
    citation="Attention Is All You Need (1706.03762); p-RoPE (2410.06205)",
)


# --- The module ------------------------------------------------------------------------------


class Projections(nnx.Module):
    """Queries, keys and values of the stream, normed and rotated."""

    def __init__(self, spec: AttentionSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.spec, self.config = spec, config
        width, heads, head_dim = config.d_model, spec.num_heads, spec.head_dim
        linear = functools.partial(Linear, config=config, rngs=rngs)
        self.q_proj = linear((width, heads, head_dim), _Q_NAMES)
        if spec.owns_kv:
            shape = (width, spec.num_kv_heads, head_dim)
            self.k_proj = linear(shape, _KV_NAMES)
            if not spec.unified_kv:
                self.v_proj = linear(shape, _KV_NAMES)
        if config.qk_norm:
            # Unit queries and keys would give scores of variance head_dim · scale².
            scaled = head_dim**-0.5 / config.attention_scale
            start = scaled if config.init == "scaled" else 1.0
            self.q_norm = RMSNorm(head_dim, axes.HEAD_DIM, config=config, start=start)
            if spec.owns_kv:
                self.k_norm = RMSNorm(head_dim, axes.HEAD_DIM, config=config)

    def project_q(self, x: Hidden, turn: rope.Rotation) -> Query:
        """The queries of x [b, t, d], whose positions have the angles `turn`."""
        q = checkpoint_name(self.q_proj(x), "qkv")
        return rope.apply(self.q_norm(q) if self.config.qk_norm else q, turn)

    def project_kv(self, x: Hidden, turn: rope.Rotation) -> KV:
        """The keys and values of x [b, t, d], whose positions have the angles `turn`."""
        raw, norm = checkpoint_name(self.k_proj(x), "qkv"), {"eps": self.config.norm_eps}
        if self.spec.unified_kv:
            scale = self.k_norm.offset + self.k_norm.scale[...]
            return Unified(rms_norm(raw, None, **norm), scale)
        key = self.k_norm(raw) if self.config.qk_norm else raw
        value = checkpoint_name(self.v_proj(x), "qkv")
        value = rms_norm(value, None, **norm) if self.config.v_norm else value
        return Separate(rope.apply(key, turn), value)


class Attention(Projections):
    """The attention of one layer; parameters as its spec says."""

    def __init__(self, spec: AttentionSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(spec, config, rngs=rngs)
        shape = (spec.num_heads, spec.head_dim, config.d_model)
        o_names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        linear = functools.partial(Linear, config=config, rngs=rngs)
        self.o_proj = linear(shape, o_names, num_axes=2)
        if spec.gate != "none":
            rank = 3 if spec.gate == "element" else 2
            of_gate = (config.d_model, spec.num_heads, spec.head_dim)
            self.output_gate = linear(of_gate[:rank], _Q_NAMES[:rank])
        if config.attention_sinks:
            sinks = jnp.zeros((spec.num_heads,), param_dtype(config))
            self.sinks = nnx.Param(sinks, axes=(axes.HEADS,))

    def __call__(
        self,
        x: Hidden,
        placement: Placement,
        donated: KV | View | None = None,
        state: LayerState | None = None,
    ) -> tuple[Hidden, KV | View, Kept | None]:
        """The layer's result, the keys and values it read, and its state with x's tokens in it.

        Args:
          donated: what another layer read, for one that owns no keys and values.
          state: with `placement.step`, the layer's tokens so far.
        """
        out, seen, kept = self.mix(x, placement, donated, state)
        return self.o_proj(self.gated(out, x)), seen, kept

    def mix(
        self, x: Hidden, placement: Placement, donated: KV | View | None, state: LayerState | None
    ) -> tuple[Query, KV | View, Kept | None]:
        """The same before gate and output projection."""
        turn = placement.shared[self.spec.shared_key]
        q = self.project_q(x, turn)
        kept, seen = None, donated
        if self.spec.owns_kv:
            seen = self.project_kv(x, turn)
            if placement.step is not None and state is not None:
                seen, kept = kv_cache.extend(self.spec, state, seen, turn, placement.step)
        assert seen is not None, "a layer that owns no keys and values needs its donor's"
        if isinstance(seen, View):
            return self.attend_to_cache(q, seen, placement), seen, kept
        return self.attend_to_row(q, seen, placement), seen, kept

    def gated(self, out: Query, x: Hidden) -> Query:
        """`out` of each head times its gate, which the layer's input sets."""
        if self.spec.gate == "none":
            return out
        gate = jax.nn.sigmoid(self.output_gate(x))
        return out * (gate if gate.ndim == out.ndim else gate[..., None])

    def attend_to_row(self, q: Query, kv: KV, placement: Placement) -> Query:
        """What queries of whole rows read of them."""
        if placement.num_parts > 1:
            return self._attend_to_split_row(q, kv, placement)
        band = Band.of_row(self.spec.window_size, self._segments(placement))
        key, value = kv.keys_values(placement.shared[self.spec.shared_key])
        name = self.config.attention
        return attend(q, key, value, band, implementation=name, **self.scoring())

    def _attend_to_split_row(self, q, kv, placement: Placement):
        def keys_values(kv, positions):
            return kv.keys_values(self.spec.shared(positions, kv.v.dtype))

        return attend_split(
            q,
            kv,
            keys_values,
            placement.positions,
            self._segments(placement),
            window_size=self.spec.window_size,
            implementation=self.config.attention,
            **self.scoring(),
        )

    def attend_to_cache(self, q: Query, view: View, placement: Placement) -> Query:
        """What queries of new tokens read of the cache and of each other."""
        positions = placement.positions, view.positions
        if size := self.spec.chunk_size:
            positions = chunks.apart(positions[0], size), chunks.apart(positions[1], size)
        return attend_cached(
            q,
            view.slots,
            *positions,
            in_use=view.in_use,
            window_size=self.spec.window_size,
            **self.scoring(),
        )

    def _segments(self, placement: Placement):
        size = self.spec.chunk_size
        return chunks.segments(placement.positions, size) if size else placement.segment_ids

    def scoring(self) -> dict[str, Any]:
        """What every door to attention does to scores."""
        return {
            "scale": self.config.attention_scale,
            "softcap": self.config.attention_softcap or None,
            "sinks": self.sinks[...] if self.config.attention_sinks else None,
        }

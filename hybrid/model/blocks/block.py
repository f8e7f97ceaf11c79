"""One layer: norm, mixer, norm, residual; norm, feed-forward, norm, residual; output scalar.

    x = x + post_mixer_norm(mixer(pre_mixer_norm(x)))
    x = x + post_ffn_norm(feed_forward(pre_ffn_norm(x)))
    x = x + layer_embedding(x)                              where the model has them
    x = x * layer_scalar

With experts the second line's branch is post_dense_norm(feed_forward(...)) + experts(x).

The norm after each branch sets how loud the branch is, so that is where depth is accounted for
at the start: its weight begins at (branches·num_layers)^-0.5 and the stream's variance stays near
1 to 2.
Source: Gemma 4 (2607.02770), sec. 2.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from hybrid import axes
from hybrid.axes import Hidden, Mask, Value
from hybrid.model.blocks.experts import Experts
from hybrid.model.blocks.layer_embedding import LayerEmbedding
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear, RMSNorm, param_dtype
from hybrid.model.mixers.kv import KV
from hybrid.model.mixers.kv_cache import View
from hybrid.model.mixers.protocol import LayerState, Placement
from hybrid.model.pattern import LayerSpec
from hybrid.ops.backward_order import weights_first
from hybrid.ops.feed_forward import gated_gelu
from hybrid.ops.router import RouterSums

Donation = KV | View | Value  # what a layer gives to those that name it their donor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerInputs:
    """What every layer reads besides the stream.

    Attributes:
      placement: positions and documents of the tokens.
      embedded: [b, t, d], the tokens' scaled embedding, and
      embedding_norm: [p], the norm's weight that all layers share: for per-layer embeddings only.
      counted: the tokens that count in the router's statistics; None: all.
    """

    placement: Placement
    embedded: Any = None
    embedding_norm: Any = None
    counted: Mask | None = None


class LayerOutputs(NamedTuple):
    """The stream after a layer, what it can donate, its router's sums, its state."""

    x: Hidden
    kv: Donation | None
    router: RouterSums | None
    state: dict[str, Any] | None


class Block(nnx.Module):
    """A layer of the stack, as its spec says."""

    def __init__(self, spec: LayerSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        branches = 3 if config.layer_embedding_dim else 2
        start = (branches * config.num_layers) ** -0.5 if config.init == "scaled" else 1.0

        def norm(start: float = 1.0) -> RMSNorm:
            return RMSNorm(config.d_model, axes.EMBED, config=config, start=start)

        self.pre_mixer_norm = norm()
        self.mixer = spec.mixer.build(config, rngs)
        self.post_mixer_norm = norm(start)
        self.pre_ffn_norm = norm()
        self.feed_forward = FeedForward(spec.ffn_dim, config, rngs=rngs)
        self.post_ffn_norm = norm(start)
        if spec.experts:
            self.post_dense_norm = norm()
            self.experts = Experts(spec.experts, config, rngs=rngs)
        if config.layer_embedding_dim:
            self.layer_embedding = LayerEmbedding(config, rngs=rngs, start=start)
        if config.layer_scalar != "none":
            self.layer_scalar = nnx.Param(jnp.ones((), param_dtype(config)), axes=())

    def __call__(
        self,
        x: Hidden,
        inputs: LayerInputs,
        donated: Donation | None = None,
        state: LayerState | None = None,
    ) -> LayerOutputs:
        """donated, state: as the mixer takes them."""
        normed = self.pre_mixer_norm(x)
        mixed, kv, kept = self.mixer(normed, inputs.placement, donated, state)
        x = x + self.post_mixer_norm(mixed)
        branch, router = self._feed_forward(x, inputs.counted)
        x = x + self.post_ffn_norm(branch)
        if self.config.layer_embedding_dim:
            x = x + self.layer_embedding(x, inputs.embedded, inputs.embedding_norm)
        return LayerOutputs(self._scaled(x), kv, router, kept)

    def _feed_forward(self, x, counted):
        dense = self.feed_forward(checkpoint_name(self.pre_ffn_norm(x), "ffn_in"))
        if not self.config.num_experts:
            return dense, None
        with jax.named_scope("experts"):
            routed, sums = self.experts(x, counted)
        return self.post_dense_norm(dense) + routed, sums

    def _scaled(self, x):
        if self.config.layer_scalar == "none":
            return x
        scalar = self.layer_scalar[...]
        if self.config.layer_scalar == "fixed":
            scalar = jax.lax.stop_gradient(scalar)
        return x * scalar.astype(x.dtype)


class FeedForward(nnx.Module):
    """down(gelu(x·gate) · (x·up)), `ffn_dim` wide.

    Source: GLU variants (2002.05202), GEGLU with the tanh form of GELU, as in Gemma.
    """

    def __init__(self, ffn_dim: int, config: ModelConfig, *, rngs: nnx.Rngs):
        wide, narrow = (config.d_model, ffn_dim), (ffn_dim, config.d_model)
        self.remat = config.remat
        self.gate_proj = Linear(wide, (axes.EMBED, axes.FFN), config=config, rngs=rngs)
        self.up_proj = Linear(wide, (axes.EMBED, axes.FFN), config=config, rngs=rngs)
        self.down_proj = Linear(narrow, (axes.FFN, axes.EMBED), config=config, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        parts = (self.gate_proj, self.up_proj, self.down_proj)
        if any(linear.is_adapted for linear in parts):  # the op with its own backward knows none
            inner = jax.nn.gelu(self.gate_proj(x), approximate=True) * self.up_proj(x)
            return self.down_proj(inner)
        kernels = tuple(linear.kernel[...].astype(x.dtype) for linear in parts)
        if self.remat != "none":
            kernels, x = weights_first(kernels, x)
        return gated_gelu(x, *kernels)

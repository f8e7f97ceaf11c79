"""One layer: norm, mixer, norm, residual; norm, feed-forward, norm, residual; output scalar.

    x = x + post_mixer_norm(mixer(pre_mixer_norm(x)))
    x = x + post_ffn_norm(feed_forward(pre_ffn_norm(x)))
    x = x * layer_scalar

The norm after each branch sets how loud the branch is, so that is where depth is accounted for
at the start: its weight begins at (2·num_layers)^-0.5 and the stream's variance stays near 1 to 2.
Source: Gemma 4 (2607.02770), sec. 2.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.blocks.feed_forward import FeedForward
from hybrid.mixers import MIXERS
from hybrid.mixers.placement import Placement
from hybrid.model_config import ModelConfig
from hybrid.modules import RMSNorm, param_dtype
from hybrid.pattern import LayerSpec


class Block(nnx.Module):
    """A layer of the stack, as its spec says."""

    def __init__(self, spec: LayerSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.train_layer_scalar = config.train_layer_scalar
        start = (2 * config.num_layers) ** -0.5 if config.init == "scaled" else 1.0

        def norm(start: float = 1.0) -> RMSNorm:
            return RMSNorm(config.d_model, axes.EMBED, config=config, start=start)

        self.pre_mixer_norm = norm()
        self.mixer = MIXERS[spec.letter](spec, config, rngs=rngs)
        self.post_mixer_norm = norm(start)
        self.pre_ffn_norm = norm()
        self.feed_forward = FeedForward(spec.ffn_dim, config, rngs=rngs)
        self.post_ffn_norm = norm(start)
        self.layer_scalar = nnx.Param(jnp.ones((), param_dtype(config)), axes=())

    def __call__(self, x: Hidden, placement: Placement) -> Hidden:
        x = x + self.post_mixer_norm(self.mixer(self.pre_mixer_norm(x), placement))
        x = x + self.post_ffn_norm(self.feed_forward(self.pre_ffn_norm(x)))
        scalar = self.layer_scalar[...]
        if not self.train_layer_scalar:
            scalar = jax.lax.stop_gradient(scalar)
        return x * scalar.astype(x.dtype)

"""The gated feed-forward: down(gelu(x·gate) · (x·up)).

Source: GLU variants (2002.05202), GEGLU with the tanh form of GELU, as in Gemma.
"""

import jax
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear
from hybrid.ops.feed_forward import gated_gelu


class FeedForward(nnx.Module):
    """Gate, up and down kernels of one layer, `ffn_dim` wide."""

    def __init__(self, ffn_dim: int, config: ModelConfig, *, rngs: nnx.Rngs):
        wide, narrow = (config.d_model, ffn_dim), (ffn_dim, config.d_model)
        self.gate_proj = Linear(wide, (axes.EMBED, axes.FFN), config=config, rngs=rngs)
        self.up_proj = Linear(wide, (axes.EMBED, axes.FFN), config=config, rngs=rngs)
        self.down_proj = Linear(narrow, (axes.FFN, axes.EMBED), config=config, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        parts = (self.gate_proj, self.up_proj, self.down_proj)
        if any(linear.is_adapted for linear in parts):  # the op with its own backward knows none
            inner = jax.nn.gelu(self.gate_proj(x), approximate=True) * self.up_proj(x)
            return self.down_proj(inner)
        return gated_gelu(x, *(linear.kernel[...].astype(x.dtype) for linear in parts))

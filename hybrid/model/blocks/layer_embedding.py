"""Per-layer embeddings: each layer has a small embedding of every token, added behind a gate.

    token    = embedding[tok]·√p                          the layer's own table, [v, p]
    context  = rms((e·W_context)·d^−½, w)                 e: the scaled input embedding; w is shared
    y        = rms((gelu(x·W_gate) · (context + token)·2^−½)·W_out)

Tables hold most of the parameters of such a model and cost a lookup only. A layer's table is a
leaf of its own: a scan then slices it and its gradient like any kernel, and no [b, t, layers, p]
array exists.
Source: Gemma 4 (2607.02770), E2B and E4B; first in Gemma 3n.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden, Tokens
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear, RMSNorm, param_dtype
from hybrid.ops.embedding import lookup
from hybrid.ops.norm import rms_norm


class LayerEmbedding(nnx.Module):
    """The per-layer embedding of one layer."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, start: float = 1.0):
        self.norm = {"eps": config.norm_eps, "offset": config.norm_offset}
        size, width = config.layer_embedding_dim, config.d_model
        shape = (config.vocab_size, size)
        values = size**-0.5 * jax.random.normal(rngs.params(), shape, param_dtype(config))
        self.embedding = nnx.Param(values, axes=(axes.VOCAB, axes.LAYER_EMBED))
        into, out = (axes.EMBED, None), (None, axes.EMBED)
        self.context_proj = Linear((width, size), into, config=config, rngs=rngs)
        self.gate_proj = Linear((width, size), into, config=config, rngs=rngs)
        self.out_proj = Linear((size, width), out, config=config, rngs=rngs)
        self.post_norm = RMSNorm(width, axes.EMBED, config=config, start=start)

    def __call__(
        self, x: Hidden, tokens: Tokens, embedded: Hidden, norm_scale: jax.Array
    ) -> Hidden:
        """What the layer adds to its stream.

        Args:
          x: [b, t, d], the stream.  tokens: int32 [b, t].
          embedded: [b, t, d], the scaled embedding of the tokens, before layer 0.
          norm_scale: [p], the weight of the context's norm, which all layers share.
        """
        scale = jnp.asarray(math.sqrt(self.embedding.shape[-1]), x.dtype)
        token = lookup(self.embedding[...], tokens, x.dtype, axes.LAYER_EMBED) * scale
        context = self.context_proj(embedded) * embedded.shape[-1] ** -0.5
        context = rms_norm(context, norm_scale, **self.norm)
        gate = jax.nn.gelu(self.gate_proj(x), approximate=True)
        return self.post_norm(self.out_proj(gate * ((context + token) * 2**-0.5)))

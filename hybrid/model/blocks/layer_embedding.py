"""Per-layer embeddings: each layer has a small embedding of every token, added behind a gate.

    token    = embedding[tok]·√p                          the layer's own table, [v, p]
    context  = rms((e·W_context)·d^−½, w)                 e: the scaled input embedding; w is shared
    y        = rms((gelu(x·W_gate) · (context + token)·2^−½)·W_out)

Tables hold most of the parameters of such a model and cost a lookup only, so no layer gets its
table: `with_rows` looks up the tokens in the tables of all layers before the first one runs, and a
layer has the rows [b, t, p] in the table's place.
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
from hybrid.model.params import flat, nested
from hybrid.ops.embedding import lookup_layers
from hybrid.ops.norm import rms_norm
from hybrid.sharding import constrain


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

    def __call__(self, x: Hidden, embedded: Hidden, norm_scale: jax.Array) -> Hidden:
        """What the layer adds to its stream; `embedding` holds the tokens' rows.

        Args:
          x: [b, t, d], the stream.
          embedded: [b, t, d], the scaled embedding of the tokens, before layer 0.
          norm_scale: [p], the weight of the context's norm, which all layers share.
        """
        scale = jnp.asarray(math.sqrt(self.embedding.shape[-1]), x.dtype)
        token = self.embedding[...] * scale
        context = self.context_proj(embedded) * embedded.shape[-1] ** -0.5
        context = rms_norm(context, norm_scale, **self.norm)
        gate = jax.nn.gelu(self.gate_proj(x), approximate=True)
        return self.post_norm(self.out_proj(gate * ((context + token) * 2**-0.5)))


def with_rows(segments: dict, tokens: Tokens, dtype: jax.typing.DTypeLike) -> dict:
    """Parameters of the stack with the rows [layers, b, t, p] of tokens in place of tables.

    Args:
      segments: `params["segments"]`.  tokens: int32 [b, t].  dtype: of the rows.
    """

    def rows(table):
        found = lookup_layers(table, tokens, dtype, axes.LAYER_EMBED)
        return constrain(found, axes.LAYERS, axes.BATCH, axes.TIME, None)

    leaves = flat(segments)
    tables = [path for path in leaves if path[-2:] == ("layer_embedding", "embedding")]
    return nested(leaves | {path: rows(leaves[path]) for path in tables})

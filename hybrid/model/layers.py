"""The Flax modules that hold parameters: kernels, norms and the embedding.

A parameter carries its logical axis names as metadata (`axes=`), which `sharding.py` maps to a
mesh. Parameters are float32 (float64 in float64 models) and are cast to the stream's dtype where
they are used.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden, Positions, Tokens
from hybrid.model.config import ModelConfig
from hybrid.ops.dense import dense
from hybrid.ops.embedding import lookup
from hybrid.ops.norm import rms_norm

POSITION_STD = 0.02  # GPT-2's, for learned positions


def param_dtype(config: ModelConfig) -> jnp.dtype:
    """Parameters are at least float32, whatever the compute dtype."""
    return jnp.promote_types(config.dtype, jnp.float32)


class Linear(nnx.Module):
    """x @ kernel over the last `num_axes` axes of x; kernels start at fan-in^-0.5.

    With an adapter (`hybrid.lora`) the result is x·kernel + (x·lora_a)·lora_b.
    """

    def __init__(self, shape, names, *, config: ModelConfig, rngs: nnx.Rngs, num_axes: int = 1):
        self.num_axes, self.is_adapted = num_axes, False
        std = math.prod(shape[:num_axes]) ** -0.5
        values = std * jax.random.normal(rngs.params(), shape, param_dtype(config))
        self.kernel = nnx.Param(values, axes=names)

    def adapt(self, rank: int) -> None:
        """Makes room for an adapter; its values come with the parameters."""
        shape, dtype = self.kernel.shape, self.kernel.dtype
        self.is_adapted = True
        self.lora_a = nnx.Param(jnp.zeros((*shape[: self.num_axes], rank), dtype))
        self.lora_b = nnx.Param(jnp.zeros((rank, *shape[self.num_axes :]), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = dense(x, self.kernel[...].astype(x.dtype), num_axes=self.num_axes)
        if not self.is_adapted:
            return y
        inner = dense(x, self.lora_a[...].astype(x.dtype), num_axes=self.num_axes)
        return y + dense(inner, self.lora_b[...].astype(x.dtype))


class RMSNorm(nnx.Module):
    """RMS norm over the last axis with a weight, `norm_offset` + scale, that starts at `start`."""

    def __init__(self, size: int, name: str, *, config: ModelConfig, start: float = 1.0):
        self.eps, self.offset = config.norm_eps, config.norm_offset
        values = jnp.full((size,), start - self.offset, param_dtype(config))
        self.scale = nnx.Param(values, axes=(name,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], eps=self.eps, offset=self.offset)


class Embedder(nnx.Module):
    """The embedding, shared by input and output (tied); inputs are scaled by sqrt(d_model).

    Rows start at d_model^-0.5, so that both the scaled inputs and the first logits have unit
    variance. With `model.learned_positions` a vector of the token's position is added to its input,
    as in GPT-2, where it starts small.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(config.dtype)
        shape = (config.vocab_size, config.d_model)
        values = jax.random.normal(rngs.params(), shape, param_dtype(config))
        self.embedding = nnx.Param(config.d_model**-0.5 * values, axes=(axes.VOCAB, axes.EMBED))
        self.has_positions = config.learned_positions > 0
        if self.has_positions:
            shape = (config.learned_positions, config.d_model)
            values = jax.random.normal(rngs.params(), shape, param_dtype(config))
            self.positions = nnx.Param(POSITION_STD * values, axes=(axes.VOCAB, axes.EMBED))

    def __call__(self, tokens: Tokens, positions: Positions) -> Hidden:
        rows = lookup(self.embedding[...], tokens, self.dtype)
        rows = rows * jnp.asarray(math.sqrt(rows.shape[-1]), self.dtype)
        if not self.has_positions:
            return rows
        return rows + lookup(self.positions[...], jnp.maximum(positions, 0), self.dtype)

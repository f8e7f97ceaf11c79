"""A short convolution as a layer of a recurrent mixer: kernel, bias, and the inputs it keeps.

Read next: `hybrid/ops/short_convolution.py`, the convolution itself.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.model.config import ModelConfig
from hybrid.model.layers import param_dtype
from hybrid.model.mixers.recurrent import Tokens
from hybrid.ops.short_convolution import last_inputs, short_convolution


class ShortConvolution(nnx.Module):
    """A kernel [size] and a bias for each of `width` channels, which have the logical name `name`.

    Kernels start at size^-0.5.
    """

    def __init__(
        self, size: int, width: int, name: str | None, *, config: ModelConfig, rngs: nnx.Rngs
    ):
        dtype = param_dtype(config)
        values = size**-0.5 * jax.random.normal(rngs.params(), (size, width), dtype)
        self.kernel = nnx.Param(values, axes=(None, name))
        self.bias = nnx.Param(jnp.zeros((width,), dtype), axes=(name,))

    def __call__(
        self, x: jax.Array, positions: axes.Positions, tokens: Tokens, before: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The convolution of x [b, t, c], and what takes the place of `before` [b, size − 1, c]."""
        kernel, bias = self.kernel[...], self.bias[...].astype(x.dtype)
        y = short_convolution(x, kernel, positions, before) + bias[None, None]
        return y, last_inputs(x, before, len(kernel), tokens.num_new)

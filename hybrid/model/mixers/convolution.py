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
    """A kernel [size], and a bias, for each of `width` channels, whose logical name is `name`.

    Kernels start uniform in ± size^-0.5, as torch's.
    """

    def __init__(
        self,
        size: int,
        width: int,
        name: str | None,
        *,
        has_bias: bool = True,
        config: ModelConfig,
        rngs: nnx.Rngs,
    ):
        dtype, limit, self.has_bias = param_dtype(config), size**-0.5, has_bias
        values = jax.random.uniform(rngs.params(), (size, width), dtype, -limit, limit)
        self.kernel = nnx.Param(values, axes=(axes.CONV, name))
        if has_bias:
            self.bias = nnx.Param(jnp.zeros((width,), dtype), axes=(name,))

    def __call__(
        self, x: jax.Array, positions: axes.Positions, tokens: Tokens, before: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The convolution of x [b, t, c], and what takes the place of `before` [b, size − 1, c]."""
        kernel = self.kernel[...]
        y = short_convolution(x, kernel, positions, before)
        if self.has_bias:
            y += self.bias[...].astype(x.dtype)[None, None]
        return y, last_inputs(x, before, len(kernel), tokens.num_new)

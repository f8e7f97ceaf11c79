"""A projection through a bottleneck, for gates whose full matrix would cost more than it is worth.

y = inner(x·down)·up          down [d, r], up [r, n, h]
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear


class LowRank(nnx.Module):
    """[b, t, d] -> [b, t, n, h] through [b, t, r].

    With a `start` it begins as 0: down at 0, up at a random orthogonal matrix times `start`.
    """

    def __init__(
        self,
        rank: int,
        heads: tuple[int, int],
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        inner: Callable[[jax.Array], jax.Array] | None = None,
        start: float | None = None,
    ):
        self.inner = inner
        down, up = (axes.EMBED, None), (None, axes.HEADS, axes.HEAD_DIM)
        self.down_proj = Linear((config.d_model, rank), down, config=config, rngs=rngs)
        self.up_proj = Linear((rank, *heads), up, config=config, rngs=rngs)
        if start is not None:
            kernel = self.up_proj.kernel
            wide = (rank, math.prod(heads))
            values = jax.nn.initializers.orthogonal(start)(rngs.params(), wide, kernel.dtype)
            kernel[...] = values.reshape(kernel.shape)
            self.down_proj.kernel[...] = jnp.zeros_like(self.down_proj.kernel[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.down_proj(x)
        return self.up_proj(x if self.inner is None else self.inner(x))

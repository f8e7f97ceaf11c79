"""A mixture of experts beside a layer's feed-forward.

    logits = (rms(x) · scale · d^−½)·W_router         rms without a weight
    y      = rms(Σ_j w_j·expert_j(rms(x, pre_norm)), post_norm)

Router and experts read the same stream, each through a norm of its own.
Source: Gemma 4 26B-A4B (2607.02770).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden, Mask
from hybrid.model.config import ModelConfig
from hybrid.model.layers import RMSNorm, param_dtype
from hybrid.model.pattern import Experts as Sizes
from hybrid.ops import router as router_ops
from hybrid.ops.experts import experts
from hybrid.ops.norm import rms_norm
from hybrid.ops.router import RouterSums


class Router(nnx.Module):
    """Logits of each expert: a scaled norm and a matrix; and the experts' own scales."""

    def __init__(self, sizes: Sizes, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config, width, dtype = config, config.d_model, param_dtype(config)
        values = jax.random.normal(rngs.params(), (width, sizes.num), dtype)
        self.kernel = nnx.Param(width**-0.5 * values, axes=(axes.EMBED, None))
        self.scale = nnx.Param(jnp.ones((width,), dtype), axes=(axes.EMBED,))
        self.expert_scale = nnx.Param(jnp.ones((sizes.num,), dtype), axes=(None,))

    def __call__(self, x: Hidden):
        """[b, t, d] -> logits [b, t, e] in at least float32."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        normed = rms_norm(x, None, eps=self.config.norm_eps)
        scale = self.scale[...].astype(x.dtype)[None, None]
        scaled = normed * scale * x.shape[-1] ** -0.5
        return jnp.einsum(
            "btd,de->bte", scaled, self.kernel[...].astype(x.dtype), preferred_element_type=wide
        )


class Experts(nnx.Module):
    """The experts of one layer, their router and norms."""

    def __init__(self, sizes: Sizes, config: ModelConfig, *, rngs: nnx.Rngs):
        self.num_active = sizes.active
        wide = (sizes.num, config.d_model, sizes.dim)
        narrow = (sizes.num, sizes.dim, config.d_model)
        into = (axes.EXPERTS, axes.EMBED, axes.FFN)
        out = (axes.EXPERTS, axes.FFN, axes.EMBED)
        self.router = Router(sizes, config, rngs=rngs)
        self.pre_norm = RMSNorm(config.d_model, axes.EMBED, config=config)
        self.gate_proj = _Kernels(wide, into, config=config, rngs=rngs)
        self.up_proj = _Kernels(wide, into, config=config, rngs=rngs)
        self.down_proj = _Kernels(narrow, out, config=config, rngs=rngs)
        self.post_norm = RMSNorm(config.d_model, axes.EMBED, config=config)

    def __call__(self, x: Hidden, counted: Mask | None = None) -> tuple[Hidden, RouterSums]:
        """The branch's result and what the tokens of `counted` add to the router's statistics."""
        logits = self.router(x)
        routing = router_ops.route(logits, self.num_active, self.router.expert_scale[...])
        kernels = (self.gate_proj, self.up_proj, self.down_proj)
        y = experts(
            self.pre_norm(x), routing.choice, routing.weights, *(k.kernel[...] for k in kernels)
        )
        return self.post_norm(y), router_ops.sums(logits, routing, counted)


class _Kernels(nnx.Module):
    """A matrix [e, in, out] for each expert, starting at fan-in^-0.5."""

    def __init__(self, shape, names, *, config: ModelConfig, rngs: nnx.Rngs):
        values = jax.random.normal(rngs.params(), shape, param_dtype(config))
        self.kernel = nnx.Param(shape[1] ** -0.5 * values, axes=names)

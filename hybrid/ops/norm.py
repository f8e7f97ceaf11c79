"""RMS norm with its own backward.

Forward, with r = (mean(x²) + eps)^−½ over the last axis and g = offset + scale:

    (1)  y  = x · r · g

Kept: x and r (one number a row), so no normalised copy of x stays alive. Backward:

    (2)  u  = dy · g
    (3)  dx = r · (u − x · r² · mean(u · x))
    (4)  dscale = Σ_rows dy · x · r
"""

import functools

import jax
import jax.numpy as jnp

from hybrid.ops import cpu


def rms_norm(
    x: jax.Array, scale: jax.Array | None, *, eps: float = 1e-6, offset: float = 0.0
) -> jax.Array:
    """x divided by its root mean square over the last axis, times (offset + scale).

    Args:
      x: [..., d].
      scale: [d], or None for no weight.
      eps: added to the mean square.
      offset: 0 for a plain weight (Gemma 4), 1 for weights around zero (Gemma 2, 3).
    Returns: [..., d] in x's dtype; computed in at least float32, cast after the weight.
    Source: Zhang & Sennrich (1910.07467), eq. 4.
    """
    return _rms_norm(cpu.without_lead(x), scale, eps, offset).reshape(x.shape)


def unit(x: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """x divided by its length over the last axis, [..., d]; eps is added to the length's square.

    >>> unit(jnp.array([3.0, 4.0])).round(3).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    size = x.shape[-1]
    return rms_norm(x, None, eps=eps / size) * size**-0.5


def wide(x: jax.Array) -> jax.Array:
    """x in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rms_norm(x, scale, eps, offset):
    return _forward(x, scale, eps, offset)[0]


def _gain(scale, offset, like):
    """offset + scale with the rank and dtype of `like`, or 1 where there is no weight."""
    if scale is None:
        return 1
    return (offset + scale.astype(like.dtype)).reshape((1,) * (like.ndim - 1) + scale.shape)


def _forward(x, scale, eps, offset):
    x_wide = wide(x)
    inverse = jax.lax.rsqrt(jnp.mean(x_wide * x_wide, axis=-1, keepdims=True) + eps)
    y = x_wide * inverse * _gain(scale, offset, x_wide)  # (1)
    return y.astype(x.dtype), (x, scale, inverse)


def _backward(eps, offset, kept, dy):
    x, scale, inverse = kept
    x_wide, dy = wide(x), wide(dy)
    u = dy * _gain(scale, offset, x_wide)  # (2)
    along = jnp.mean(u * x_wide, axis=-1, keepdims=True)
    dx = inverse * (u - x_wide * (inverse * inverse * along))  # (3)
    if scale is None:
        return dx.astype(x.dtype), None
    dscale = jnp.sum(dy * (x_wide * inverse), axis=tuple(range(x.ndim - 1)))  # (4)
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


_rms_norm.defvjp(_forward, _backward)

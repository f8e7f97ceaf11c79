"""The gated GELU feed-forward with its own backward.

Forward, with act the tanh form of GELU:

    (1)  a = x·gate        u = x·up
    (2)  m = act(a) · u
    (3)  y = m·down

Kept: x, a and u, the two pre-activations; m and act'(a) are elementwise and come again. Autodiff
would keep six arrays of width f. Backward:

    (4)  dm = dy·downᵀ            ddown = mᵀ·dy
    (5)  du = dm · act(a)         da = dm · u · act'(a)
    (6)  dx = da·gateᵀ + du·upᵀ   dgate = xᵀ·da    dup = xᵀ·du
"""

import jax
import jax.numpy as jnp

from hybrid.axes import Hidden
from hybrid.ops import cpu
from hybrid.ops.dense import over_tokens

_SLOPE = 0.7978845608028654  # sqrt(2 / pi)
_CUBIC = 0.044715


def gated_gelu(x: Hidden, gate: jax.Array, up: jax.Array, down: jax.Array) -> Hidden:
    """(gelu(x·gate) · (x·up))·down, with the tanh form of GELU.

    Args:
      x: [b, t, d].  gate, up: [d, f].  down: [f, d].
    Returns: [b, t, d] in x's dtype.
    Source: GLU Variants (2002.05202), eq. 6; GELU (1606.08415), sec. 2, the tanh form.
    """
    return cpu.in_pieces(lambda part: _gated_gelu(part, gate, up, down), x, gate.shape[1])


@jax.custom_vjp
def _gated_gelu(x, gate, up, down):
    return _forward(x, gate, up, down)[0]


def _gelu(a):
    return 0.5 * a * (1 + jnp.tanh(_SLOPE * (a + _CUBIC * a * a * a)))


def _gelu_slope(a):
    tanh = jnp.tanh(_SLOPE * (a + _CUBIC * a * a * a))
    return 0.5 * (1 + tanh) + 0.5 * a * (1 - tanh * tanh) * _SLOPE * (1 + 3 * _CUBIC * a * a)


def _forward(x, gate, up, down):
    a, u = x @ gate.astype(x.dtype), x @ up.astype(x.dtype)  # (1)
    y = (_gelu(a) * u) @ down.astype(x.dtype)  # (2), (3)
    return y, (x, a, u, gate, up, down)


def _backward(kept, dy):
    x, a, u, *kernels = kept
    gate, up, down = (kernel.astype(x.dtype) for kernel in kernels)
    # One f-wide array at a time, each used while it is fresh: else XLA's CPU compiler computes all
    # three first, and again inside each product.
    dm = dy @ down.T  # (4)
    ddown = over_tokens(cpu.keep_apart(_gelu(a) * u), dy)
    du = cpu.keep_apart(dm * _gelu(a))  # (5)
    dup, dx = over_tokens(x, du), du @ up.T  # (6)
    da = cpu.keep_apart(dm * u * _gelu_slope(a))
    dgate, dx = over_tokens(x, da), dx + da @ gate.T
    gradients = (dgate, dup, ddown)
    gradients = (g.astype(k.dtype) for g, k in zip(gradients, kernels, strict=True))
    return dx, *gradients


_gated_gelu.defvjp(_forward, _backward)

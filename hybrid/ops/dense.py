"""Products: linear layers, sums over tokens, and einsum in at least float32.

A projection's kernel keeps its meaning in its shape: [d, n, h] for queries, [d, k, h] for keys
and values, [n, h, d] for the output, [d, f] for feed-forwards. A linear layer is one contraction
of x's last axes with the kernel's first. With y = x·kernel the backward is

    (1)  dx = dy·kernelᵀ
    (2)  dkernel = xᵀ·dy over all tokens (`over_tokens`)

and it is written out because of what XLA does with (2) on a CPU (`cpu.narrower_left`).
"""

import functools
import math

import jax
import jax.numpy as jnp

from hybrid.ops import cpu


def dense(x: jax.Array, kernel: jax.Array, *, num_axes: int = 1) -> jax.Array:
    """Contracts the last `num_axes` axes of x with the first `num_axes` axes of the kernel.

    Args:
      x: [b, t, ...in].  kernel: [...in, ...out].
      num_axes: how many axes `in` has: 1 for q, k, v and feed-forwards, 2 for the output
        projection ([b, t, n, h] with [n, h, d]).
    Returns: [b, t, ...out] in x's dtype; the kernel is cast to it, its gradient is in its own.
    Raises: ValueError if the contracted axes differ.
    """
    inner = x.shape[x.ndim - num_axes :]
    if inner != kernel.shape[:num_axes]:
        raise ValueError(f"kernel: first axes are {kernel.shape[:num_axes]}, x ends in {inner}")
    return _dense(x, kernel, num_axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x, kernel, num_axes):
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=num_axes)


def _forward(x, kernel, num_axes):
    # The product itself, not `_dense`: a remat policy that keeps products must see it here.
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=num_axes), (x, kernel)


def _backward(num_axes, kept, dy):
    x, kernel = kept
    outer = kernel.ndim - num_axes
    contracted = (tuple(range(dy.ndim - outer, dy.ndim)), tuple(range(num_axes, kernel.ndim)))
    dx = jax.lax.dot_general(dy, kernel.astype(x.dtype), (contracted, ((), ())))  # (1)
    rows = math.prod(kernel.shape[:num_axes]), math.prod(kernel.shape[num_axes:])
    lead = x.shape[: x.ndim - num_axes]
    dkernel = over_tokens(x.reshape(*lead, rows[0]), dy.reshape(*lead, rows[1]))  # (2)
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


_dense.defvjp(_forward, _backward)


def over_tokens(x: jax.Array, y: jax.Array) -> jax.Array:
    """xᵀ·y summed over all tokens: x [b, t, d], y [b, t, f] -> [d, f] in at least float32.

    Rows and tokens stay two axes: as one, the product goes to a slower library on a CPU (2048
    tokens, 256 to 4 x 64, forward and backward: 5.2 against 4.4 ms on 2 cores).
    """
    return cpu.narrower_left(_over_tokens, x, y)


def _over_tokens(x, y):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("btd,btf->df", x, y, preferred_element_type=wide)


def dot(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """einsum of two arrays in at least float32.

    On a CPU operands are widened first: XLA's bfloat16 products are slower than float32 ones
    there. Elsewhere the wider operand is cast to the narrower one's dtype, integers to floats.
    """
    wide = jnp.promote_types(jnp.result_type(left, right), jnp.float32)
    floats = [x.dtype for x in (left, right) if jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = wide if cpu.is_active() else min(floats, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(
        equation, left.astype(dtype), right.astype(dtype), preferred_element_type=wide
    )

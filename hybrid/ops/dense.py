"""Linear layers as one contraction: x's last axes against the kernel's first.

A projection's kernel keeps its meaning in its shape: [d, n, h] for queries, [d, k, h] for keys
and values, [n, h, d] for the output, [d, f] for feed-forwards.
"""

import jax
import jax.numpy as jnp


def dense(x: jax.Array, kernel: jax.Array, *, num_axes: int = 1) -> jax.Array:
    """Contracts the last `num_axes` axes of x with the first `num_axes` axes of the kernel.

    Args:
      x: [b, t, ...in].  kernel: [...in, ...out].
      num_axes: how many axes `in` has: 1 for q, k, v and feed-forwards, 2 for the output
        projection ([b, t, n, h] with [n, h, d]).
    Returns: [b, t, ...out] in x's dtype.
    Raises: ValueError if the contracted axes differ.
    """
    inner = x.shape[x.ndim - num_axes :]
    if inner != kernel.shape[:num_axes]:
        raise ValueError(f"kernel: first axes are {kernel.shape[:num_axes]}, x ends in {inner}")
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=num_axes)

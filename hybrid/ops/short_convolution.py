"""Causal convolutions over a few tokens, one kernel a channel, as recurrent mixers begin with.

    y_t = Σ_j kernel_{w−1−j} · x_{t−j}        over 0 <= j < w within t's document

Read next: `hybrid/model/mixers/recurrent.py`, which keeps the last w − 1 inputs while decoding.
"""

import jax
import jax.numpy as jnp


def short_convolution(
    x: jax.Array, kernel: jax.Array, positions: jax.Array, before: jax.Array | None = None
) -> jax.Array:
    """The convolution of x [b, t, c] with kernel [w, c], whose last row meets the token itself.

    Args:
      positions: int32 [b, t], from 0 within a document.
      before: [b, w − 1, c], the inputs before x; None: there are none.
    Returns: [b, t, c] in x's dtype.
    Source: Mamba (2312.00752), sec. 3.4.
    """
    width, time = len(kernel), x.shape[1]
    inputs, kernel = _behind(x, before, width), kernel.astype(x.dtype)[:, None, None]
    y = x * kernel[-1]
    for back in range(1, width):
        start = width - 1 - back
        is_seen = (positions >= back)[..., None]
        y += jnp.where(is_seen, inputs[:, start : start + time], 0) * kernel[start]
    return y


def last_inputs(
    x: jax.Array, before: jax.Array | None, width: int, num_new: jax.Array
) -> jax.Array:
    """[b, width − 1, c], what follows `num_new` [b] tokens of x reads of them and of `before`."""
    inputs = _behind(x, before, width)
    index = num_new[:, None] + jnp.arange(width - 1)[None]
    return jnp.take_along_axis(inputs, index[..., None], axis=1)


def _behind(x, before, width):
    if before is None:
        before = jnp.zeros((x.shape[0], width - 1, x.shape[2]), x.dtype)
    return jnp.concatenate([before.astype(x.dtype), x], axis=1)

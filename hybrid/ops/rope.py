"""Rotary positions: full RoPE for local layers, p-RoPE for global ones.

Gemma 4 turns all pairs of a local head and only the fastest pairs of a global head. Of the
`h/2` pairs (i, i + h/2) the first `int(fraction·h // 2)` turn, at the frequencies of full RoPE:

    f_i    = theta^(−2i/h) / factor                    the exponent's denominator is the full h
    out_i  = x_i·cos(p·f_i) − x_{i+h/2}·sin(p·f_i)
    out_i+h/2 = x_{i+h/2}·cos(p·f_i) + x_i·sin(p·f_i)

The other dimensions pass through. (Ordinary partial rotary would turn the first fraction·h
dimensions with that width as the denominator: other pairs, other wavelengths.)

Source: RoFormer (2104.09864), eq. 34; p-RoPE (2410.06205), sec. 6.

The gradient is the turn by the opposite angles. It is written out, since autodiff pads every part
to full width and adds them up: norm, turn and back took 1.9 ms, and take 1.0 to 1.2 (2048 tokens
of 4 heads, 2 cores).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.axes import Positions, Query


class Rotation(NamedTuple):
    """cos and sin of the angles, [b, t, 1, pairs]; a layer's q and k share them."""

    cos: jax.Array
    sin: jax.Array


def num_rotated_pairs(head_dim: int, fraction: float) -> int:
    """How many of the head_dim/2 pairs turn."""
    return int(fraction * head_dim // 2)


def is_turned(head_dim: int, pairs: int) -> np.ndarray:
    """bool [h]: the dimensions that turn."""
    return np.arange(head_dim) % (head_dim // 2) < pairs


def turned_part(x: jax.Array, pairs: int) -> jax.Array:
    """The dimensions of x's last axis that turn: first halves of the pairs, then second halves."""
    half = x.shape[-1] // 2
    return jnp.concatenate([x[..., :pairs], x[..., half : half + pairs]], axis=-1)


def frequencies(
    head_dim: int, theta: float, fraction: float = 1.0, factor: float = 1.0
) -> np.ndarray:
    """f_i of the pairs that turn, in float64; arguments as of `rotation`."""
    pairs = np.arange(num_rotated_pairs(head_dim, fraction))
    return theta ** (-2.0 * pairs / head_dim) / factor


def rotation(
    positions: Positions,
    head_dim: int,
    *,
    theta: float,
    fraction: float = 1.0,
    factor: float = 1.0,
    dtype=jnp.float32,
) -> Rotation:
    """The angles' cos and sin, computed and kept in `dtype`.

    Args:
      positions: int32 [b, t].
      head_dim: h, even.
      theta: base of the frequencies.
      fraction: share of the h/2 pairs that turn, the fastest first; 0 turns none.
      factor: divides all frequencies (linear scaling).
      dtype: at least float32: bfloat16 rounds position 257 to 256.
    """
    per_pair = jnp.asarray(frequencies(head_dim, theta, fraction, factor), dtype)
    angles = positions.astype(dtype)[:, :, None, None] * per_pair[None, None, None]
    return Rotation(jnp.cos(angles), jnp.sin(angles))


@jax.custom_vjp
def apply(x: Query, turn: Rotation) -> Query:
    """Turns the first pairs of x [b, t, n, h] by `turn`; computed in turn's dtype, given in x's.

    Angles are constants: `turn` gets no gradient.
    """
    pairs, half = turn.cos.shape[-1], x.shape[-1] // 2
    if not pairs:
        return x
    first = x[..., :pairs].astype(turn.cos.dtype)
    second = x[..., half : half + pairs].astype(turn.cos.dtype)
    parts = [
        (first * turn.cos - second * turn.sin).astype(x.dtype),
        x[..., pairs:half],
        (second * turn.cos + first * turn.sin).astype(x.dtype),
        x[..., half + pairs :],
    ]
    return jnp.concatenate(parts, axis=-1)


def _forward(x, turn):
    return apply(x, turn), turn


def _backward(turn, dy):
    return apply(dy, Rotation(turn.cos, -turn.sin)), None


apply.defvjp(_forward, _backward)

"""Attention within chunks of a document, said as a band: windows and segments, nothing new.

A token at position p of its document sees the earlier tokens of chunk ⌊p / w⌋, w of them at most,
so a window of w holds all that it sees, and only the chunk before has to be hidden.

  * In a row, each chunk is a segment (`segments`).
  * Behind a cache, positions are moved apart by w a chunk (`apart`): the next chunk begins 2w
    behind this one, w + 1 behind its last token, out of reach of the window.
"""

import jax
import jax.numpy as jnp

from hybrid.axes import Positions, Segments


def segments(positions: Positions, size: int) -> Segments:
    """int32 [b, t], 1 and up: the chunk of each token of packed rows.

    positions: int32 [b, t], from 0 within a document, in the order of the row.
    """
    is_first = (positions % size == 0).at[:, 0].set(True)
    return jnp.cumsum(is_first, axis=1, dtype=jnp.int32)


def apart(positions: jax.Array, size: int) -> jax.Array:
    """Positions at which a window of `size` sees just the chunk; negative ones stay.

    >>> apart(jnp.array([0, 1, 2, 3, 4, -1]), 2)
    Array([ 0,  1,  4,  5,  8, -1], dtype=int32)
    """
    return jnp.where(positions < 0, positions, positions + positions // size * size)

"""What XLA's CPU compiler is slow at, and the ways around it, one function each.

All of them leave the numbers as they are and do nothing on other backends. The times are of 2
cores.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.ops import dispatch

PIECE_ELEMENTS = 512 * 1024  # of f-wide arrays: 2 MB in float32


def is_active() -> bool:
    """Whether programs are made for a CPU."""
    return dispatch.backend() == "cpu"


def without_lead(x: jax.Array) -> jax.Array:
    """x without a leading axis of 1, for reductions over other axes.

    With it they are 10 to 15 times slower (δ of 2048 tokens of 4 heads: 1.8 against 0.12 ms).
    """
    drop = is_active() and x.ndim > 1 and x.shape[0] == 1
    return x.reshape(x.shape[1:]) if drop else x


def keep_apart(x: jax.Array) -> jax.Array:
    """x, computed once and as a whole: nothing is fused over it or computed again behind it."""
    return jax.lax.optimization_barrier(x) if is_active() else x


def narrower_left(
    product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, y: jax.Array
) -> jax.Array:
    """product(x, y), a matrix whose transpose is product(y, x), with the narrower operand left.

    With the wider one left, or the transpose folded into the product, it runs at 2/3 of the speed.
    """
    if is_active() and x.shape[-1] > y.shape[-1]:
        return keep_apart(product(y, x)).T
    return product(x, y)


def in_pieces(function: Callable[[jax.Array], jax.Array], x: jax.Array, width: int) -> jax.Array:
    """function(x), [b, t, d] -> [b, t, d], in pieces of time, so that f-wide arrays fit the cache.

    A feed-forward of 16 384 tokens at d 256, f 1024 took 145 ms in pieces of 512 tokens against
    235 ms at once.
    """
    pieces = num_pieces(x.shape[0], x.shape[1], width)
    if pieces == 1:
        return function(x)
    parts = jax.lax.map(function, rearrange(x, "b (i c) d -> i b c d", i=pieces))
    return rearrange(parts, "i b c d -> b (i c) d")


def num_pieces(batch: int, length: int, width: int) -> int:
    """Into how many equal pieces a row is cut: as few as keep PIECE_ELEMENTS of width f in one."""
    if not is_active() or batch * length * width <= PIECE_ELEMENTS:
        return 1
    fewest = -(-batch * length * width // PIECE_ELEMENTS)
    # A length that nothing near divides stays whole.
    return next((i for i in range(fewest, 4 * fewest) if length % i == 0), 1)


def written_twice(slots: jax.Array, new, nowhere: int):
    """A scatter of one token made one of two, the second to the slot `nowhere`, which is dropped.

    A single write becomes a slice update, which is done once for the reader and once for the carry
    of a loop, copying the cache each time (16 384 slots of 128, a loop of write and read: 3.2 ms a
    step; with a second write 0.4).

    Args:
      slots: int32 [b, t].
      new: a tree of arrays [b, k, t, ...], what is written to them.
    Returns: slots and new; as they came where there is more than one token.
    """
    if not is_active() or slots.size > 1:
        return slots, new
    new = jax.tree.map(lambda chunk: jnp.concatenate([chunk, chunk], axis=2), new)
    return jnp.append(slots, jnp.full_like(slots, nowhere), axis=1), new

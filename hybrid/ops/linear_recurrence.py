"""Linear recurrence, element by element, with its own backward.

Forward, from h_0 = state:

    (1)  h_t = a_t·h_{t−1} + x_t

A document begins where a_t = 0. Kept: a and h, which is the result itself. Backward, the same
recurrence from the last token to the first:

    (2)  dx_t = dh_t + a_{t+1}·dx_{t+1}      dstate = a_1·dx_1
    (3)  da_t = dx_t · h_{t−1}

Two ways to walk, which differ in the order of products alone:

    steps     one token after the other: the fewest products, and what a CPU does best (16 384
              tokens of 256, forward and backward: 25 ms on 2 cores, chunks 80 to 140)
    chunks    log₂ c rounds over c tokens at once (Blelloch 1990), one chunk after the other, so
              that the rounds hold one chunk's arrays: fewer steps, for accelerators

The backward written out keeps 2 arrays; that of the rounds, derived, would keep all of them (48
against 157 MiB there).
Source: Griffin (2402.19427), sec. 3.2 and app. D.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.ops import cpu

CHUNK_SIZE = 256


def linear_recurrence(
    a: jax.Array, x: jax.Array, state: jax.Array, *, chunk_size: int | None = None
) -> jax.Array:
    """h of (1), whose last row is the state after x.

    A token of a = 1 and x = 0 leaves the state as it is: so padding does.

    Args:
      a, x: [b, t, d] in at least float32.  state: [b, d].
      chunk_size: 1 for steps; None: what the backend does best.
    Returns: [b, t, d].
    """
    if chunk_size is None:
        chunk_size = 1 if cpu.is_active() else CHUNK_SIZE
    return _recurrence(a, x, state, min(chunk_size, x.shape[1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _recurrence(a, x, state, size):
    return _forward(a, x, state, size)[0]


def _forward(a, x, state, size):
    h = _walk(a, x, state, size)  # (1)
    return h, (a, h, state)


def _backward(size, kept, dh):
    a, h, state = kept
    following = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    dx = _walk(following, dh, jnp.zeros_like(state), size, reverse=True)  # (2)
    previous = jnp.concatenate([state[:, None], h[:, :-1]], axis=1)
    return dx * previous, dx, a[:, 0] * dx[:, 0]  # (3)


_recurrence.defvjp(_forward, _backward)


def _walk(a, x, state, size, reverse=False):
    walk = _steps if size == 1 else _chunks
    return walk(a, x, state, size, reverse)


def _steps(a, x, state, size, reverse):
    def step(h, token):
        h = token[0] * h + token[1]
        return h, h

    tokens = jnp.swapaxes(a, 0, 1), jnp.swapaxes(x, 0, 1)
    return jnp.swapaxes(jax.lax.scan(step, state, tokens, reverse=reverse)[1], 0, 1)


def _chunks(a, x, state, size, reverse):
    padding = [(0, 0), (0, -x.shape[1] % size), (0, 0)]
    padded = jnp.pad(a, padding, constant_values=1), jnp.pad(x, padding)
    last = 0 if reverse else -1

    def chunk(h, tokens):
        product, total = jax.lax.associative_scan(_join, tokens, axis=1, reverse=reverse)
        h = total + product * h[:, None]
        return h[:, last], h

    chunks = [rearrange(each, "b (i c) d -> i b c d", c=size) for each in padded]
    _, h = jax.lax.scan(chunk, state, chunks, reverse=reverse)
    return rearrange(h, "i b c d -> b (i c) d")[:, : x.shape[1]]


def _join(left, right):
    """Two stretches h -> a·h + x, one behind the other, as one."""
    return left[0] * right[0], left[1] * right[0] + right[1]

"""State-space duality (SSD): a linear recurrence over matrices, a chunk of tokens at a time.

A head keeps a state H [h, m]. With a scalar log decay g_t <= 0, input x_t [h], and B_t (`write`)
and C_t (`read`), [m], which all heads of a group share:

    (1)  H_t = e^{g_t}·H_{t−1} + x_t·B_tᵀ
    (2)  y_t = H_t·C_t

`step_by_step` is just that, the oracle of the tests. With G_i = Σ_{j<=i} g_j summed within a chunk
of c tokens, and H the state before it, both are products of matrices:

    (3)  y_i  = Σ_{j<=i} e^{G_i − G_j}·(C_i·B_j)·x_j  +  e^{G_i}·H·C_i
    (4)  H'   = e^{G_c}·H  +  Σ_j e^{G_c − G_j}·x_j·B_jᵀ

No exponent is above zero, so nothing overflows, however strong the decay. Where a document begins
inside a chunk, pairs (i, j) of one document alone count in (3), (4) keeps the last document's part,
and H is seen only in front of the first beginning. These are masks of the exponents: a decay of −∞
in the sums G would give −∞ − (−∞). In float32 a sum of −1000 within a chunk leaves e^{G_i − G_j}
right to 1e-4.

One scan walks the chunks, which costs O(t·c) and holds one chunk's pairs at a time; its backward
computes them again from the state before each chunk, the one thing kept.
Source: Mamba-2 (2405.21060), sec. 6, listing 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.ops.dense import dot

CHUNK_SIZE = 64


class Inputs(NamedTuple):
    """What the recurrence reads of each token.

    Attributes:
      x: [b, t, n, h], times the step size Δ.
      log_decay: [b, t, n], at most 0; at least float32.
      write, read: [b, t, k, m], B and C; k divides n, and heads of a group stand together.
      is_first: bool [b, t], of a document: nothing before it counts.
    """

    x: jax.Array
    log_decay: jax.Array
    write: jax.Array
    read: jax.Array
    is_first: jax.Array


def state_space(
    inputs: Inputs, state: jax.Array, *, chunk_size: int = CHUNK_SIZE
) -> tuple[jax.Array, jax.Array]:
    """(1) and (2) by chunks: y [b, t, n, h] and the state after the last token.

    A token of x = 0 and log decay 0 leaves the state as it is: so padding does.

    Args:
      state: [b, n, h, m] before the first token; at least float32.
    Returns: y and the state in the state's dtype.
    """
    time = inputs.x.shape[1]
    size = chunk_size_of(time, chunk_size)
    state = rearrange(state, "b (k g) h m -> b k g h m", k=inputs.write.shape[2])
    state, y = jax.lax.scan(jax.checkpoint(_chunk), state, _chunks(inputs, size))
    y = rearrange(y, "i b k g c h -> b (i c) (k g) h")[:, :time]
    return y, rearrange(state, "b k g h m -> b (k g) h m")


def chunk_size_of(time: int, chunk_size: int = CHUNK_SIZE) -> int:
    """Tokens of a chunk in a row of `time`."""
    return min(chunk_size, time)


def _chunks(inputs: Inputs, size: int) -> Inputs:
    """[chunks, b, size, ...], but x and log decay head by head; the last chunk is filled up.

    x is [chunks, b, k, g, size, h], log decay [chunks, b, k, g, size].
    """
    groups, padding = inputs.write.shape[2], -inputs.x.shape[1] % size

    def cut(array):
        padded = jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2))
        return rearrange(padded, "b (i c) ... -> i b c ...", c=size)

    x, log_decay, *rest = map(cut, inputs)
    x = rearrange(x, "i b c (k g) h -> i b k g c h", k=groups)
    return Inputs(x, rearrange(log_decay, "i b c (k g) -> i b k g c", k=groups), *rest)


def _chunk(state, chunk: Inputs):
    """(4) and (3)."""
    x, log_decay, write, read, is_first = chunk
    total = jnp.cumsum(log_decay.astype(state.dtype), axis=-1)  # G [b, k, g, c]
    document = jnp.cumsum(is_first, axis=1)  # how many began so far
    before = _decay(total, document == 0)
    after = _decay(total[..., -1:] - total, document == document[:, -1:])
    pairs = dot("bikm,bjkm->bkij", read, write)[:, :, None] * _pair_decays(total, document)
    y = dot("bkgij,bkgjh->bkgih", pairs, x)
    y += before[..., None] * dot("bikm,bkghm->bkgih", read, state)
    new = dot("bkgjh,bjkm->bkghm", x.astype(state.dtype) * after[..., None], write)
    return before[..., -1:, None] * state + new, y


def _pair_decays(total, document):
    """[b, k, g, i, j]: e^{G_i − G_j} where j <= i are of one document, else 0."""
    is_earlier = jnp.tri(total.shape[-1], dtype=bool)[None]
    is_seen = (document[:, :, None] == document[:, None, :]) & is_earlier
    return _decay(total[..., :, None] - total[..., None, :], is_seen)


def _decay(exponent, is_seen):
    """e^exponent [b, k, g, ...] where `is_seen` [b, ...], else 0."""
    return jnp.exp(jnp.where(is_seen[:, None, None], exponent, -jnp.inf))


def step_by_step(inputs: Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(1) and (2) a token at a time; arguments and results as `state_space`."""
    heads_per_group = inputs.x.shape[2] // inputs.write.shape[2]

    def step(state, token: Inputs):
        write, read = (jnp.repeat(each, heads_per_group, axis=1) for each in token[2:4])
        state = jnp.where(token.is_first[:, None, None, None], 0, state)
        state = jnp.exp(token.log_decay)[..., None, None] * state  # (1)
        state += token.x[..., None] * write[..., None, :]
        return state, jnp.sum(state * read[..., None, :], axis=-1)  # (2)

    state, y = jax.lax.scan(
        step, state, jax.tree.map(lambda each: jnp.swapaxes(each, 0, 1), inputs)
    )
    return jnp.swapaxes(y, 0, 1), state

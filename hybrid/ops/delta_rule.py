"""The delta rule: a matrix of keys to values that is read at a key before it is written there.

A head keeps S [h, v], from keys of width h to values of width v. A token changes it and reads it:

    (1)  S_t = (Diag(e^{g_t}) + a_t b_tᵀ) S_{t−1} + k_t v_tᵀ          o_t = S_tᵀ q_t

with g_t <= 0, one a head or one a channel of the key. With x_t = S_{t−1}ᵀ b_t, what b reads of the
state before the token, the token writes two products, a_t x_tᵀ and k_t v_tᵀ. Where a = k they are
one, and cost half:

    (2)  S_t = Diag(e^{g_t}) S_{t−1} + a_t x_tᵀ        x_t = S_{t−1}ᵀ b_t + v_t

That is the delta rule proper, S_t = (I − β k kᵀ) Diag(e^g) S_{t−1} + β k vᵀ: b = −β e^g k, and βv
for v (`delta_rule`). RWKV-7 has an a of its own (`general_delta_rule`).

Time is cut into chunks of c tokens. Let S be the state that enters one, G_i the sum of g over its
tokens up to i, and D_ij = e^{G_i − G_j}. Unrolling (1) inside the chunk gives

    (3)  S_i = Diag(e^{G_i}) S + Σ_{j<=i} Diag(D_ij) (a_j x_jᵀ + k_j v_jᵀ)
    (4)  x_i = Sᵀ (e^{G_{i−1}} b_i) + Σ_{j<i} L_ij x_j + f_i         L_ij = b_iᵀ Diag(D_{i−1,j}) a_j
    (5)  o_i = Sᵀ (e^{G_i} q_i) + Σ_{j<=i} (M_ij x_j + N_ij v_j)     M_ij = q_iᵀ Diag(D_ij) a_j

where N is M with k for a, and f_i is Σ_{j<i} b_iᵀ Diag(D_{i−1,j}) k_j v_j, or v_i under (2), whose
N is 0. (4) is a triangular system: with T = (I − L)⁻¹ and rows B_i = e^{G_{i−1}} b_i,

    (6)  X = T B S + T F

T B, T F and M are products over all chunks at once. What is left for a loop over chunks is (6) and
the state that leaves, (3) at i = c: work and memory are O(t), of c + h + v a token and channel.

Exponents are differences with j <= i, so no factor exceeds 1 (`_pairs`). A document that begins
inside a chunk is a mask, not a decay of −∞: L, M and N hold pairs of one document, S reaches the
tokens before the first beginning, and what leaves is of the last document.

Source: Gated DeltaNet (2412.06464), sec. 3.3; Kimi Linear (2510.26692), sec. 3; RWKV-7
(2503.14456), sec. 4; parallel over time as in DeltaNet (2406.06484), sec. 3.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

CHUNK = 64
# The widest span of exponents that is factored into e^{G_i − R} · e^{R − G_j}: each within e^{±20}.
_FACTORED_SPAN = 40.0


class Result(NamedTuple):
    """Values [b, t, n, v] in q's dtype, and the state [b, n, h, v] behind the last token."""

    values: jax.Array
    state: jax.Array


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    state: jax.Array,
    is_first: jax.Array,
    *,
    chunk_size: int = CHUNK,
) -> Result:
    """(1) with what the state holds at k replaced by v, the share β of it, after a decay.

    S_t = (I − β k kᵀ) Diag(e^g) S_{t−1} + β k vᵀ. A token with k = 0 and log_decay = 0 leaves the
    state as it is.

    Args:
      q, k: [b, t, n, h].  v: [b, t, n, v].  beta: [b, t, n].
      log_decay: g, at most 0, [b, t, n, 1] a head or [b, t, n, h] a channel.
      state: [b, n, h, v], before the first token, in at least float32.
      is_first: bool [b, t], tokens that begin a document: to them the state is 0.
    Source: Gated DeltaNet (2412.06464), eq. 10; Kimi Linear (2510.26692), eq. 1.
    """
    wide, beta = state.dtype, beta.astype(state.dtype)[..., None]
    b = -beta * jnp.exp(log_decay.astype(wide)) * k
    tokens = _Tokens(q, k, b, beta * v, log_decay.astype(wide), None)
    return _chunked(tokens, state, is_first, chunk_size, math.inf)


def general_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    a: jax.Array,
    b: jax.Array,
    state: jax.Array,
    is_first: jax.Array,
    *,
    fastest: float,
    chunk_size: int = CHUNK,
) -> Result:
    """(1) as it stands; arguments as those of `delta_rule`, with a and b [b, t, n, h].

    Args:
      fastest: the largest −log_decay of a token that can be; infinity where there is no bound.
    Source: RWKV-7 (2503.14456), eq. 16.
    """
    tokens = _Tokens(q, a, b, v, log_decay, k)
    return _chunked(tokens, state, is_first, chunk_size, fastest)


def step_by_step(q, k, v, log_decay, a, b, state, is_first) -> Result:
    """(1) a token at a time: what the chunks must equal; arguments as of `general_delta_rule`."""

    def step(state, token):
        q, k, v, g, a, b, is_first = token
        state = jnp.where(is_first[:, None, None, None], 0, state)
        read = jnp.einsum("bnhv,bnh->bnv", state, b)
        state = jnp.exp(g)[..., None] * state + _outer(a, read) + _outer(k, v)
        return state, jnp.einsum("bnhv,bnh->bnv", state, q)

    floats = (x.astype(state.dtype) for x in (q, k, v, log_decay, a, b))
    by_time = [jnp.moveaxis(x, 1, 0) for x in (*floats, is_first)]
    state, values = jax.lax.scan(step, state, tuple(by_time))
    return Result(jnp.moveaxis(values, 0, 1).astype(q.dtype), state)


def _outer(left, right):
    return left[..., :, None] * right[..., None, :]


# --- Chunks --------------------------------------------------------------------------------------


class _Tokens(NamedTuple):
    """What tokens bring, [b, t, n, ...], or [i, b, n, c, ...] in chunks; k is None where a is."""

    q: jax.Array
    a: jax.Array
    b: jax.Array
    v: jax.Array
    log_decay: jax.Array
    k: jax.Array | None


class _Chunks(NamedTuple):
    """What the loop over chunks reads, a chunk at a time.

    Attributes:
      reads, fresh: T B [i, b, n, c, h] and T F [i, b, n, c, v] of (6).
      keys: [i, b, n, c, h], e^{G_c − G_j} a_j of the tokens whose writes leave the chunk, (3).
      decay: [i, b, n, h, 1], e^{G_c}; 0 where a document begins in the chunk.
      brought: [i, b, n, h, v], the sum over k_j v_jᵀ of (3), or None.
    """

    reads: jax.Array
    fresh: jax.Array
    keys: jax.Array
    decay: jax.Array
    brought: jax.Array | None


def _chunked(tokens: _Tokens, state, is_first, chunk_size, fastest) -> Result:
    time, dtype = tokens.q.shape[1], tokens.q.dtype
    size = chunk_length(time, chunk_size)
    cut = functools.partial(_cut, size=size, dtype=state.dtype)
    tokens = jax.tree.map(cut, tokens)
    begun = _cut(is_first[..., None, None], size, jnp.int32).cumsum(axis=-2)
    chunks, rows, m, direct = _solved(tokens, begun, fastest)
    state, (entering, x) = jax.lax.scan(_leave, state, chunks)
    values = _dot("...ih,...hv->...iv", rows, entering) + _dot("...ij,...jv->...iv", m, x)  # (5)
    values = values if direct is None else values + direct
    values = rearrange(values, "i b n c v -> b (i c) n v")
    return Result(values[:, :time].astype(dtype), state)


def chunk_length(time: int, most: int = CHUNK) -> int:
    """Tokens of a chunk: the least power of two that holds `time` tokens, at most `most`.

    >>> chunk_length(1), chunk_length(5), chunk_length(1000)
    (1, 8, 64)
    """
    return min(most, 1 << (time - 1).bit_length())


def _cut(x, size, dtype):
    """[b, t, n, h] in chunks [i, b, n, c, h], padded by zeros, which leave the state as it is."""
    padding = [(0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)]
    return rearrange(jnp.pad(x.astype(dtype), padding), "b (i c) n h -> i b n c h", c=size)


def _leave(state, chunk: _Chunks):
    """The state behind a chunk; the one before it and X."""
    x = _dot("...ih,...hv->...iv", chunk.reads, state) + chunk.fresh  # (6)
    leaving = chunk.decay * state + _dot("...jh,...jv->...hv", chunk.keys, x)  # (3)
    leaving = leaving if chunk.brought is None else leaving + chunk.brought
    return leaving, (state, x)


def _solved(tokens: _Tokens, begun, fastest):
    """The chunks; the rows e^{G_i} q_i, M and N V of (5), the last None without k.

    begun: int32 [i, b, 1, c, 1], documents that have begun in a token's chunk, its own included.
    """
    q, a, b, v, log_decay, k = tokens
    after = jnp.cumsum(log_decay, axis=-2)  # G_i
    before = jnp.pad(after[..., :-1, :], [(0, 0)] * 3 + [(1, 0), (0, 0)])  # G_{i−1}
    pairs = functools.partial(_pairs, column_log=after, fastest=fastest)
    is_seen = _is_seen(begun)
    is_earlier = is_seen & ~jnp.eye(v.shape[-2], dtype=bool)[None, None, None]

    lower = jnp.where(is_earlier, pairs(b, before, a), 0)
    m = jnp.where(is_seen, pairs(q, after, a), 0)
    inverse = _inverse_of_one_minus(lower)
    rows = [jnp.where(begun == 0, jnp.exp(log) * x, 0) for log, x in ((before, b), (after, q))]
    to_end = jnp.where(begun == begun[..., -1:, :], jnp.exp(after[..., -1:, :] - after), 0)
    decay = jnp.where(begun[..., -1:, :] == 0, jnp.exp(after[..., -1:, :]), 0)
    brought, direct = None, None
    if k is not None:
        read = jnp.where(is_earlier, pairs(b, before, k), 0)
        n = jnp.where(is_seen, pairs(q, after, k), 0)
        brought = _dot("...jh,...jv->...hv", to_end * k, v)
        v, direct = _dot("...ij,...jv->...iv", read, v), _dot("...ij,...jv->...iv", n, v)
    reads, fresh = (_dot("...ij,...jv->...iv", inverse, x) for x in (rows[0], v))
    chunks = _Chunks(reads, fresh, to_end * a, jnp.swapaxes(decay, -1, -2), brought)
    return chunks, rows[1], m, direct


def _is_seen(begun):
    """bool [i, b, 1, c, c]: pairs of a token and one of its document, not after it."""
    is_one = begun == jnp.swapaxes(begun, -1, -2)
    return is_one & jnp.tri(begun.shape[-2], dtype=bool)[None, None, None]


def _pairs(rows, row_log, columns, column_log, fastest):
    """[..., c, c], for j <= i: Σ_h rows_i · columns_j · e^{row_log_i − column_log_j}.

    With one decay a head the exponentials are a factor of the products. With one a channel they
    go into both operands, e^{row_log_i − R} and e^{R − column_log_j}. Between the second half of
    the tokens and the first, R = column_log of the first half's last token makes both at most 1;
    inside the halves the same again. Tokens whose decays span no more than `_FACTORED_SPAN` take
    their middle for R.
    """
    size = rows.shape[-2]
    if row_log.shape[-1] == 1:
        exponents = row_log - jnp.swapaxes(column_log, -1, -2)
        return _dot("...ih,...jh->...ij", rows, columns) * jnp.exp(jnp.minimum(exponents, 0))
    if size == 1:  # a token and itself, only ever with e^0
        return jnp.sum(rows * columns, axis=-1, keepdims=True)
    half = size // 2
    if size * fastest <= _FACTORED_SPAN:
        return _factored(rows, row_log, columns, column_log, column_log[..., half : half + 1, :])
    early, early_log = columns[..., :half, :], column_log[..., :half, :]
    late, late_log = rows[..., half:, :], row_log[..., half:, :]
    corner = _factored(late, late_log, early, early_log, early_log[..., -1:, :])
    halves = (_halves(x, half) for x in (rows, row_log, columns, column_log))
    return _lower(_pairs(*halves, fastest), corner)


def _halves(x, half):
    """[..., n, c, h] as [..., 2n, c/2, h]: no axis is added, of which XLA's CPU kernels take 8."""
    return x.reshape(*x.shape[:-3], -1, half, x.shape[-1])


def _factored(rows, row_log, columns, column_log, middle):
    rows, columns = rows * jnp.exp(row_log - middle), columns * jnp.exp(middle - column_log)
    return _dot("...ih,...jh->...ij", rows, columns)


def _lower(halves, corner):
    """[..., n, c, c] from its diagonal blocks [..., 2n, c/2, c/2] and the one below; 0 above."""
    early, late = halves[..., 0::2, :, :], halves[..., 1::2, :, :]
    top = jnp.concatenate([early, jnp.zeros_like(early)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([corner, late], axis=-1)], axis=-2)


@jax.custom_vjp
def _inverse_of_one_minus(lower):
    """T = (I − L)⁻¹ of strictly lower L [..., c, c], c a power of two, from the halves' inverses.

    A sum of powers of L would be shorter, and useless: for L of −1, as a token repeated without
    decay gives, they grow to C(c, c/2) where T has entries of 1.

    dT = T dL T, so the gradient of L is Tᵀ·dT·Tᵀ. Substitution by rows, as LAPACK does it, took
    4 to 10 times as long on 2 cores.
    """
    if lower.shape[-1] == 1:
        return jnp.ones_like(lower)
    half = lower.shape[-1] // 2
    diagonal = jnp.stack([lower[..., :half, :half], lower[..., half:, half:]], axis=-3)
    halves = _inverse_of_one_minus(diagonal.reshape(*lower.shape[:-3], -1, half, half))
    corner = _dot("...ij,...jk->...ik", halves[..., 1::2, :, :], lower[..., half:, :half])
    return _lower(halves, _dot("...ij,...jk->...ik", corner, halves[..., 0::2, :, :]))


def _inverse_forward(lower):
    inverse = _inverse_of_one_minus(lower)
    return inverse, inverse


def _inverse_backward(inverse, gradient):
    inner = _dot("...ji,...jk->...ik", inverse, gradient)
    return (_dot("...ij,...kj->...ik", inner, inverse),)


_inverse_of_one_minus.defvjp(_inverse_forward, _inverse_backward)


# A TPU would multiply float32 in bfloat16, and errors of T B come back with every chunk.
_dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


# --- Costs ---------------------------------------------------------------------------------------


def flops_per_token(
    time: int,
    head_dim: int,
    value_dim: int,
    *,
    has_channels: bool = False,
    is_general: bool = False,
) -> float:
    """FLOPs of the products that a token of one head costs in a row of `time` tokens.

    With chunks of c, keys of h, values of v: L and M, 2ch each ((c − 1)h in halves, `_pairs`);
    T, 2(c² − 1)/3; T B, T F and M X, 2c(h + 2v); and 2hv each for T B S, Q S and what leaves.
    `is_general` has N and b's pairs with k besides, their products with V, and K V.

    Args:
      has_channels: whether decays without a bound differ by channel (`delta_rule`).
    """
    size = chunk_length(time)
    pairs = (size - 1 if has_channels else 2 * size) * head_dim
    inverse = 2 * (size**2 - 1) / 3
    common = 2 * pairs + inverse + 2 * size * (head_dim + 2 * value_dim)
    common += 6 * head_dim * value_dim
    if not is_general:
        return common
    return common + 2 * pairs + 4 * size * value_dim + 2 * head_dim * value_dim

"""Cross-entropy against a tied embedding that never holds all logits.

Gemma's vocabulary has 262 144 entries: the logits of 2048 tokens would take 2 GB. Time is cut
into chunks; a chunk's logits are formed, reduced and dropped, and formed again in the backward.
With z = hidden·embeddingᵀ, l = z or softcap·tanh(z/softcap), and sums over tokens with mask m:

    (1)  s   = log Σ_v exp(l_v)                     per token
    (2)  nll = Σ m·(s − l_target)         zsq = Σ m·s²

Kept: hidden, embedding and s (one number a token). Backward, for cotangents a of nll, c of zsq:

    (3)  dl_v = m·[ (a + 2·c·s)·exp(l_v − s) − a·1(v = target) ]
    (4)  dz_v = dl_v·(1 − (l_v/softcap)²)           with a softcap
    (5)  dhidden = dz·embedding                     dembedding = dzᵀ·hidden, summed over chunks

The batch axis stays whole, so that a batch sharded over devices stays so.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.axes import Hidden, Mask, Scalar, Tokens
from hybrid.ops.dense import over_tokens

LOGIT_BYTES = 64 * 2**20


class LossSums(NamedTuple):
    """Sums over the tokens that the mask keeps.

    Attributes:
      nll: negative log-likelihoods, in nats.
      z: squares of the logsumexp, for the z-loss.
      count: int32, how many tokens.
    """

    nll: Scalar
    z: Scalar
    count: Scalar  # type: ignore[assignment]  # tuple has a method of that name


def cross_entropy(
    hidden: Hidden,
    embedding: jax.Array,
    targets: Tokens,
    mask: Mask,
    *,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> LossSums:
    """Sums of −log p(target) and of logsumexp² over the tokens with mask True.

    Args:
      hidden: [b, t, d], after the final norm.  embedding: [v, d].
      targets: int32 [b, t].  mask: bool [b, t].
      softcap: logits become softcap·tanh(logits/softcap).
      chunk_size: tokens of a row whose logits exist at a time; by default as many as keep a
        chunk's float32 logits within 64 MB.
    Returns: LossSums; logits, softcap and sums in at least float32.
    """
    count = jnp.sum(mask, dtype=jnp.int32)
    batch, length, _ = hidden.shape
    chunk = chunk_size or default_chunk_size(batch, length, embedding.shape[0])
    nll, z = _sums(hidden, embedding, targets, mask, softcap, chunk)
    return LossSums(nll, z, count)


def token_nll(
    hidden: Hidden,
    embedding: jax.Array,
    targets: Tokens,
    *,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """−log p(target) of each token, [b, t] in at least float32, chunked as `cross_entropy`."""
    batch, length, _ = hidden.shape
    chunk = chunk_size or default_chunk_size(batch, length, embedding.shape[0])

    def one(carry, inputs):
        logits = _logits(inputs[0], embedding, softcap)
        return carry, _log_sum_exp(logits, softcap) - _pick(logits, inputs[1])

    _, nll = jax.lax.scan(one, None, _chunks(chunk, hidden, targets))
    return _whole(nll, length)


def default_chunk_size(batch: int, length: int, vocab_size: int) -> int:
    """Tokens of a row in a chunk, in equal chunks of at most LOGIT_BYTES of float32 logits."""
    most = max(1, LOGIT_BYTES // (4 * batch * vocab_size))
    num_chunks = math.ceil(length / most)
    return math.ceil(length / num_chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sums(hidden, embedding, targets, mask, softcap, chunk):
    return _forward(hidden, embedding, targets, mask, softcap, chunk)[0]


def _forward(hidden, embedding, targets, mask, softcap, chunk):
    def one(sums, inputs):
        x, target, keep = inputs
        logits = _logits(x, embedding, softcap)
        s = _log_sum_exp(logits, softcap)  # (1)
        nll = jnp.sum(jnp.where(keep, s - _pick(logits, target), 0))  # (2)
        z = jnp.sum(jnp.where(keep, s * s, 0))
        return (sums[0] + nll, sums[1] + z), s

    zero = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
    sums, s = jax.lax.scan(one, (zero, zero), _chunks(chunk, hidden, targets, mask))
    return sums, (hidden, embedding, targets, mask, s)


def _backward(softcap, chunk, kept, cotangents):
    hidden, embedding, targets, mask, s = kept
    to_nll, to_z = cotangents

    def one(dembedding, inputs):
        x, target, keep, s = inputs
        logits = _logits(x, embedding, softcap)
        s, keep = s[..., None], keep[..., None]
        hit = _hit(target, embedding.shape[0])
        dlogits = (to_nll + 2 * to_z * s) * jnp.exp(logits - s) - jnp.where(hit, to_nll, 0)  # (3)
        if softcap is not None:
            dlogits = dlogits * (1 - jnp.square(logits / softcap))  # (4)
        dlogits = jnp.where(keep, dlogits, 0).astype(x.dtype)
        dx = jnp.einsum("bcv,vd->bcd", dlogits, embedding.astype(x.dtype))  # (5)
        return dembedding + over_tokens(dlogits, x), dx

    zero = jnp.zeros(embedding.shape, s.dtype)
    inputs = (*_chunks(chunk, hidden, targets, mask), s)
    dembedding, dhidden = jax.lax.scan(one, zero, inputs)
    return _whole(dhidden, hidden.shape[1]), dembedding.astype(embedding.dtype), None, None


_sums.defvjp(_forward, _backward)


def _logits(x, embedding, softcap):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    embedding = embedding.astype(x.dtype)
    logits = jnp.einsum("bcd,vd->bcv", x, embedding, preferred_element_type=wide)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _log_sum_exp(logits, softcap):
    """Logits that a softcap bounds need no shift: exp(60) is far from float32's limits."""
    if softcap is not None and softcap <= 60:
        return jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    return jax.nn.logsumexp(logits, axis=-1)


def _pick(logits, target):
    """The target's logit as a masked sum: a gather would move a vocabulary that is sharded."""
    return jnp.sum(jnp.where(_hit(target, logits.shape[-1]), logits, 0), axis=-1)


def _hit(target, vocab_size):
    return jnp.arange(vocab_size)[None, None, :] == target[..., None]


def _chunks(chunk, *arrays):
    """[b, t, ...] arrays, padded in time with zeros, as [chunks, b, chunk, ...]."""

    def cut(array):
        pad = -array.shape[1] % chunk
        padded = jnp.pad(array, [(0, 0), (0, pad)] + [(0, 0)] * (array.ndim - 2))
        return rearrange(padded, "b (c s) ... -> c b s ...", s=chunk)

    return tuple(cut(array) for array in arrays)


def _whole(chunks, length):
    """Undoes `_chunks`."""
    return rearrange(chunks, "c b s ... -> b (c s) ...")[:, :length]

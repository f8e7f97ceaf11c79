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

`score` gives (2) token by token, for evaluations. The batch axis stays whole, so that a batch
sharded over devices stays so.
"""

import functools
import math
from typing import Any, NamedTuple

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


class TokenScores(NamedTuple):
    """Scores of each token, arrays of jax or numpy; 0 and False where the mask is False.

    Attributes:
      nll: negative log-likelihood in nats, [b, t] in at least float32.
      is_top: whether the target has the largest logit (the first of equal ones), bool [b, t];
        None where it was not computed.
    """

    nll: Any
    is_top: Any


def logits(hidden: jax.Array, embedding: jax.Array, softcap: float = 0.0) -> jax.Array:
    """hidden [..., d] and embedding [v, d] -> [..., v] in at least float32.

    With a softcap above 0 they are softcap·tanh(z/softcap).
    """
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    embedding = embedding.astype(hidden.dtype)
    z = jnp.einsum("...d,vd->...v", hidden, embedding, preferred_element_type=wide)
    return softcap * jnp.tanh(z / softcap) if softcap else z


def cross_entropy(
    hidden: Hidden,
    embedding: jax.Array,
    targets: Tokens,
    mask: Mask,
    *,
    softcap: float = 0.0,
    chunk_size: int = 0,
) -> LossSums:
    """Sums of −log p(target) and of logsumexp² over the tokens with mask True.

    Args:
      hidden: [b, t, d], after the final norm.  embedding: [v, d].
      targets: int32 [b, t].  mask: bool [b, t].
      softcap: that of the logits; 0: none.
      chunk_size: tokens of a row whose logits exist at a time; 0: as many as keep a chunk's
        float32 logits within 64 MB.
    Returns: LossSums; logits, softcap and sums in at least float32.
    """
    batch, length = targets.shape
    chunk = chunk_size or default_chunk_size(batch, length, embedding.shape[0])
    nll, z = _sums(hidden, embedding, targets, mask, softcap, chunk)
    return LossSums(nll, z, jnp.sum(mask, dtype=jnp.int32))


def score(
    hidden: Hidden,
    embedding: jax.Array,
    targets: Tokens,
    mask: Mask,
    *,
    softcap: float = 0.0,
    with_top: bool = False,
    chunk_size: int = 0,
) -> TokenScores:
    """−log p(target) of each token and, `with_top`, whether its logit is the largest.

    Arguments are those of `cross_entropy`.
    """
    batch, length = targets.shape
    chunk = chunk_size or default_chunk_size(batch, length, embedding.shape[0])

    def in_order(array):
        # With `is_top` a chunk is [c, b], else [b, c]: the orders differ in the last bit of a sum,
        # and figures of earlier versions were made so.
        return array.swapaxes(0, 1) if with_top else array

    def of_chunk(carry, inputs):
        x, target = map(in_order, inputs)
        out, _, nll = _token_terms(x, embedding, target, softcap, shift=with_top)
        is_top = in_order(jnp.argmax(out, axis=-1) == target) if with_top else None
        return carry, (in_order(nll), is_top)

    _, chunks = jax.lax.scan(of_chunk, None, _chunks(chunk, hidden, targets))
    nll, is_top = jax.tree.map(lambda chunk: _whole(chunk, length), chunks)
    return TokenScores(jnp.where(mask, nll, 0), is_top & mask if with_top else None)


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
        _, s, nll = _token_terms(x, embedding, target, softcap)
        nll = jnp.sum(jnp.where(keep, nll, 0))
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
        out = logits(x, embedding, softcap)
        s, keep = s[..., None], keep[..., None]
        hit = _hit(target, embedding.shape[0])
        dlogits = (to_nll + 2 * to_z * s) * jnp.exp(out - s) - jnp.where(hit, to_nll, 0)  # (3)
        if softcap:
            dlogits = dlogits * (1 - jnp.square(out / softcap))  # (4)
        dlogits = jnp.where(keep, dlogits, 0).astype(x.dtype)
        dx = jnp.einsum("bcv,vd->bcd", dlogits, embedding.astype(x.dtype))  # (5)
        return dembedding + over_tokens(dlogits, x), dx

    zero = jnp.zeros(embedding.shape, s.dtype)
    inputs = (*_chunks(chunk, hidden, targets, mask), s)
    dembedding, dhidden = jax.lax.scan(one, zero, inputs)
    return _whole(dhidden, hidden.shape[1]), dembedding.astype(embedding.dtype), None, None


_sums.defvjp(_forward, _backward)


def _token_terms(x, embedding, target, softcap, shift=False):
    """A chunk's logits l, their log-sum-exp (1), and −log p(target) as in (2).

    Logits that a softcap bounds need no shift by the largest: exp(60) is far from float32's limits.
    """
    out = logits(x, embedding, softcap)
    if 0 < softcap <= 60 and not shift:
        s = jnp.log(jnp.sum(jnp.exp(out), axis=-1))
    else:
        s = jax.nn.logsumexp(out, axis=-1)
    # A masked sum: a gather of the target's logit would move a vocabulary that is sharded.
    hit = _hit(target, embedding.shape[0])
    return out, s, s - jnp.sum(jnp.where(hit, out, 0), axis=-1)


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

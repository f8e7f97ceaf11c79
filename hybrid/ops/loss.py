"""Cross-entropy against a tied embedding that never holds all logits, nor the whole embedding.

Gemma's vocabulary has 262 144 entries: the logits of 2048 tokens would take 2 GB. The vocabulary
is cut into blocks of rows; the logits of all of a device's tokens against one block are formed,
reduced and dropped, and formed again in the backward. With z = hidden·embeddingᵀ,
l = z or softcap·tanh(z/softcap), and sums over tokens with mask m:

    (1)  s   = log Σ_v exp(l_v)                     per token, a running sum over blocks
    (2)  nll = Σ m·(s − l_target)         zsq = Σ m·s²

Kept: hidden, embedding and s (one number a token). Backward, for cotangents a of nll, c of zsq:

    (3)  dl_v = m·[ (a + 2·c·s)·exp(l_v − s) − a·1(v = target) ]
    (4)  dz_v = dl_v·(1 − (l_v/softcap)²)           with a softcap
    (5)  dhidden = Σ_blocks dz·embedding            dembedding = dzᵀ·hidden, block by block

On a mesh every device walks the blocks for its own tokens. Where the embedding's columns are split
as the tokens are (fsdp), a block is gathered when its turn comes, and its gradient is summed and
scattered at once: 2 + 2 bytes (bfloat16, twice) and 4 bytes (float32) a parameter and step are all
that moves. Blocks of time in place of the vocabulary would gather the whole table for each of them.
Where its rows are split (tensor), each device walks its own, and the sums of (1) and (5) are added.

`score` gives (2) token by token, for evaluations.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybrid import axes
from hybrid.axes import Hidden, Mask, Scalar, Tokens
from hybrid.ops.dense import over_tokens
from hybrid.ops.dispatch import per_device
from hybrid.ops.table import HIDDEN, TOKENS, TableParts

LOGIT_BYTES = 64 * 2**20
FEWEST_ROWS = 512  # of a block: products with fewer leave a matrix unit idle
LARGEST_EXPONENT = 60  # exp of it, times a vocabulary, is far from float32's limits

_TABLE = (axes.VOCAB, axes.EMBED)


class GroupSums(NamedTuple):
    """Sums over the tokens of each group of rows.

    Attributes:
      nll: [g], in nats.
      count: int32 [g], how many tokens.
    """

    nll: jax.Array
    count: jax.Array  # type: ignore[assignment]  # tuple has a method of that name


class LossSums(NamedTuple):
    """Sums over the tokens that the mask keeps.

    Attributes:
      nll: negative log-likelihoods, in nats.
      z: squares of the logsumexp, for the z-loss.
      count: int32, how many tokens.
      by_group: the same of each group of rows, where there are some.
    """

    nll: Scalar
    z: Scalar
    count: Scalar  # type: ignore[assignment]  # tuple has a method of that name
    by_group: GroupSums | None = None


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
    block_size: int = 0,
    groups: jax.Array | None = None,
) -> LossSums:
    """Sums of −log p(target) and of logsumexp² over the tokens with mask True.

    Args:
      hidden: [b, t, d], after the final norm.  embedding: [v, d].
      targets: int32 [b, t].  mask: bool [b, t].
      softcap: that of the logits; 0: none.
      block_size: rows of the embedding whose logits a device has at a time; 0:
        `default_block_size`.
      groups: bool [b, g], the rows of each group, or None. What is summed by group has no gradient.
    Returns: LossSums; logits, softcap and sums in at least float32.
    """
    nll, z, of_groups = _sums(hidden, embedding, targets, mask, groups, softcap, block_size)
    count = jnp.sum(mask, dtype=jnp.int32)
    if groups is None:
        return LossSums(nll, z, count)
    counts = _by_group(groups, mask.astype(jnp.int32))
    return LossSums(nll, z, count, GroupSums(of_groups, counts))


def _by_group(groups: jax.Array, of_tokens: jax.Array) -> jax.Array:
    """[b, g] and [b, t] -> [g], in the dtype of what is summed."""
    of_rows = jnp.sum(of_tokens, axis=1, keepdims=True, dtype=of_tokens.dtype)
    return jnp.sum(jnp.where(groups, of_rows, 0), axis=0, dtype=of_tokens.dtype)


def score(
    hidden: Hidden,
    embedding: jax.Array,
    targets: Tokens,
    mask: Mask,
    *,
    softcap: float = 0.0,
    with_top: bool = False,
    block_size: int = 0,
) -> TokenScores:
    """−log p(target) of each token and, `with_top`, whether its logit is the largest.

    Arguments are those of `cross_entropy`.
    """
    parts = TableParts.of(targets, embedding, axes.EMBED)

    def of_part(hidden, table, targets):
        terms = _token_terms(hidden, table, targets, softcap, block_size, parts, with_top)
        return terms.s - terms.target, terms.top == targets if with_top else None

    like_targets = (TOKENS, targets.shape)
    nll, is_top = per_device(
        of_part,
        (hidden, embedding, targets),
        (HIDDEN, _TABLE, TOKENS),
        (like_targets, like_targets if with_top else None),
    )
    return TokenScores(jnp.where(mask, nll, 0), is_top & mask if with_top else None)


def default_block_size(num_tokens: int, vocab_size: int) -> int:
    """Rows of a block: equal blocks of at most LOGIT_BYTES of float32 logits, or FEWEST_ROWS.

    A size that divides the vocabulary where there is one not much smaller.
    """
    most = min(vocab_size, max(FEWEST_ROWS, LOGIT_BYTES // (4 * num_tokens)))
    even = math.ceil(vocab_size / math.ceil(vocab_size / most))
    return next((size for size in range(most, even // 2, -1) if vocab_size % size == 0), even)


# --- What each device computes ---------------------------------------------------------------


class _Terms(NamedTuple):
    """Of each token: the log-sum-exp (1), the target's logit, the id of the largest (or None)."""

    s: jax.Array
    target: jax.Array
    top: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _sums(hidden, embedding, targets, mask, groups, softcap, block_size):
    return _forward(hidden, embedding, targets, mask, groups, softcap, block_size)[0]


def _forward(hidden, embedding, targets, mask, groups, softcap, block_size):
    parts = TableParts.of(targets, embedding, axes.EMBED)

    def of_part(hidden, table, targets, mask, groups):
        s, target, _ = _token_terms(hidden, table, targets, softcap, block_size, parts)
        of_tokens = jnp.where(mask, s - target, 0)
        of_groups = None if groups is None else _by_group(groups, of_tokens)
        sums = jnp.sum(of_tokens), jnp.sum(jnp.where(mask, s * s, 0)), of_groups
        return *(jax.lax.psum(sums, parts.tokens) if parts.tokens else sums), s

    by_row = None if groups is None else (axes.BATCH, None)
    operands = hidden, embedding, targets, mask, groups
    names = HIDDEN, _TABLE, TOKENS, TOKENS, by_row
    of_groups = None if groups is None else ((None,), groups.shape[1:])
    results = ((), ()), ((), ()), of_groups, (TOKENS, targets.shape)
    *sums, s = per_device(of_part, operands, names, results)
    return tuple(sums), (hidden, embedding, targets, mask, s)


def _backward(softcap, block_size, kept, cotangents):
    hidden, embedding, targets, mask, s = kept
    cotangents = cotangents[:2]  # sums by group are told, not minimised
    parts = TableParts.of(targets, embedding, axes.EMBED)

    def of_part(hidden, table, targets, mask, s, cotangents):
        to_nll, to_z = cotangents
        blocks = _Blocks.of(table, hidden, block_size, parts)
        s, keep, wide = s[..., None], mask[..., None], s.dtype

        def one(gradients, index):
            dhidden, dtable = gradients
            rows, out, hit, is_new = blocks.at(index, hidden, targets, softcap)
            dlogits = (to_nll + 2 * to_z * s) * jnp.exp(out - s) - jnp.where(hit, to_nll, 0)  # (3)
            if softcap:
                dlogits = dlogits * (1 - jnp.square(out / softcap))  # (4)
            keep_new = keep if is_new is None else keep & is_new
            dlogits = jnp.where(keep_new, dlogits, 0).astype(hidden.dtype)
            dx = jnp.einsum("btv,vd->btd", dlogits, rows, preferred_element_type=wide)  # (5)
            drows = parts.scattered_sum(over_tokens(dlogits, hidden))
            return (dhidden + dx, blocks.put(dtable, index, drows)), None

        zeros = jnp.zeros(hidden.shape, wide), jnp.zeros(table.shape, wide)
        dhidden, dtable = blocks.walk(one, zeros)
        dhidden, dtable = parts.sum_of_rows(dhidden), parts.sum_of_tokens(dtable)
        return dhidden.astype(hidden.dtype), dtable.astype(table.dtype)

    operands = (hidden, embedding, targets, mask, s, cotangents)
    names = (HIDDEN, _TABLE, TOKENS, TOKENS, TOKENS, ((), ()))
    results = (HIDDEN, hidden.shape), (_TABLE, embedding.shape)
    return *per_device(of_part, operands, names, results), None, None, None


_sums.defvjp(_forward, _backward)


def _token_terms(hidden, table, targets, softcap, block_size, parts, with_top=False) -> _Terms:
    """The terms of a device's tokens [b, t], over the whole vocabulary."""
    blocks = _Blocks.of(table, hidden, block_size, parts)
    is_bounded = 0 < softcap <= LARGEST_EXPONENT and not with_top
    wide = jnp.promote_types(hidden.dtype, jnp.float32)

    def one(carry, index):
        peak, total, target, top = carry
        _, out, hit, is_new = blocks.at(index, hidden, targets, softcap)
        # A masked sum: a gather of the target's logit would move a vocabulary that is sharded.
        target = target + jnp.sum(jnp.where(hit, out, 0), axis=-1)
        if is_new is not None:
            out = jnp.where(is_new, out, -jnp.inf)
        if is_bounded:
            return (peak, total + jnp.sum(jnp.exp(out), axis=-1), target, top), None
        highest = jnp.max(out, axis=-1)
        if with_top:
            first = blocks.first_id(index) + jnp.argmax(out, axis=-1).astype(jnp.int32)
            top = jnp.where(highest > peak, first, top)
        new = jnp.maximum(peak, highest)
        more = jnp.sum(jnp.exp(out - new[..., None]), axis=-1)
        return (new, total * jnp.exp(peak - new) + more, target, top), None

    zero = jnp.zeros(targets.shape, wide)
    lowest = zero if is_bounded else jnp.full(targets.shape, jnp.finfo(wide).min)
    start = (lowest, zero, zero, jnp.zeros(targets.shape, jnp.int32))
    peak, total, target, top = blocks.walk(one, start)
    if parts.rows:
        peaks = jax.lax.pmax(peak, parts.rows)
        total = parts.sum_of_rows(total * jnp.exp(peak - peaks))
        target = parts.sum_of_rows(target)
        top = jax.lax.pmin(jnp.where(peak == peaks, top, jnp.iinfo(jnp.int32).max), parts.rows)
        peak = peaks
    return _Terms(peak + jnp.log(total), target, top if with_top else None)


class _Blocks(NamedTuple):
    """A device's rows of the embedding, cut into blocks; the last one reaches back where they don't
    divide evenly, and its rows that stand in the block before are not new.

    Attributes:
      table: [v, d], this device's part.  first_row: the id of its first row.
      size, num: rows of a block, and blocks.
    """

    table: jax.Array
    parts: TableParts
    first_row: jax.Array
    size: int
    num: int

    @classmethod
    def of(cls, table, hidden, block_size, parts: TableParts) -> "_Blocks":
        num_rows, num_tokens = table.shape[0], hidden.shape[0] * hidden.shape[1]
        size = min(block_size or default_block_size(num_tokens, num_rows), num_rows)
        return cls(table, parts, parts.first_row(table), size, -(-num_rows // size))

    def walk(self, step, carry):
        """The carry after all blocks."""
        if self.num == 1:
            return step(carry, 0)[0]
        return jax.lax.scan(step, carry, jnp.arange(self.num, dtype=jnp.int32))[0]

    def at(self, index, hidden, targets, softcap):
        """A block's rows [c, d]; all tokens' logits against them, [b, t, c]; which of them are the
        targets'; which rows are new, bool [1, 1, c] (None: all)."""
        rows = self.parts.whole(self._cut(self.table, index).astype(hidden.dtype))
        ids = (self.first_id(index) + jnp.arange(self.size, dtype=jnp.int32))[None, None, :]
        hit = ids == targets[..., None]
        if not self._overlaps:
            return rows, logits(hidden, rows, softcap), hit, None
        is_new = ids - self.first_row >= index * self.size
        return rows, logits(hidden, rows, softcap), hit & is_new, is_new

    def first_id(self, index):
        """The id of a block's first row."""
        return self.first_row + self._start(index)

    def put(self, total, index, more):
        """The gradient of the table with that of a block in it."""
        if self.num == 1:
            return more
        if self._overlaps:
            more = more + self._cut(total, index)
        return jax.lax.dynamic_update_slice_in_dim(total, more, self._start(index), axis=0)

    @property
    def _overlaps(self) -> bool:
        return self.table.shape[0] % self.size > 0

    def _start(self, index):
        start = index * self.size
        return jnp.minimum(start, self.table.shape[0] - self.size) if self._overlaps else start

    def _cut(self, array, index):
        if self.num == 1:
            return array
        return jax.lax.dynamic_slice_in_dim(array, self._start(index), self.size, axis=0)

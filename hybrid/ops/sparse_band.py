"""Who sees whom in sparse attention, as a value: a window, the first blocks, and random ones.

Positions count from a document's first token, and so do blocks of `block_size` tokens: block i
holds positions i·c … i·c + c − 1. A query of block i sees the earlier tokens of its document in

    window    blocks i − window_blocks + 1 … i
    global    blocks 0 … num_global_blocks − 1
    random    num_random_blocks of the blocks between the two, or all where there are fewer

Longformer's causal pattern is that of blocks of one token without random ones. BigBird draws for
each head and layer anew; here a block draws once, for all heads and layers, by (seed, i) alone, so
a document has the same pattern in every row, cache and run.
Source: Longformer (2004.05150), sec. 3.1; BigBird (2007.14062), sec. 2 and app. D.

Read next: `attention/sparse.py`, which attends by it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

NONE = -1  # of a draw: no such block


@dataclasses.dataclass(frozen=True)
class SparseBand:
    """The visible keys of each query.

    Attributes:
      block_size: tokens of a block.
      window_blocks: blocks of the window, the query's own counted.
      num_global_blocks: first blocks of a document, which all its tokens see.
      num_random_blocks: blocks drawn for each block of queries.
      seed: of the draws, below 2³².
    """

    block_size: int
    window_blocks: int
    num_global_blocks: int = 0
    num_random_blocks: int = 0
    seed: int = 0

    @property
    def window_size(self) -> int:
        """Positions below it see all earlier ones by the window alone."""
        return self.block_size * self.window_blocks

    def visible(self, q_position, kv_position):
        """Whether a query sees a key of its document, bool; the arrays broadcast.

        A negative `kv_position` is no key.
        """
        q, kv = q_position // self.block_size, kv_position // self.block_size
        seen = (q - kv < self.window_blocks) | (kv < self.num_global_blocks)
        drawn = self.drawn(q)
        for i in range(self.num_random_blocks):
            seen |= kv == drawn[..., i]
        return seen & (kv_position <= q_position) & (kv_position >= 0)

    def drawn(self, block) -> jax.Array:
        """int32 [..., num_random_blocks]: the random blocks of each of `block`, or NONE.

        Robert Floyd's sampling of r from n candidates without repetition: step j = n − r … n − 1
        takes a number up to j, or j itself where that number is taken already.
        """
        block = jnp.asarray(block, jnp.int32)
        count, most = self._num_between(block), self.num_random_blocks
        taken: list[jax.Array] = []
        for i in range(most):
            last = jnp.maximum(count - most + i, 0)
            bits = _mixed(_mixed(_mixed(np.uint32(self.seed)) ^ block.astype(jnp.uint32)) ^ i)
            chosen = (bits % (last + 1).astype(jnp.uint32)).astype(jnp.int32)
            for earlier in taken:
                chosen = jnp.where(earlier == chosen, last, chosen)
            taken.append(chosen)
        few = (jnp.where(i < count, i, NONE) for i in range(most))
        ranks = [jnp.where(count <= most, *pair) for pair in zip(few, taken, strict=True)]
        ranks = [jnp.where(rank == NONE, NONE, self.num_global_blocks + rank) for rank in ranks]
        return jnp.stack(ranks, axis=-1) if ranks else jnp.zeros((*block.shape, 0), jnp.int32)

    def blocks_read(self, block) -> jax.Array:
        """int32 [..., blocks]: all that queries of `block` see, each once, or NONE."""
        block = jnp.asarray(block, jnp.int32)[..., None]
        outer = (1,) * (block.ndim - 1)
        window = block - jnp.arange(self.window_blocks, dtype=jnp.int32).reshape(*outer, -1)
        first = jnp.arange(self.num_global_blocks, dtype=jnp.int32).reshape(*outer, -1)
        first = jnp.where(first > block - self.window_blocks, NONE, first)
        parts = jnp.maximum(window, NONE), first, self.drawn(block[..., 0])
        return jnp.concatenate(parts, axis=-1)

    def num_visible(self, positions: np.ndarray) -> np.ndarray:
        """How many keys the queries at `positions` see."""
        block, inside = np.divmod(positions, self.block_size)
        far = np.minimum(self.num_global_blocks, np.maximum(0, block - self.window_blocks + 1))
        far += np.clip(self._num_between(block), 0, self.num_random_blocks)
        near = np.minimum(block, self.window_blocks - 1)
        return self.block_size * (near + far) + inside + 1

    def _num_between(self, block):
        """Blocks behind the global ones and before the window; negative where they meet."""
        return block - self.window_blocks + 1 - self.num_global_blocks


def _mixed(x):
    """A bijection of 32-bit numbers that changes half of the bits for each one of x.

    The draws are part of a model, so they must not change with a library's generator.
    Source: MurmurHash3's finalizer, behind an odd constant that moves 0.
    """
    with np.errstate(over="ignore"):
        x = x + np.uint32(0x9E3779B9)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return x ^ (x >> np.uint32(16))

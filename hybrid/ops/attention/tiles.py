"""Tiles of queries and keys, as attention in blocks cuts, scores and puts them.

A row of a tile is a query of one head of the group that reads a KV head. Scores are key-major,
[keys, rows]: `chunked.py` says why.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.ops.dense import dot


def query_rows(array, num_blocks, block_size, num_kv_heads):
    """[b, t, n, h] as [blocks, b, k, rows, h], padded at the end."""
    pad = num_blocks * block_size - array.shape[1]
    array = jnp.pad(array, ((0, 0), (0, pad), (0, 0), (0, 0)))
    return rearrange(array, "b (i c) (k g) h -> i b k (c g) h", c=block_size, k=num_kv_heads)


def key_rows(array, left, right):
    """[b, s, k, h] as [b, k, left + s + right, h]."""
    array = jnp.pad(array, ((0, 0), (left, right), (0, 0), (0, 0)))
    return rearrange(array, "b s k h -> b k s h")


def sink_rows(sinks, block_size, num_kv_heads):
    """[n] as [1, k, 1, rows]."""
    heads = rearrange(sinks, "(k g) -> 1 k 1 g", k=num_kv_heads)
    return jnp.tile(heads, (1, 1, 1, block_size))


def scores(keys, rows, scale, softcap):
    """[b, k, keys, rows] of [b, k, keys, h] and [b, k, rows, h]."""
    s = dot("bkch,bkrh->bkcr", keys, rows)
    s = s if scale == 1 else s * scale
    return s if softcap is None else softcap * jnp.tanh(s / softcap)


def cut(array, start, size, axis=2):
    """`size` from `start` on."""
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis=axis)


def add(array, start, more, axis=2):
    """The array with `more` added from `start` on."""
    new = cut(array, start, more.shape[axis], axis) + more
    return jax.lax.dynamic_update_slice_in_dim(array, new, start, axis=axis)

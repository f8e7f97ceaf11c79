"""Scores through the cache: a row of any length in bounded memory, and what a cache's dtype costs.

The row goes through in chunks, as a prompt does, and each chunk's stream is scored before the next
is read, so that the activations of a whole row never exist; the losses are those of the forward.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.inference.config import InferenceConfig
from hybrid.model import cache as state
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.protocol import CacheFormat


@functools.cache
def through_cache(score_hidden: Callable, inference: InferenceConfig) -> Callable:
    """A function (config, params, batch, *options) -> arrays [b, t, ...].

    Args:
      score_hidden: (config, params, x, targets, loss_mask, *options) -> arrays [b, t, ...]; say
        `model.score_hidden`.
      inference: form of the cache, and the chunk.
    The batch's rows hold one window each, from position 0, padding (segment 0) behind it.
    """

    def score(config: ModelConfig, params: model.Params, batch: Batch, *options):
        config = dataclasses.replace(config, remat="none", unroll=False)
        rows, length = batch.tokens.shape
        chunk = min(inference.prefill_chunk, length)
        num_chunks = -(-length // chunk)
        plan = model.layer_plan(config)
        dtype = inference.cache_dtype or config.dtype
        form = CacheFormat(length, dtype, inference.slack, inference.unified_cache)
        slots = model.slot_arrays(plan, form, config.dtype)
        row_lengths = jnp.sum(batch.segment_ids > 0, axis=1, dtype=jnp.int32)

        def cut(array):
            array = jnp.pad(array, ((0, 0), (0, num_chunks * chunk - length)))
            return rearrange(array, "b (c i) -> c b i", c=num_chunks)

        def step(cache, inputs):
            tokens, targets, loss_mask, first = inputs
            num_new = jnp.clip(row_lengths - first, 0, chunk)
            x, cache = model.extend(config, params, tokens, num_new, cache, slots)
            return cache, score_hidden(config, params, x, targets, loss_mask, *options)

        starts = chunk * jnp.arange(num_chunks, dtype=jnp.int32)
        inputs = *map(cut, (batch.tokens, batch.targets, batch.loss_mask)), starts
        _, scores = jax.lax.scan(step, state.allocate(plan, form, rows), inputs)
        join = functools.partial(rearrange, pattern="c b i ... -> b (c i) ...")
        return jax.tree.map(lambda array: join(array)[:, :length], scores)

    return score

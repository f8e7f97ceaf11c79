"""The model: embed -> stack -> final norm -> tied head; pure functions of (config, params, batch).

Parameters are a plain dict of stacked leaves, which is also what checkpoints hold:

    {"embedder": {"embedding"}, "segments": {segment: {run: {...}}}, "final_norm": {"scale"}}

and "layer_embedder": {"norm": {"scale"}} with per-layer embeddings, "positions" beside "embedding"
with learned ones.

`config` is a frozen, hashable `ModelConfig`; close over it or mark it static under jit.

Read first: `pattern.py` (a pattern and a depth become a plan), `mixers/` and `blocks/` (what a
layer is), `stack.py` (how a plan runs).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden, Logits, Positions, Segments, Tokens
from hybrid.data.batch import Batch
from hybrid.model import stack
from hybrid.model.blocks.block import LayerInputs
from hybrid.model.blocks.layer_embedding import with_rows
from hybrid.model.cache import Cache
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Embedder, RMSNorm
from hybrid.model.mixers.protocol import CacheFormat, CacheStep, Placement, shared_arrays
from hybrid.model.pattern import LayerPlan, plan_layers
from hybrid.model.stack import StackOutputs
from hybrid.ops import loss
from hybrid.ops.attention import context
from hybrid.ops.loss import LossSums, TokenScores
from hybrid.sharding import constrain

Params = dict


@functools.cache
def layer_plan(config: ModelConfig) -> LayerPlan:
    """The model's plan, computed once a config."""
    return plan_layers(config)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters, float32 (float64 in a float64 model)."""
    embedder_key, layers_key = jax.random.split(key)
    embedder = Embedder(config, rngs=nnx.Rngs(params=embedder_key))
    params = {
        "embedder": nnx.to_pure_dict(nnx.state(embedder)),
        "segments": stack.init(layer_plan(config), config, layers_key),
        "final_norm": nnx.to_pure_dict(nnx.state(_final_norm(config))),
    }
    if config.layer_embedding_dim:
        norm = RMSNorm(config.layer_embedding_dim, axes.LAYER_EMBED, config=config)
        params["layer_embedder"] = {"norm": nnx.to_pure_dict(nnx.state(norm))}
    return params


@functools.cache
def abstract(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, without values."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def logical_axes(config: ModelConfig) -> Params:
    """The tree of parameters with each leaf replaced by the names of its axes."""
    embedder = {"embedding": (axes.VOCAB, axes.EMBED)}
    if config.learned_positions:
        embedder["positions"] = (axes.VOCAB, axes.EMBED)
    names = {
        "embedder": embedder,
        "segments": stack.logical_axes(layer_plan(config), config),
        "final_norm": {"scale": (axes.EMBED,)},
    }
    if config.layer_embedding_dim:
        names["layer_embedder"] = {"norm": {"scale": (axes.LAYER_EMBED,)}}
    return names


def apart(config: ModelConfig, params: Params) -> Params:
    """Parameters, or their shardings, with layers cut out of their stacks (`stack.apart`)."""
    return params | {"segments": stack.apart(layer_plan(config), config, params["segments"])}


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: Tokens,
    positions: Positions | None = None,
    segment_ids: Segments | None = None,
) -> Hidden:
    """The stream after the final norm, [b, t, d] in the compute dtype.

    Args:
      tokens: int32 [b, t].
      positions: int32 [b, t], from 0 within each document; None counts along the row.
      segment_ids: int32 [b, t]; tokens see only their own segment; None: a row is one document.
    """
    return context.to_row(_run_rows(config, params, tokens, positions, segment_ids).x)


def _run_rows(config, params, tokens, positions, segment_ids, counted=None) -> StackOutputs:
    """`_run` of whole rows, which come in their own order and leave in the stream's.

    counted: the tokens that count in the router's sums, in the stream's order; None: all.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    tokens = context.to_stream(tokens)
    return _run(config, layer_plan(config), params, tokens, positions, segment_ids, counted)


def _run(
    config, plan, params, tokens, positions, segment_ids=None, counted=None, step=None, states=None
) -> StackOutputs:
    """Embedding, all layers and the final norm; `tokens` and `counted` in the stream's order."""
    parts, of_stream = 1, positions
    if step is None:
        parts, of_stream = context.num_parts(tokens.shape[1]), context.to_stream(positions)
    shared = shared_arrays(plan.mixers(), of_stream, jnp.dtype(config.dtype))
    placement = Placement(positions, segment_ids, shared, step, parts)
    embedder, final_norm = _ends(config)
    with jax.named_scope("embedding"):
        x = nnx.merge(embedder, params["embedder"])(tokens, of_stream)
        x = constrain(x, axes.BATCH, axes.TIME, None)
    segments, norm = params["segments"], None
    if config.layer_embedding_dim:
        norm = params["layer_embedder"]["norm"]["scale"]
        with jax.named_scope("embedding"):
            segments = with_rows(segments, tokens, x.dtype)
    inputs = LayerInputs(placement, x, norm, counted)
    out = stack.apply(plan, config, segments, x, inputs, states)
    return out._replace(x=nnx.merge(final_norm, params["final_norm"])(out.x))


def extend(
    config: ModelConfig,
    params: Params,
    tokens: Tokens,
    num_new: jax.Array,
    cache: Cache,
    slots: dict[str, Any],
) -> tuple[Hidden, Cache]:
    """The stream of new tokens behind those in the cache, and the cache with them in it.

    Args:
      params: in the layout of `cache.plan`.
      tokens: int32 [b, t].  num_new: int32 [b], how many of a row's t tokens are there; the rest
        is padding: it leaves no trace, and its stream means nothing.
      slots: `slot_arrays` of the cache.
    Returns: [b, t, d] after the final norm.
    """
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    positions = jnp.where(index < num_new[:, None], cache.length[:, None] + index, -1)
    step = CacheStep(cache.form, cache.length, cache.written, num_new, slots)
    out = _run(config, cache.plan, params, tokens, positions, step=step, states=cache.layers)
    length = cache.length + num_new
    written = jnp.maximum(cache.written, length)
    after = dataclasses.replace(cache, layers=out.states, length=length, written=written)
    return out.x, after


def slot_arrays(plan: LayerPlan, form: CacheFormat, dtype: str) -> dict[str, Any]:
    """What layers read of the positions of a cache's slots, made once a capacity."""
    positions = jnp.arange(form.capacity, dtype=jnp.int32)[None, :]
    readers = (mixer for mixer in plan.mixers() if mixer.reads_slots(form))
    return shared_arrays(readers, positions, jnp.dtype(dtype))


def logits(
    config: ModelConfig,
    params: Params,
    tokens: Tokens,
    positions: Positions | None = None,
    segment_ids: Segments | None = None,
) -> Logits:
    """Next-token logits, [b, t, v] in at least float32, softcapped."""
    x = hidden_states(config, params, tokens, positions, segment_ids)
    return head(config, params, x)


def head(config: ModelConfig, params: Params, x: jax.Array) -> jax.Array:
    """The stream after the final norm [..., d] -> logits [..., v], at least float32, softcapped."""
    return loss.logits(x, params["embedder"]["embedding"], config.logit_softcap)


def loss_sums(config: ModelConfig, params: Params, batch: Batch) -> LossSums:
    """Sums over the predicted tokens of a batch: loss in nats, logsumexp², count."""
    return training_sums(config, params, batch)[0]


def training_sums(config: ModelConfig, params: Params, batch: Batch) -> tuple[LossSums, dict]:
    """`loss_sums`, and the router's sums [segment][run] over the same tokens, leaves stacked."""
    row = batch.tokens, batch.positions, batch.segment_ids
    targets, mask = map(context.to_stream, (batch.targets, batch.loss_mask))
    x, router, _ = _run_rows(config, params, *row, counted=mask)
    embedding, softcap = params["embedder"]["embedding"], config.logit_softcap
    with jax.named_scope("loss"):
        sums = loss.cross_entropy(
            x, embedding, targets, mask, softcap=softcap, groups=batch.is_of_source
        )
    return sums, router


def score(config: ModelConfig, params: Params, batch: Batch, with_top: bool = False) -> TokenScores:
    """Scores [b, t] of each predicted token; `is_top` only `with_top`.

    Logits exist for a block of the vocabulary at once, as in the loss.
    """
    targets, mask = map(context.to_stream, (batch.targets, batch.loss_mask))
    x = _run_rows(config, params, batch.tokens, batch.positions, batch.segment_ids).x
    scores = score_hidden(config, params, x, targets, mask, with_top)
    return jax.tree.map(context.to_row, scores)


def score_hidden(
    config: ModelConfig, params: Params, x: Hidden, targets, loss_mask, with_top: bool = False
) -> TokenScores:
    """`score` of a stream after the final norm."""
    embedding, softcap = params["embedder"]["embedding"], config.logit_softcap
    return loss.score(x, embedding, targets, loss_mask, softcap=softcap, with_top=with_top)


def _final_norm(config: ModelConfig) -> RMSNorm:
    return RMSNorm(config.d_model, axes.EMBED, config=config)


@functools.cache
def _ends(config: ModelConfig) -> list[nnx.GraphDef]:
    """The structure of the embedder and of the final norm."""
    build = lambda: (Embedder(config, rngs=nnx.Rngs(0)), _final_norm(config))  # noqa: E731
    return [nnx.split(module)[0] for module in nnx.eval_shape(build)]

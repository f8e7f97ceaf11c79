"""Runs a `LayerPlan`: a scan over the repetitions of each segment, layers in order inside.

A segment's parameters are `params[segment][slot]`, leaves stacked [repetitions, ...]. Scan and
loop are two readings of the same plan (`model.unroll`), equal to rounding; the scan's traced
program does not grow with depth. Rematerialisation is per layer, not per period: under fsdp, the
gathered weights of a whole period would otherwise live together.

Read next: `model.py`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes, lora
from hybrid.axes import Hidden
from hybrid.blocks.block import Block, LayerInputs
from hybrid.mixers.kv import KV
from hybrid.model_config import ModelConfig
from hybrid.pattern import LayerPlan, LayerSpec, Segment
from hybrid.sharding import constrain

REMAT_POLICIES = {
    # What the backward may keep: the results of weight products, or nothing but the layer's input.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def init(plan: LayerPlan, config: ModelConfig, key: jax.Array) -> dict:
    """Parameters `[segment][slot]`; a layer's values depend on its depth, not on the cuts."""

    def slot(segment: Segment, index: int) -> dict:
        stride = len(segment.specs)
        layers = [segment.first_layer + index + stride * r for r in range(segment.repetitions)]
        keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.array(layers))
        return jax.vmap(lambda key: init_layer(segment.specs[index], config, key))(keys)

    return {
        i: {j: slot(segment, j) for j in range(len(segment.specs))}
        for i, segment in enumerate(plan.segments)
    }


def init_layer(spec: LayerSpec, config: ModelConfig, key: jax.Array) -> dict:
    """The parameters of one layer, unstacked."""
    return nnx.to_pure_dict(nnx.state(Block(spec, config, rngs=nnx.Rngs(params=key)), nnx.Param))


@functools.cache
def abstract_layer(
    spec: LayerSpec, config: ModelConfig, adapted: tuple[tuple[str, int], ...] = ()
) -> tuple[nnx.GraphDef, nnx.State]:
    """A layer's structure without values: its graph and its parameters' shapes and names.

    adapted: (module, rank) of the projections that have adapters.
    """

    def build() -> Block:
        block = Block(spec, config, rngs=nnx.Rngs(0))
        for path, rank in adapted:
            projection: Any = functools.reduce(getattr, path.split("/"), block)
            projection.adapt(rank)
        return block

    return nnx.split(nnx.eval_shape(build))


def logical_axes(plan: LayerPlan, config: ModelConfig) -> dict:
    """The names of each parameter's axes, the stacked one first."""

    def slot(spec: LayerSpec) -> dict:
        state = abstract_layer(spec, config)[1]
        names = jax.tree.map(
            lambda param: (axes.LAYERS, *param.get_metadata()["axes"]),
            state,
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )
        return nnx.to_pure_dict(names)

    return {
        i: {j: slot(spec) for j, spec in enumerate(segment.specs)}
        for i, segment in enumerate(plan.segments)
    }


class StackOutputs(NamedTuple):
    """The stream after all layers, and the router's sums [segment][slot], leaves stacked."""

    x: Hidden
    router: dict


def apply(
    plan: LayerPlan, config: ModelConfig, params: dict, x: Hidden, inputs: LayerInputs
) -> StackOutputs:
    """The stream after all layers.  x: [b, t, d].

    Donors stand in segments of one repetition; their keys and values go by their depth to the
    layers that reuse them, constants of the scans that follow.
    """
    donated: dict[int, KV] = {}
    router = {}
    for index, segment in enumerate(plan.segments):
        x, router[index], given = _run_segment(segment, config, params[index], x, inputs, donated)
        donated |= given
    return StackOutputs(x, router if config.num_experts else {})


def _run_segment(segment: Segment, config, params, x, inputs, donated):
    """The stream, the router's sums {slot: [repetitions, ...]}, and {depth: keys and values}."""

    def period(x, layers):
        sums, given = {}, {}
        for slot, spec in enumerate(segment.specs):
            reused = None if spec.owns_kv else donated[spec.donor]
            x, kv, sums[slot] = _layer(spec, config)(layers[slot], x, inputs, reused)
            if spec.donates:
                given[segment.first_layer + slot] = kv
        return x, (sums, given)

    if segment.repetitions > 1 and not config.unroll:
        x, (sums, _) = jax.lax.scan(period, x, params)
        return x, sums, {}
    steps = []
    for repetition in range(segment.repetitions):
        x, step = period(x, jax.tree.map(lambda leaf, r=repetition: leaf[r], params))
        steps.append(step)
    sums = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(sums for sums, _ in steps))
    return x, sums, steps[-1][1]


def _layer(spec: LayerSpec, config: ModelConfig):
    """A layer as a function of its parameters, rematerialised as the config says.

    Keys and values leave it only where they are reused: as an output they would be kept.
    """

    def run(params, x, inputs, donated):
        graph, _ = abstract_layer(spec, config, lora.adapted(params))
        x = constrain(x, axes.BATCH, axes.TIME, None)
        out = nnx.merge(graph, params)(x, inputs, donated)
        return out if spec.donates else out._replace(kv=None)

    if config.remat == "none":
        return run
    return jax.checkpoint(run, policy=REMAT_POLICIES[config.remat])

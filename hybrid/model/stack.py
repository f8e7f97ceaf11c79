"""Runs a `LayerPlan`: a scan over the repetitions of each segment, layers in order inside.

A segment's parameters are `params[segment][slot]`, leaves stacked [repetitions, ...]. Scan and
loop are two readings of the same plan (`model.unroll`), equal to rounding; the scan's traced
program does not grow with depth. Rematerialisation is per layer, not per period: under fsdp, the
gathered weights of a whole period would otherwise live together.

Read next: `__init__.py`, the model.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.model import lora
from hybrid.model.blocks.block import Block, LayerInputs
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.kv import KV
from hybrid.model.mixers.kv_cache import View
from hybrid.model.mixers.protocol import LayerState
from hybrid.model.pattern import LayerPlan, LayerSpec, Segment
from hybrid.sharding import constrain

REMAT_POLICIES = {
    # What the backward may keep: the results of weight products, or nothing but the layer's input.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def init(plan: LayerPlan, config: ModelConfig, key: jax.Array) -> dict:
    """Parameters `[segment][slot]`; a layer's values depend on its depth, not on the cuts."""

    def stacked(spec: LayerSpec, depths: range) -> dict:
        keys = jax.vmap(lambda depth: jax.random.fold_in(key, depth))(jnp.array(depths))
        return jax.vmap(lambda key: init_layer(spec, config, key))(keys)

    return plan.map(stacked)


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

    def names(spec: LayerSpec, depths: range) -> dict:
        state = abstract_layer(spec, config)[1]
        return nnx.to_pure_dict(
            jax.tree.map(
                lambda param: (axes.LAYERS, *param.get_metadata()["axes"]),
                state,
                is_leaf=lambda node: isinstance(node, nnx.Variable),
            )
        )

    return plan.map(names)


def unrolled(plan: LayerPlan, params: dict) -> dict:
    """Parameters of `plan` in the layout of `plan.unrolled()`: its leaves cut along the layers."""
    segments: dict[int, dict] = {}
    for i, segment in enumerate(plan.segments):
        for r in range(segment.repetitions):
            row = jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], params[i])
            segments[len(segments)] = row
    return segments


class StackOutputs(NamedTuple):
    """The stream after all layers; router's sums and states [segment][slot], leaves stacked."""

    x: Hidden
    router: dict
    states: dict


def apply(
    plan: LayerPlan,
    config: ModelConfig,
    params: dict,
    x: Hidden,
    inputs: LayerInputs,
    states: dict | None = None,
) -> StackOutputs:
    """The stream after all layers.  x: [b, t, d].

    Donors stand in segments of one repetition; their keys and values go by their depth to the
    layers that reuse them, constants of the scans that follow.

    Args:
      states: with `inputs.placement.step`, the layers of a `cache.py` Cache, [segment][slot].
    """
    donated: dict[int, KV | View] = {}
    router, new_states = {}, {}
    for index, segment in enumerate(plan.segments):
        own = states[index] if states else {slot: {} for slot in range(len(segment.specs))}
        x, router[index], new_states[index], kv_by_depth = _run_segment(
            segment, config, params[index], x, inputs, donated, own
        )
        donated |= kv_by_depth
    return StackOutputs(x, router if config.num_experts else {}, new_states if states else {})


def _run_segment(segment: Segment, config, params, x, inputs, donated, states):
    """The stream, the router's sums {slot: [repetitions, ...]}, states, {depth: keys and values}.

    States ride whole in the scan's carry and every layer writes its tokens into its row of them;
    as inputs and outputs of the scan they would be copied.
    """
    runs = [[slot] for slot in states] if any(states.values()) else _runs(segment, config, params)

    def period(carry, layers):
        x, states, row = carry
        states, sums, kv_by_depth = dict(states), {}, {}
        for slot, *others in runs:
            spec = segment.specs[slot]
            donor = spec.mixer.donor
            kv = None if donor is None else donated[donor]
            if others:
                slots = (slot, *others)
                layer = functools.partial(_layer(spec, config), inputs=inputs, donated=kv)
                x, of_slots = _run_equal(layer, [layers[slot] for slot in slots], x)
                sums |= dict(zip(slots, of_slots, strict=True))
                continue
            state = LayerState(states[slot], row) if states[slot] else None
            x, kv, sums[slot], state = _layer(spec, config)(layers[slot], x, inputs, kv, state)
            states[slot] = state or {}
            if spec.mixer.donates:
                kv_by_depth[segment.first_layer + slot] = kv
        return (x, states, row + 1), (sums, kv_by_depth)

    if segment.repetitions > 1 and not config.unroll:
        (x, states, _), (sums, _) = jax.lax.scan(period, (x, states, jnp.int32(0)), params)
        return x, sums, states, {}
    carry, steps = (x, states, 0), []
    for repetition in range(segment.repetitions):
        carry, step = period(carry, jax.tree.map(lambda leaf, r=repetition: leaf[r], params))
        steps.append(step)
    sums = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(sums for sums, _ in steps))
    return carry[0], sums, carry[1], steps[-1][1]


def _runs(segment: Segment, config: ModelConfig, params: dict) -> list[list[int]]:
    """The slots in order, those of equal layers that follow each other together.

    Only where layers are rematerialised: a scan stacks their parameters and keeps its inputs, which
    costs where nothing is saved by it, on one device without rematerialisation.
    """
    nests = config.remat != "none" and not config.unroll

    def key(slot):
        spec = segment.specs[slot]
        alone = None if nests and not spec.mixer.donates else slot
        return spec, jax.tree.structure(params[slot]), alone

    return [list(slots) for _, slots in itertools.groupby(range(len(segment.specs)), key)]


def _run_equal(layer: Callable, params: list, x: Hidden) -> tuple[Hidden, list]:
    """The stream after layers of equal specs, one after the other, and each one's router sums."""

    def one(x, params):
        out = layer(params, x, state=None)
        return out.x, out.router

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    x, sums = jax.lax.scan(one, x, stacked)
    return x, [jax.tree.map(lambda leaf, i=i: leaf[i], sums) for i in range(len(params))]


def _layer(spec: LayerSpec, config: ModelConfig):
    """A layer as a function of its parameters, rematerialised as the config says.

    Keys and values leave it only where they are reused: as an output they would be kept.
    """

    @jax.named_scope(spec.kind)  # by which a compiled program's costs are told apart
    def run(params, x, inputs, donated, state):
        graph, _ = abstract_layer(spec, config, lora.adapted(params))
        x = constrain(x, axes.BATCH, axes.TIME, None)
        out = nnx.merge(graph, params)(x, inputs, donated, state)
        return out if spec.mixer.donates else out._replace(kv=None)

    if config.remat == "none":
        return run
    return jax.checkpoint(run, policy=REMAT_POLICIES[config.remat])

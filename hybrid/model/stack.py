"""Runs a `LayerPlan`: a scan over the repetitions of each segment, layers in order inside.

A segment's parameters are `params[segment][run]`, leaves stacked [layers, ...]: a run is equal
layers that follow each other, so `LLLLLG` has two, whatever its repetitions. Scan and loop are two
readings of the same plan (`model.unroll`), equal to rounding; the scan's traced program does not
grow with depth. Rematerialisation is per layer, not per period: under fsdp, the gathered weights of
a whole period would otherwise live together.

Read next: `__init__.py`, the model.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.model import lora
from hybrid.model.blocks.block import Block, Donation, LayerInputs
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.protocol import LayerState
from hybrid.model.pattern import LayerPlan, LayerSpec, Segment
from hybrid.ops.backward_order import weights_first
from hybrid.sharding import constrain

REMAT_POLICIES = {
    # What the backward may keep: the results of weight products, or nothing but the layer's input.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def init(plan: LayerPlan, config: ModelConfig, key: jax.Array) -> dict:
    """Parameters `[segment][run]`; a layer's values depend on its depth, not on the cuts."""

    def stacked(spec: LayerSpec, depths: list[int]) -> dict:
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

    def names(spec: LayerSpec, depths: list[int]) -> dict:
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

    def cut(layer: int) -> dict:
        segment, run, row = plan.locate(layer)
        return {0: jax.tree.map(lambda leaf: leaf[row : row + 1], params[segment][run])}

    return {layer: cut(layer) for layer in range(plan.num_layers)}


def apart(plan: LayerPlan, config: ModelConfig, params: dict) -> dict:
    """Parameters in which the layers that training runs one by one are trees of their own.

    `apply` takes them as well, [segment][run][layer of the run] with leaves [repetitions, ...].

    Args:
      params: [segment][run]; leaves may be shardings, which are the same for each layer.
    """

    def of_run(index, segment, number):
        run, own = segment.runs[number], params[index][number]
        if run.length == 1 or _is_scan(config, run.length):
            return own
        return _layers_of_run(own, segment.repetitions, run.length)

    return {
        index: {number: of_run(index, segment, number) for number in range(len(segment.runs))}
        for index, segment in enumerate(plan.segments)
    }


def _is_scan(config: ModelConfig, length: int, has_states: bool = False) -> bool:
    """Whether a run is a scan: where that saves memory; training without it would lose time.

    What is kept on the host must be stacked along one axis, the repetitions: of two, a TPU's
    compiler cannot copy a slice.
    """
    saves_memory = config.remat != "none" and not config.remat_offload
    return (saves_memory or has_states) and not config.unroll and length > 1


def _layers_of_run(params: Any, repetitions: int, length: int) -> dict:
    leaves, structure = jax.tree.flatten(params)
    layers = zip(*(_cut(leaf, repetitions, length) for leaf in leaves), strict=True)
    return {row: jax.tree.unflatten(structure, layer) for row, layer in enumerate(layers)}


def _cut(leaf: Any, repetitions: int, length: int) -> list:
    """[repetitions · length, ...] as `length` leaves [repetitions, ...].

    By a split, whose backward is one concatenation.
    """
    if isinstance(leaf, jax.sharding.Sharding):
        return [leaf] * length
    tall = leaf.reshape(repetitions, length, *leaf.shape[1:])
    return [part[:, 0] for part in jax.lax.split(tall, (1,) * length, axis=1)]


class StackOutputs(NamedTuple):
    """The stream after all layers; router's sums and states [segment][run], leaves stacked."""

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
      states: with `inputs.placement.step`, the layers of a `cache.py` Cache, [segment][run].
    """
    donated: dict[int, Donation] = {}
    router, new_states = {}, {}
    for index, segment in enumerate(plan.segments):
        own = states[index] if states else {run: {} for run in range(len(segment.runs))}
        x, router[index], new_states[index], kv_by_depth = _run_segment(
            segment, config, params[index], x, inputs, donated, own
        )
        donated |= kv_by_depth
    return StackOutputs(x, router if config.num_experts else {}, new_states if states else {})


def _run_segment(segment: Segment, config, params, x, inputs, donated, states):
    """The stream, the router's sums {run: [layers, ...]}, states, {depth: keys and values}.

    States ride whole in the carry of scans and every layer writes its tokens into its row of them;
    as inputs and outputs of a scan they would be copied.
    """
    has_states = any(states.values())
    scanned = [_is_scan(config, run.length, has_states) for run in segment.runs]

    def repetition(carry, params):
        x, states, index = carry
        states, sums, kv_by_depth = dict(states), {}, {}
        for number, (spec, start, length) in enumerate(segment.runs):
            reused = None if spec.mixer.donor is None else donated[spec.mixer.donor]
            layer = functools.partial(_layer(spec, config), inputs=inputs, donated=reused)
            carry = x, states[number], index * length
            if scanned[number]:
                carry, sums[number] = _scan_run(layer, params[number], carry)
            else:
                carry, sums[number], kv = _loop_over_run(layer, params[number], carry)
                if spec.mixer.donates:  # a run of its own
                    kv_by_depth[segment.first_layer + start] = kv
            x, states[number], _ = carry
        return (x, states, index + 1), (sums, kv_by_depth)

    params = {
        number: _by_repetition(segment.repetitions, run.length, params[number], scanned[number])
        for number, run in enumerate(segment.runs)
    }
    if segment.repetitions > 1 and not config.unroll:
        carry = x, states, jnp.int32(0)
        (x, states, _), (sums, kv_by_depth) = jax.lax.scan(repetition, carry, params)
    else:
        carry, steps = (x, states, 0), []
        for i in range(segment.repetitions):
            carry, step = repetition(carry, jax.tree.map(lambda leaf, i=i: leaf[i], params))
            steps.append(step)
        (x, states, _), kv_by_depth = carry, steps[-1][1]
        sums = _stacked([sums for sums, _ in steps])
    sums = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sums)
    return x, sums, states, kv_by_depth


def _by_repetition(repetitions: int, length: int, params: dict, scanned: bool) -> Any:
    """A run's leaves [layers, ...] as [repetitions, length, ...], or a list of [repetitions, ...].

    Layers of a run that is no scan are cut out here, if they are not `apart` already: a slice
    inside a scan over the repetitions would be kept for its backward.
    """
    if scanned:
        return jax.tree.map(lambda x: x.reshape(repetitions, length, *x.shape[1:]), params)
    if 0 not in params:
        params = _layers_of_run(params, repetitions, length)
    return list(params.values())


def _scan_run(layer: Callable, params: dict, carry: tuple) -> tuple:
    """(stream, state, row) after a run of layers, and their router's sums, stacked."""

    def one(carry, params):
        x, state, row = carry
        out = layer(params, x, state=LayerState(state, row) if state else None)
        return (out.x, out.state or {}, row + 1), out.router

    return jax.lax.scan(one, carry, params)


def _loop_over_run(layer: Callable, params: list, carry: tuple) -> tuple:
    """The same as a loop, and the last layer's keys and values."""
    x, state, row = carry
    sums = []
    for i, weights in enumerate(params):
        own = LayerState(state, row + i) if state else None
        x, kv, router, state = layer(weights, x, state=own)
        sums.append(router)
    return (x, state or {}, row + len(params)), _stacked(sums), kv


def _stacked(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _layer(spec: LayerSpec, config: ModelConfig):
    """A layer as a function of its parameters, rematerialised as the config says.

    Keys and values leave it only where they are reused: as an output they would be kept.
    """

    @jax.named_scope(spec.kind)  # by which a compiled program's costs are told apart
    def run(params, x, inputs, donated, state):
        graph, _ = abstract_layer(spec, config, lora.adapted(params))
        x = constrain(x, axes.BATCH, axes.TIME, None)
        if config.remat != "none":
            params, x = weights_first(params, x)
        out = nnx.merge(graph, params)(x, inputs, donated, state)
        return out if spec.mixer.donates else out._replace(kv=None)

    if config.remat == "none":
        return run
    return jax.checkpoint(run, policy=_policy(config))


def _policy(config: ModelConfig) -> Callable:
    """What the backward may keep: as `remat` says, and what is named."""
    base = REMAT_POLICIES[config.remat]
    if not config.remat_save and not config.remat_offload:
        return base
    named = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(config.remat_save),
        names_which_can_be_offloaded=list(config.remat_offload),
        offload_src="device",
        offload_dst="pinned_host",
    )
    return lambda *operation, **params: base(*operation, **params) or named(*operation, **params)

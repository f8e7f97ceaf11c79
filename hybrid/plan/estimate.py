"""A device's share of a train step by formula: what ranks meshes before anything is compiled.

With W the bytes of the layers' weights that one device computes with, in the compute dtype, m
micro-batches, n the tokens of one of them on a device, p the passes over the layers (2, and 1 more
under remat full), a product's width its outputs a token, and c the bytes of an activation:

    memory      state = parameters and moments, split as the rules say (`sharding.py`)
                gradient = trained parameters in their own dtype, twice with micro-batches
                kept = n · c · Σ_layers (d, and of the widths: none of them under full, once
                       under dots, KEPT times without remat)
                at work = n · c · AT_WORK · KEPT · (the widest layer), 2 gathered layers, 2 blocks
                          of logits
    collective  fsdp, context: gathers p · m · W and the table twice, reduction of the gradient m
                times
                data: an all-reduce of the gradient, m times (counted twice, as in `budget.py`)
                context: a layer's keys and values, of the window twice or of whole rows, p · m
                times
                tensor, expert: an all-reduce of the stream, 2 a layer and pass
    traffic     weights p · m times, activations TOUCHED times their kept size, state 3 times

KEPT and AT_WORK are what one compiled program showed (docs/plan.md); the estimate is for choosing
what to compile.

Read next: `search.py` and `grid.py`, which print estimates.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh

from hybrid import axes, model
from hybrid.costs.training_flops import step_flops, trained_share
from hybrid.experiment import Experiment
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.model.params import flat
from hybrid.plan import compiled
from hybrid.plan.budget import limit, roofline
from hybrid.plan.topology import Topology
from hybrid.sharding import RULES, parts_of, spec_of
from hybrid.training.config import OptimizerConfig
from hybrid.training.optimizer import make_optimizer

KEPT = 3.4
AT_WORK = 1.6
TOUCHED = 4
BLOCK = 4096  # rows of the table whose logits live at once


@dataclasses.dataclass(frozen=True)
class Estimate:
    """By formula.

    Attributes:
      bytes_per_device: state, gradient, activations, total.
      roofline, limit: as a `Budget` has them.
      step_seconds: the roofline's, but with the all-reduces of the stream behind the products that
        they wait for: nothing hides those. It ranks meshes.
    """

    bytes_per_device: Mapping[str, float]
    fits: bool
    collective_bytes_per_device: float
    roofline: Mapping[str, float]
    limit: str
    step_seconds: float


def estimate(experiment: Experiment, topology: Topology) -> Estimate:
    """The estimate of the train step of `experiment` on `topology`.

    Raises: ConfigError where mesh, batch, model and topology don't go together.
    """
    mesh = compiled.check_mesh(experiment, topology)
    config, training = experiment.model, experiment.training
    width = jax.numpy.dtype(config.dtype).itemsize
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["context"]
    num_steps = training.num_microbatches
    tokens = training.batch_size * training.context_length / parts / num_steps
    rows = tokens * mesh.shape["context"] / training.context_length
    sizes = _sizes(dataclasses.replace(config, remat="none"), mesh)  # of any remat
    share = trained_share(config, experiment.lora, experiment.optimizer.freeze)
    moments = _moments(config, experiment.optimizer, training.num_steps)
    received = [rows * size for size in _exchanged(config, training.context_length, mesh)]
    gradient = share * sizes.held * (2 if num_steps > 1 else 1)
    kept = {"full": 0.0, "dots": 1.0, "none": KEPT}[config.remat]
    layers = [config.d_model + kept * each for each in sizes.widths]
    stored = tokens * width * sum(layers)
    at_work = tokens * width * AT_WORK * KEPT * max(sizes.widths) + max(received)
    weight_parts = parts_of(axes.EMBED, mesh)
    gathered = 2 * width * max(sizes.layer_weights) * (weight_parts > 1)
    logits = 2 * 4 * tokens * min(BLOCK, config.vocab_size)
    memory = {
        "state": sizes.held + moments * share * sizes.held,
        "gradient": gradient,
        "activations": stored + at_work + gathered + logits,
    }
    passes = 3 if config.remat == "full" else 2
    weights = width * sum(sizes.layer_weights)
    table = config.vocab_size * config.d_model / mesh.shape["tensor"]
    stream = tokens * config.d_model * width * len(sizes.widths)
    exchanged = 0.0
    if weight_parts > 1:
        exchanged += num_steps * (passes * weights + 2 * width * table)
        exchanged += num_steps * share * sizes.held * weight_parts
    if mesh.shape["data"] > 1:
        exchanged += num_steps * 2 * share * sizes.held
    exchanged += num_steps * passes * sum(received)
    split = (mesh.shape["tensor"] > 1) + (mesh.shape["expert"] > 1)
    of_stream = num_steps * passes * split * 2 * 2 * stream
    exchanged += of_stream
    moved = 3 * memory["state"] + num_steps * (passes * weights + TOUCHED * (stored + at_work))
    flops = step_flops(config, training.step, share) / topology.num_devices
    roof = roofline(experiment, topology, flops, moved, exchanged)
    total = sum(memory.values())
    return Estimate(
        bytes_per_device=memory | {"total": total},
        fits=total <= topology.chip.device().memory,
        collective_bytes_per_device=exchanged,
        roofline=roof,
        limit=limit(roof),
        step_seconds=max(
            roof["compute_seconds"] + of_stream / topology.chip.device().link_rate,
            roof["memory_seconds"],
            roof["collective_seconds"],
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """held: bytes of the parameters on a device.  Of each layer: the elements of its weights that
    a device computes with (gathered), and the widths of its products' results there."""

    held: float
    layer_weights: tuple[float, ...]
    widths: tuple[float, ...]


@functools.cache
def _sizes(config: ModelConfig, mesh: AbstractMesh) -> _Sizes:
    held = 0.0
    weights: dict[tuple, float] = {}
    widths: dict[tuple, float] = {}
    names = flat(model.logical_axes(config))
    gathered = AbstractMesh(
        tuple(1 if axis in RULES[axes.EMBED] else size for axis, size in mesh.shape.items()),
        mesh.axis_names,
    )
    for path, leaf in flat(model.abstract(config)).items():
        held += leaf.dtype.itemsize * _elements(leaf.shape, names[path], mesh)
        if path[0] != "segments" or path[-1] == "embedding":
            continue
        layer = path[1:3]
        size = _elements(leaf.shape, names[path], gathered) / leaf.shape[0]
        weights[layer] = weights.get(layer, 0.0) + size
        if path[-1] == "kernel":
            made = _results(config, leaf.shape[1:], names[path][1:], gathered)
            widths[layer] = widths.get(layer, 0.0) + made
    layers = [
        (i, number)
        for i, segment in enumerate(model.layer_plan(config).segments)
        for _ in range(segment.repetitions)
        for number, run in enumerate(segment.runs)
        for _ in range(run.length)
    ]
    return _Sizes(
        held, tuple(weights[layer] for layer in layers), tuple(widths[layer] for layer in layers)
    )


def _elements(shape: tuple[int, ...], names: tuple, mesh: AbstractMesh) -> float:
    """Elements on one device."""
    split = 1
    for entry in spec_of(mesh, names, shape):
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            split *= mesh.shape[axis]
    return math.prod(shape) / split


def _results(
    config: ModelConfig, shape: tuple[int, ...], names: tuple, mesh: AbstractMesh
) -> float:
    """Elements that a kernel's product makes of one token, on one device."""
    if axes.EXPERTS in names:
        active, size = config.num_active_experts, shape[-1]
        return active * size / mesh.shape["expert"]
    if names[0] != axes.EMBED:  # from heads or feed-forward back to the stream
        return config.d_model
    return _elements(shape[1:], names[1:], mesh)


def _exchanged(config: ModelConfig, context: int, mesh: AbstractMesh) -> list[float]:
    """Bytes of keys and values that a device receives of one row, a layer at a time."""
    specs = list(model.layer_plan(config).layers())
    if mesh.shape["context"] == 1:
        return [0.0] * len(specs)
    form = CacheFormat(context, config.dtype)
    # A window's keys come before each of a device's two chunks (docs/context.md).
    sizes = [spec.mixer.state_bytes(form) * (2 if spec.mixer.reach else 1) for spec in specs]
    return [size / mesh.shape["tensor"] for size in sizes]


@functools.cache
def _moments(config: ModelConfig, optimizer: OptimizerConfig, num_steps: int) -> float:
    """Bytes of the optimizer's state over those of the trained parameters."""
    params = model.abstract(config)
    transform = make_optimizer(optimizer, num_steps, model.logical_axes(config))
    state = jax.eval_shape(transform.init, params)

    def size(tree) -> int:
        return sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    return size(state) / size(params)

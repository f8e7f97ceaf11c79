"""One whole layer of a model (norms, mixer, feed-forward), compiled forward and backward."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid.model import stack
from hybrid.model.blocks.block import LayerInputs
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.protocol import Placement, shared_arrays
from hybrid.model.pattern import plan_layers


class Layer(NamedTuple):
    """A call that computes and waits, and the program's temporaries in bytes."""

    run: Callable[[], Any]
    temporaries: int


def compiled(config: ModelConfig, letter: str, length: int) -> Layer:
    """The first layer of `letter` on a row of `length` tokens; it ran once."""
    plan = plan_layers(config)
    spec = next(spec for spec in plan.layers() if spec.letter == letter)
    graph, _ = stack.abstract_layer(spec, config)
    params = stack.init_layer(spec, config, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, length, config.d_model))

    def both_ways(params, x):
        positions = jnp.arange(length, dtype=jnp.int32)[None]
        shared = shared_arrays(plan.mixers(), positions, x.dtype)
        inputs = LayerInputs(Placement(positions, None, shared))
        out, back = jax.vjp(lambda params, x: nnx.merge(graph, params)(x, inputs).x, params, x)
        return out, back(x)

    program = jax.jit(both_ways).lower(params, x).compile()
    layer = Layer(
        run=lambda: jax.block_until_ready(program(params, x)),
        temporaries=program.memory_analysis().temp_size_in_bytes,
    )
    layer.run()
    return layer

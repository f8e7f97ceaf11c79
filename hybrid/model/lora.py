"""Low-rank adapters beside kernels (the `lora.` section), stacked and sharded like them.

A kernel W [...in, ...out] that is adapted has two tensors beside it in the tree:

    y = x·W + (x·A)·B              A: lora_a [...in, r]        B: lora_b [r, ...out]

A starts at fan-in^-0.5 and B at zero, so an adapted model begins as its base, and
W + A·B is what it is merged to. A layer is adapted exactly where its parameters have these two
tensors, so nothing else of a model changes.
Source: LoRA (2106.09685), sec. 4.1, with alpha = r.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from hybrid.axes import EMBED, LAYERS
from hybrid.config import ConfigError
from hybrid.model.config import LORA_MODULES, LoraConfig
from hybrid.model.params import ADAPTER, Leaves, flat, is_adapter, nested, param_name, select

A, B = ADAPTER
_BLOCKS = ("mixer", "feed_forward")  # whose projections can be adapted


def has_adapters(tree: Any) -> bool:
    """Whether any kernel in `tree` is adapted."""
    return any(map(is_adapter, flat(tree)))


def adapted(layer: Any) -> tuple[tuple[str, int], ...]:
    """(module, rank) of the adapted kernels of one layer's parameters, unstacked."""
    leaves = flat(layer).items()
    return tuple((param_name(path[:-1]), leaf.shape[-1]) for path, leaf in leaves if path[-1] == A)


def add(config: LoraConfig, params: Any, logical_axes: Any, rng: jax.Array) -> Any:
    """`params` with fresh adapters; the tree itself for rank 0.

    Raises: ConfigError for modules that this model doesn't have.
    """
    if not config.rank:
        return params
    leaves = flat(params)
    for number, (path, names) in enumerate(_kernels(config, logical_axes).items()):
        kernel, module = leaves[path], path[:-1]
        inputs, outputs = _cut(names, kernel.shape)
        stack = kernel.shape[:1]
        shape = (*stack, *inputs, config.rank)
        noise = jax.random.normal(jax.random.fold_in(rng, number), shape, kernel.dtype)
        leaves[*module, A] = noise * math.prod(inputs) ** -0.5
        leaves[*module, B] = jnp.zeros((*stack, config.rank, *outputs), kernel.dtype)
    return nested(leaves)


def add_axes(config: LoraConfig, logical_axes: Any) -> Any:
    """The axes' names of the tree that `add` gives."""
    if not config.rank:
        return logical_axes
    leaves = flat(logical_axes)
    for path, names in _kernels(config, logical_axes).items():
        inputs, outputs = _cut(names, names)
        leaves[*path[:-1], A] = (LAYERS, *inputs, None)
        leaves[*path[:-1], B] = (LAYERS, None, *outputs)
    return nested(leaves)


def _kernels(config: LoraConfig, logical_axes: Any) -> Leaves:
    """The axes' names of the kernels to adapt.  Raises: ConfigError as `add`."""
    kernels = {
        path: names
        for path, names in flat(logical_axes).items()
        if path[-1] == "kernel" and path[-3] in _BLOCKS
    }
    modules = {path[-2] for path in kernels}
    missing = [module for module in config.modules if module not in modules]
    if missing and config.modules != LORA_MODULES:
        accepted = "some of " + ", ".join(m for m in LORA_MODULES if m in modules)
        problem = "names what this model doesn't have"
        raise ConfigError("lora.modules", problem, missing[0], accepted)
    return {path: names for path, names in kernels.items() if path[-2] in config.modules}


def _cut(names: tuple, values: tuple) -> tuple[tuple, tuple]:
    """`values` of a stacked kernel's axes as those of its inputs and of its outputs.

    A kernel reads the residual stream, [embed, ...out], or writes to it, [...in, embed].
    """
    end = 2 if names[1] == EMBED else len(names) - 1
    return values[1:end], values[end:]


def merge(params: Any) -> Any:
    """Plain parameters: each adapted kernel becomes W + A·B."""

    def product(a, b):
        return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)

    leaves = flat(params)
    for path in [path for path in leaves if path[-1] == A]:
        module = path[:-1]
        update = jax.vmap(product)(leaves.pop(path), leaves.pop((*module, B)))
        leaves[*module, "kernel"] = leaves[*module, "kernel"] + update
    return nested(leaves)


def adapters(params: Any) -> Any:
    """The adapters alone, in a tree of their own."""
    return select(params, is_adapter)


def with_adapters(params: Any, adapters: Any) -> Any:
    """Plain parameters with the adapters of `adapters` beside their kernels."""
    return nested(flat(params) | flat(adapters))

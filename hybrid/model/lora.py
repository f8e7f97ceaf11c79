"""The `lora.` section: low-rank adapters beside kernels, stacked and sharded like them.

A kernel W [...in, ...out] that is adapted has two tensors beside it in the tree:

    y = x·W + (x·A)·B              A: lora_a [...in, r]        B: lora_b [r, ...out]

A starts at fan-in^-0.5 and B at zero, so an adapted model begins as its base, and
W + A·B is what it is merged to. Layers know that they are adapted from the tensors they are given,
so nothing else of a model changes.
Source: LoRA (2106.09685), sec. 4.1, with alpha = r.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hybrid.axes import EMBED, LAYERS
from hybrid.config import ConfigError
from hybrid.model.config import LORA_MODULES, LoraConfig

A, B = "lora_a", "lora_b"


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return name.endswith((f"/{A}", f"/{B}"))


def has_adapters(tree: Any) -> bool:
    """Whether any kernel in `tree` is adapted."""
    return any(A in node for _, node in _kernels(tree))


def adapted(layer: Any) -> tuple[tuple[str, int], ...]:
    """(module, rank) of the adapted kernels of one layer's parameters, unstacked."""
    return tuple((path, node[A].shape[-1]) for path, node in _kernels(layer) if A in node)


# --- Adding ----------------------------------------------------------------------------------


def add(config: LoraConfig, params: Any, logical_axes: Any, rng: jax.Array) -> Any:
    """`params` with fresh adapters; the tree itself for rank 0.

    Raises: ConfigError for modules that this model doesn't have.
    """
    found = dict(_targets(config, logical_axes))
    new = {}
    for number, (path, names) in enumerate(found.items()):
        kernel = _get(params, path)["kernel"]
        inputs, outputs = _cut(names["kernel"], kernel.shape)
        stack = kernel.shape[:1]
        shape = (*stack, *inputs, config.rank)
        noise = jax.random.normal(jax.random.fold_in(rng, number), shape, kernel.dtype)
        first = noise * math.prod(inputs) ** -0.5
        second = jnp.zeros((*stack, config.rank, *outputs), kernel.dtype)
        new[path] = {"kernel": kernel, A: first, B: second}
    return _with(params, new)


def add_axes(config: LoraConfig, logical_axes: Any) -> Any:
    """The axes' names of the tree that `add` gives."""
    new = {}
    for path, names in _targets(config, logical_axes):
        kernel = names["kernel"]
        inputs, outputs = _cut(kernel, kernel)
        new[path] = {"kernel": kernel, A: (LAYERS, *inputs, None), B: (LAYERS, None, *outputs)}
    return _with(logical_axes, new)


def _targets(config: LoraConfig, logical_axes: Any) -> Iterator[tuple[str, Mapping[str, tuple]]]:
    """(path, axes' names) of the kernels to adapt."""
    if not config.rank:
        return
    found = [
        (path, node)
        for path, node in _kernels(logical_axes)
        if path.split("/")[-1] in config.modules and path.split("/")[-2] in _PARENTS
    ]
    there = {p.split("/")[-1] for p, _ in _kernels(logical_axes) if p.split("/")[-2] in _PARENTS}
    for name in config.modules:
        if name not in there and config.modules != LORA_MODULES:
            accepted = "some of " + ", ".join(m for m in LORA_MODULES if m in there)
            raise ConfigError("lora.modules", "names what this model doesn't have", name, accepted)
    yield from found


_PARENTS = ("mixer", "feed_forward")


def _cut(names: tuple, values: tuple) -> tuple[tuple, tuple]:
    """`values` of a stacked kernel's axes as those of its inputs and of its outputs.

    A kernel reads the residual stream, [embed, ...out], or writes to it, [...in, embed].
    """
    end = 2 if names[1] == EMBED else len(names) - 1
    return values[1:end], values[end:]


# --- Taking apart ----------------------------------------------------------------------------


def merge(params: Any) -> Any:
    """Plain parameters: each adapted kernel becomes W + A·B."""

    def product(a, b):
        return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)

    def merged(node):
        return {"kernel": node["kernel"] + jax.vmap(product)(node[A], node[B])}

    return _with(params, {path: merged(n) for path, n in _kernels(params) if A in n})


def adapters(params: Any) -> Any:
    """The adapters alone, in a tree of their own."""
    return _only(params, lambda name: name in (A, B))


def base(params: Any) -> Any:
    """The parameters without the adapters."""
    return _only(params, lambda name: name not in (A, B))


def with_adapters(params: Any, found: Any) -> Any:
    """Plain parameters with the adapters of `adapters` beside their kernels."""
    return _with(params, {p: {**_get(params, p), **node} for p, node in _adapter_nodes(found)})


def _only(tree, keep):
    if not isinstance(tree, Mapping):
        return tree
    kept = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            inner = _only(node, keep)
            if inner:
                kept[name] = inner
        elif keep(name):
            kept[name] = node
    return kept


# --- Trees -----------------------------------------------------------------------------------


def _kernels(tree: Any, path: tuple = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, node) of the nodes that hold a kernel."""
    for name, node in tree.items():
        if isinstance(node, Mapping):
            if "kernel" in node:
                yield "/".join(map(str, (*path, name))), node
            else:
                yield from _kernels(node, (*path, name))


def _adapter_nodes(tree, path=()):
    for name, node in tree.items():
        if A in node:
            yield "/".join(map(str, (*path, name))), node
        else:
            yield from _adapter_nodes(node, (*path, name))


def _get(tree, path):
    for name in path.split("/"):
        tree = tree[int(name) if name.isdecimal() else name]
    return tree


def _with(tree: Any, new: Mapping[str, Any]) -> Any:
    """`tree` with some nodes replaced; the input is left alone."""

    def rebuilt(node, path):
        if path in new:
            return new[path]
        if not isinstance(node, Mapping):
            return node
        return {
            name: rebuilt(child, f"{path}/{name}" if path else str(name))
            for name, child in node.items()
        }

    return rebuilt(tree, "") if new else tree

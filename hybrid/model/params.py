"""Parameters in two parts: those that are trained and those that are frozen.

Each part is a tree like the parameters in which the other's leaves are None, which jax takes for
nothing: no gradient, no optimizer state, no work. With LoRA the adapters are trained and all
else is frozen; `optimizer.freeze` freezes by name.
"""

import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import jax

from hybrid.config import ConfigError
from hybrid.model import lora
from hybrid.model.config import LoraConfig, ModelConfig
from hybrid.model.language_model import abstract, logical_axes


def names(tree: Any) -> Any:
    """A tree like the parameters with each leaf's name: "segments/0/5/mixer/q_proj/kernel"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(str(entry.key) for entry in path), tree
    )


def abstract_trained(
    config: ModelConfig, adapters: LoraConfig, freeze: Sequence[str]
) -> tuple[Any, Any]:
    """Shapes of a run's parameters, adapters included, and their `trained_mask`.

    Raises: ConfigError for a `freeze` or adapters that don't fit the model.
    """
    add = functools.partial(lora.add, adapters, logical_axes=logical_axes(config))
    shapes = jax.eval_shape(add, abstract(config), rng=jax.random.key(0))
    return shapes, trained_mask(shapes, freeze)


def trained_mask(params: Any, freeze: Sequence[str]) -> Any:
    """True at the leaves that are trained.

    Args:
      params: the parameters or their shapes.
      freeze: patterns of names as of a shell ("embedder/*"); none where there are adapters.
    Raises: ConfigError under optimizer.freeze for a pattern without a leaf, or if nothing is left.
    """
    named = names(params)
    if lora.has_adapters(params):
        return jax.tree.map(lora.is_adapter, named)
    every = jax.tree.leaves(named)
    for pattern in freeze:
        if not fnmatch.filter(every, pattern):
            shown = ", ".join(sorted({name.split("/")[0] + "/*" for name in every}))
            problem = "matches no parameter"
            raise ConfigError("optimizer.freeze", problem, pattern, f"such as {shown}")
    mask = jax.tree.map(lambda name: not any(fnmatch.fnmatch(name, p) for p in freeze), named)
    if not any(jax.tree.leaves(mask)):
        raise ConfigError("optimizer.freeze", "leaves nothing to train", list(freeze))
    return mask


def split(params: Any, mask: Any) -> tuple[Any, Any]:
    """(trained, frozen) of the parameters, or of anything with a leaf for each of them."""
    is_leaf = lambda node: not isinstance(node, dict)  # noqa: E731
    trained = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, params, is_leaf=is_leaf)
    frozen = jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, params, is_leaf=is_leaf)
    return trained, frozen


def join(trained: Any, frozen: Any) -> Any:
    """The parameters of both parts."""
    is_none = lambda node: node is None  # noqa: E731
    return jax.tree.map(
        lambda left, right: right if left is None else left, trained, frozen, is_leaf=is_none
    )

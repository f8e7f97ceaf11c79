"""Which parameters are trained, and parameters in two parts: those and the frozen ones.

Each part is a tree like the parameters in which the other's leaves are None, which jax treats as no
leaf: no gradient, no optimizer state, no work. With LoRA the adapters are trained and all else is
frozen; `optimizer.freeze` freezes by name.
"""

import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import jax

from hybrid.config import ConfigError
from hybrid.model import abstract, logical_axes, lora
from hybrid.model.config import LoraConfig, ModelConfig
from hybrid.model.params import flat, is_adapter, nested, param_name


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
    names = {path: param_name(path) for path in flat(params)}
    if any(map(is_adapter, names)):
        return nested({path: is_adapter(path) for path in names})
    for pattern in freeze:
        if not fnmatch.filter(names.values(), pattern):
            accepted = "such as " + ", ".join(sorted({f"{path[0]}/*" for path in names}))
            raise ConfigError("optimizer.freeze", "matches no parameter", pattern, accepted)
    mask = {path: not any(fnmatch.fnmatch(n, p) for p in freeze) for path, n in names.items()}
    if not any(mask.values()):
        raise ConfigError("optimizer.freeze", "leaves nothing to train", list(freeze))
    return nested(mask)


def split(params: Any, mask: Any) -> tuple[Any, Any]:
    """(trained, frozen) of the parameters, or of anything with a leaf for each of them."""
    leaves, is_trained = flat(params), flat(mask)
    trained = {path: leaf if is_trained[path] else None for path, leaf in leaves.items()}
    frozen = {path: None if is_trained[path] else leaf for path, leaf in leaves.items()}
    return nested(trained), nested(frozen)


def join(trained: Any, frozen: Any) -> Any:
    """The parameters of both parts."""
    rest = flat(frozen)
    return nested({p: rest[p] if leaf is None else leaf for p, leaf in flat(trained).items()})

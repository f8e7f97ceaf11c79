"""Parameter trees by path: the one way in which parameters are named, selected and split.

Parameters are nested dicts with keys of text and of numbers (segments, runs). `flat` makes them a
dict of paths, `nested` undoes it, and everything that selects or replaces parameters by their
path stands between the two:

    {("segments", 0, 1, "mixer", "q_proj", "kernel"): leaf}      "segments/0/1/mixer/q_proj/kernel"

Read next: `trained.py`, which splits parameters into those that are trained and the rest.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import traverse_util

from hybrid.axes import BLOCKS, EXPERTS, LAYERS
from hybrid.model.pattern import LayerPlan

STACKS = (LAYERS, EXPERTS, BLOCKS)  # axes along which a leaf holds many tensors
ADAPTER = ("lora_a", "lora_b")

Path = tuple[str | int, ...]
Leaves = dict[Path, Any]


def flat(tree: Any) -> Leaves:
    """The leaves of nested dicts by path, in the order of the dicts."""
    return traverse_util.flatten_dict(tree)


def nested(leaves: Leaves) -> Any:
    """The nested dicts of leaves by path."""
    return traverse_util.unflatten_dict(leaves)


def param_name(path: Path) -> str:
    """A path as text: "segments/0/1/mixer/q_proj/kernel"."""
    return "/".join(map(str, path))


def select(tree: Any, is_selected: Callable[[Path], bool]) -> Any:
    """The tree of the leaves whose path `is_selected`."""
    return nested({path: leaf for path, leaf in flat(tree).items() if is_selected(path)})


def is_adapter(path: Path) -> bool:
    """Whether a parameter belongs to a LoRA adapter."""
    return path[-1] in ADAPTER


def layer_params(plan: LayerPlan, params: Any, layer: int) -> dict[str, jax.Array]:
    """The parameters of one layer, unstacked, by name: "mixer/q_proj/kernel"; none beyond the last.

    Args:
      params: in the layout of `plan`.  layer: depth, from 0.
    """
    if layer >= plan.num_layers:
        return {}
    place = plan.locate(layer)
    stacked = flat(params["segments"][place.segment][place.run])
    return {param_name(path): leaf[place.row] for path, leaf in stacked.items()}


# --- Logical axes ----------------------------------------------------------------------------


def map_axes(function: Callable[..., Any], logical_axes: Any, *trees: Any) -> Any:
    """`jax.tree.map` where tuples of axis names are the leaves of the first tree."""
    return jax.tree.map(
        function, logical_axes, *trees, is_leaf=lambda node: isinstance(node, tuple)
    )


def tensor_axes(names: tuple) -> tuple:
    """The axes of one tensor of a leaf: of one layer, and there of one expert or block."""
    return tensor_axes(names[1:]) if names and names[0] in STACKS else names


def is_matrix(names: tuple) -> bool:
    """Whether a parameter is a kernel or an embedding: two axes or more, stacks not counted.

    Weight decay applies to these, and they are used in the compute dtype; norms' weights and
    scalars are used in the parameters' dtype.
    """
    return len(tensor_axes(names)) >= 2

"""Parameters of one model as the start of another: other pattern, windows, keys and values, depth.

Layers are matched by depth, through `locate` of both plans, so how a plan is cut does not matter.
A tensor of the new model is

    mapped    the old model has one of the same name and shape at the same depth
    made      from other tensors by a rule below, or fresh, as a new model would have it
    dropped   (of the old model) nothing takes it

Rules, for kernels of keys and values [d, k, h]:

    one projection -> two    both are the one. Exact: v = rms(x·W) and k = rope(v · k_scale) in
                             either form.
    two projections -> one   their mean; what follows has to be trained (2606.04032).
    fewer heads              the mean over each group of heads (2305.13245, sec. 2.1).
    more heads               each head repeated. Exact.

Windows, rotary encodings and scalings are no parameters: the new config alone decides them.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat
from flax import nnx

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model import stack
from hybrid.model.config import ModelConfig
from hybrid.model.params import Leaves, flat, layer_params, nested, param_name
from hybrid.model.pattern import LayerSpec

K_PROJ, V_PROJ = "mixer/k_proj/kernel", "mixer/v_proj/kernel"
FRESH, MEAN = "fresh", "the mean of both projections"
Layer = dict[str, jax.Array]  # the tensors of one layer by name
Note = tuple[str, str, int | None]  # a tensor's name, the rule, the layer


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the tensors: of each layer by itself; None is outside the layers.

    Attributes:
      num_mapped: tensors that were taken over.
      made: those that the old model does not have, by a rule above or "fresh".
      dropped: those that the new model has no place for.
    """

    num_mapped: int
    made: tuple[Note, ...] = ()
    dropped: tuple[Note, ...] = ()

    def lines(self) -> list[str]:
        """One line a kind of tensor."""
        made, dropped = _grouped("made", self.made), _grouped("dropped", self.dropped)
        return [f"{self.num_mapped} tensors mapped", *made, *dropped]


def convert(
    old: ModelConfig, params: Mapping[str, Any], new: ModelConfig, key: jax.Array
) -> tuple[model.Params, Report]:
    """Parameters for `new` from those of `old`, and what became of them.

    Args:
      key: for fresh tensors; those of layers are what `model.init` makes of the same key.
    Raises: ConfigError where nothing can be taken over: another width, vocabulary or norm.
    """
    for field in ("d_model", "vocab_size", "norm_offset"):
        if getattr(old, field) != getattr(new, field):
            accepted = f"init_from has {getattr(old, field)}"
            raise ConfigError(f"model.{field}", "can't be another", getattr(new, field), accepted)
    if shapes(old) == shapes(new):  # and so the same cuts: nothing moves, nothing is copied
        leaves = flat(params).items()
        mapped = (leaf.shape[0] if path[0] == "segments" else 1 for path, leaf in leaves)
        return dict(params), Report(sum(mapped))
    layers_key = jax.random.split(key)[1]
    old_plan, new_plan = model.layer_plan(old), model.layer_plan(new)
    outside, made = _outside(params, new)
    layers: list[Layer] = []
    dropped: list[Note] = []
    for depth, spec in enumerate(new_plan.layers()):
        available = layer_params(old_plan, params, depth)
        layer_key = jax.random.fold_in(layers_key, depth)
        fresh = functools.cache(functools.partial(_fresh, spec, new, layer_key))
        wanted = _by_name(nnx.to_pure_dict(stack.abstract_layer(spec, new)[1]))
        layer, rules = _layer(available, wanted, fresh)
        layers.append(layer)
        made += [(tensor, rule, depth) for tensor, rule in rules.items()]
        merged = {V_PROJ} if rules.get(K_PROJ) == MEAN else set()
        dropped += [(tensor, "", depth) for tensor in available.keys() - layer.keys() - merged]
    for depth in range(new_plan.num_layers, old_plan.num_layers):
        dropped += [(tensor, "", depth) for tensor in layer_params(old_plan, params, depth)]
    num_mapped = len(outside) + sum(map(len, layers)) - len(made)
    result = nested(outside | _stacked(new, layers))
    return result, Report(num_mapped, tuple(made), tuple(sorted(dropped)))


def shapes(config: ModelConfig) -> Any:
    """The shapes of a model's parameters, a tree like them."""
    return jax.tree.map(lambda leaf: leaf.shape, model.abstract(config))


# --- One layer -------------------------------------------------------------------------------


def _layer(
    available: Layer, shapes: Mapping[str, Any], fresh: Callable[[], Layer]
) -> tuple[Layer, dict[str, str]]:
    """A layer's tensors for `shapes`, and by which rule those were made that are not mapped."""
    layer, rules = {}, {}
    for tensor, shape in shapes.items():
        value, rule = _projected(tensor, available, shapes)
        if value is not None and value.shape != shape.shape and tensor in (K_PROJ, V_PROJ):
            value, rule = _with_heads(value, shape.shape)
        if value is None or value.shape != shape.shape:
            value, rule = fresh()[tensor], FRESH
        layer[tensor] = value
        if rule:
            rules[tensor] = rule
    return layer, rules


def _projected(tensor, available, shapes):
    """The tensor of that name and "", or what a rule makes of others and the rule."""
    if tensor == V_PROJ and V_PROJ not in available:
        return available.get(K_PROJ), "the one projection of keys and values"
    if tensor == K_PROJ and V_PROJ in available and V_PROJ not in shapes:
        return (available[K_PROJ] + available[V_PROJ]) / 2, MEAN
    return available.get(tensor), ""


def _with_heads(kernel, shape):
    """`kernel` [d, k, h] with the number of heads of `shape`, where one divides the other."""
    heads, wanted = kernel.shape[1], shape[1]
    if kernel.shape[2] == shape[2] and wanted % heads == 0:
        return repeat(kernel, "d k h -> d (k r) h", r=wanted // heads), "heads repeated"
    if kernel.shape[2] == shape[2] and heads % wanted == 0:
        return reduce(kernel, "d (k g) h -> d k h", "mean", k=wanted), "heads averaged in groups"
    return kernel, ""


def _fresh(spec: LayerSpec, config: ModelConfig, key: jax.Array) -> Layer:
    return _by_name(stack.init_layer(spec, config, key))


def _by_name(tree: Any) -> dict[str, Any]:
    return {param_name(path): leaf for path, leaf in flat(tree).items()}


# --- The whole tree --------------------------------------------------------------------------


def _outside(params: Mapping[str, Any], new: ModelConfig) -> tuple[Leaves, list[Note]]:
    """What stands outside the layers; the norm of per-layer embeddings may have to be made."""
    shapes = {p: s for p, s in flat(model.abstract(new)).items() if p[0] != "segments"}
    outside: Leaves = {}
    made: list[Note] = []
    leaves = flat(params)
    for path, shape in shapes.items():
        if path in leaves:
            outside[path] = leaves[path]
        else:
            outside[path] = jnp.full(shape.shape, 1 - new.norm_offset, shape.dtype)
            made.append((param_name(path), FRESH, None))
    return outside, made


def _stacked(config: ModelConfig, layers: Sequence[Layer]) -> Leaves:
    rows: dict[tuple, list[jax.Array]] = collections.defaultdict(list)
    for depth, layer in enumerate(layers):
        place = model.layer_plan(config).locate(depth)
        for tensor, value in layer.items():
            rows["segments", place.segment, place.run, *tensor.split("/")].append(value)
    return {path: jnp.stack(values) for path, values in rows.items()}


# --- In words --------------------------------------------------------------------------------


def _grouped(verb: str, notes: Iterable[Note]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[int]] = {}
    for tensor, rule, depth in notes:
        groups.setdefault((tensor, rule), []).extend([] if depth is None else [depth])
    for (tensor, rule), depths in groups.items():
        layers = f" of {_runs(depths)}" if depths else ""
        yield f"{verb} {tensor}{layers}" + (f": {rule}" if rule else "")


def _runs(depths: Sequence[int]) -> str:
    """`layers 0 to 4, 6`: runs of depths."""
    runs = np.split(depths, np.flatnonzero(np.diff(depths) != 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ("layers " if len(depths) > 1 else "layer ") + ", ".join(texts)

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

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import reduce, repeat
from flax import nnx

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model import stack
from hybrid.model.config import ModelConfig

K_PROJ, V_PROJ = "mixer/k_proj/kernel", "mixer/v_proj/kernel"
FRESH, MEAN = "fresh", "the mean of both projections"
Named = dict[str, jax.Array]
Note = tuple[str, str, int | None]  # name, how, layer


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the tensors: of each layer on its own; None is outside the layers.

    Attributes:
      num_mapped: tensors that were taken over.
      made: those that the old model does not have, `how` a rule above or "fresh".
      dropped: those that the new model has no place for.
    """

    num_mapped: int
    made: tuple[Note, ...] = ()
    dropped: tuple[Note, ...] = ()

    def lines(self) -> list[str]:
        """One line a kind of tensor."""
        return [
            f"{self.num_mapped} tensors mapped",
            *_grouped("made", self.made),
            *_grouped("dropped", self.dropped),
        ]


def convert(
    old: ModelConfig, params: Mapping[str, Any], new: ModelConfig, key: jax.Array
) -> tuple[model.Params, Report]:
    """Parameters for `new` from those of `old`, and what became of them.

    Args:
      key: for fresh tensors; those of layers are what `model.init` makes of the same key.
    Raises: ConfigError where nothing can be taken over: another width, vocabulary or norm.
    """
    for name in ("d_model", "vocab_size", "norm_offset"):
        if getattr(old, name) != getattr(new, name):
            accepted = f"init_from has {getattr(old, name)}"
            raise ConfigError(f"model.{name}", "can't be another", getattr(new, name), accepted)
    if _shapes(old) == _shapes(new):  # and so the same cuts: nothing moves, nothing is copied
        return dict(params), Report(_num_tensors(params))
    layers_key = jax.random.split(key)[1]
    specs = list(model.layer_plan(new).layers())
    layers: list[Named] = []
    outside, made = _outside(params, new)
    dropped: list[Note] = []
    for depth in range(max(len(specs), model.layer_plan(old).num_layers)):
        have = layer_tensors(old, params, depth)
        if depth >= len(specs):
            dropped += [(name, "", depth) for name in have]
            continue
        fresh = functools.partial(_fresh, new, specs[depth], jax.random.fold_in(layers_key, depth))
        shapes = _named(nnx.to_pure_dict(stack.abstract_layer(specs[depth], new)[1]))
        tensors, how = _take(have, shapes, functools.cache(fresh))
        layers.append(tensors)
        made += [(name, rule, depth) for name, rule in how.items()]
        merged = {V_PROJ} if how.get(K_PROJ) == MEAN else set()
        dropped += [(name, "", depth) for name in have.keys() - tensors.keys() - merged]
    num_tensors = len(_named(outside)) + sum(map(len, layers))
    result = {**outside, "segments": _stacked(new, layers)}
    return result, Report(num_tensors - len(made), tuple(made), tuple(sorted(dropped)))


def _shapes(config):
    return jax.tree.map(lambda leaf: leaf.shape, model.abstract(config))


def _num_tensors(params):
    """Tensors of all layers one by one, and those outside."""
    stacked = jax.tree.leaves(params["segments"])
    return sum(leaf.shape[0] for leaf in stacked) + len(_named(_without_layers(params)))


def _without_layers(params):
    return {name: part for name, part in params.items() if name != "segments"}


# --- One layer -------------------------------------------------------------------------------


def layer_tensors(config: ModelConfig, params: Mapping[str, Any], depth: int) -> Named:
    """The tensors of one layer by name ("mixer/q_proj/kernel"); none beyond the last layer."""
    plan = model.layer_plan(config)
    if depth >= plan.num_layers:
        return {}
    where = plan.locate(depth)
    stacked = _named(params["segments"][where.segment][where.slot])
    return {name: leaf[where.repetition] for name, leaf in stacked.items()}


def _take(
    have: Named, shapes: Mapping[str, Any], fresh: Callable[[], Named]
) -> tuple[Named, dict[str, str]]:
    """A layer's tensors for `shapes`, and how those that are not mapped were made."""
    tensors, how = {}, {}
    for name, shape in shapes.items():
        value, rule = _projected(name, have, shapes)
        if value is not None and value.shape != shape.shape and name in (K_PROJ, V_PROJ):
            value, rule = _with_heads(value, shape.shape)
        if value is None or value.shape != shape.shape:
            value, rule = fresh()[name], FRESH
        tensors[name] = value
        if rule:
            how[name] = rule
    return tensors, how


def _projected(name, have, shapes):
    """The tensor of that name and "", or what a rule makes of others and the rule."""
    if name == V_PROJ and V_PROJ not in have:
        return have.get(K_PROJ), "the one projection of keys and values"
    if name == K_PROJ and V_PROJ in have and V_PROJ not in shapes:
        return (have[K_PROJ] + have[V_PROJ]) / 2, MEAN
    return have.get(name), ""


def _with_heads(kernel, shape):
    """`kernel` [d, k, h] with the number of heads of `shape`, where one divides the other."""
    heads, wanted = kernel.shape[1], shape[1]
    if kernel.shape[2] == shape[2] and wanted % heads == 0:
        return repeat(kernel, "d k h -> d (k r) h", r=wanted // heads), "heads repeated"
    if kernel.shape[2] == shape[2] and heads % wanted == 0:
        return reduce(kernel, "d (k g) h -> d k h", "mean", k=wanted), "heads averaged in groups"
    return kernel, ""


def _fresh(config, spec, key):
    return _named(stack.init_layer(spec, config, key))


# --- The whole tree --------------------------------------------------------------------------


def _outside(params, new):
    """What stands outside the layers; the norm of per-layer embeddings may have to be made."""
    shapes = _without_layers(model.abstract(new))
    have = {name: params[name] for name in shapes if name in params}
    made: list[Note] = []
    for name in shapes.keys() - have.keys():
        have[name] = jax.tree.map(
            lambda x: jnp.full(x.shape, 1 - new.norm_offset, x.dtype), shapes[name]
        )
        made += [(f"{name}/{leaf}", FRESH, None) for leaf in _named(have[name])]
    return have, made


def _stacked(config, layers):
    """`segments` of the layers' tensors, in order of depth."""
    plan = model.layer_plan(config)
    slots: dict[tuple[int, int], list[Named]] = {}
    for depth, tensors in enumerate(layers):
        where = plan.locate(depth)
        slots.setdefault((where.segment, where.slot), []).append(tensors)
    segments: dict[int, dict] = {}
    for (segment, slot), repetitions in slots.items():
        whole = {name: jnp.stack([r[name] for r in repetitions]) for name in repetitions[0]}
        segments.setdefault(segment, {})[slot] = _nested(whole)
    return segments


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def _nested(named: Named) -> dict:
    tree: dict = {}
    for name, leaf in named.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


# --- In words --------------------------------------------------------------------------------


def _grouped(what: str, entries: Iterable[Note]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[int | None]] = {}
    for name, how, depth in entries:
        groups.setdefault((name, how), []).append(depth)
    for (name, how), depths in groups.items():
        where = f" of {_layers([d for d in depths if d is not None])}" if depths != [None] else ""
        yield f"{what} {name}{where}" + (f": {how}" if how else "")


def _layers(depths: Sequence[int]) -> str:
    """`layers 0 to 4, 6`: runs of depths."""
    runs: list[list[int]] = []
    for depth in depths:
        if runs and depth == runs[-1][-1] + 1:
            runs[-1].append(depth)
        else:
            runs.append([depth])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ("layers " if len(depths) > 1 else "layer ") + ", ".join(texts)

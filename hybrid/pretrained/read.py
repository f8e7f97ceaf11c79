"""A Hugging Face folder's tensors, straight into stacked and sharded arrays.

The stacked leaves are made where they live, then filled one tensor at a time by a donated update,
so the host never holds more than one tensor; tables too large for that go by blocks of rows.
Everything is checked against the names and shapes of the model before the first read.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.model.params import Leaves, flat, nested
from hybrid.pretrained import names
from hybrid.pretrained.names import AS_IS, StoredTensor
from hybrid.pretrained.tensors import Tensors

BLOCK_BYTES = 256 * 2**20
_MOST_NAMED = 3


def read_params(
    folder: pathlib.Path,
    config: ModelConfig,
    shardings: Any,
    dtype: Any,
    *,
    key: str = "init_from",
) -> model.Params:
    """The parameters of `config` from a folder.

    Args:
      shardings: a tree like the parameters, where each leaf goes.
      dtype: of all parameters.
    Raises: ConfigError under `key` for a folder that can't be read safely, and naming tensors
      that are missing, unknown or of another shape; nothing was read then.
    """
    tensors = Tensors(folder, key)
    given = (p for p in names.PREFIXES if p + names.EMBEDDING in tensors.shapes)
    prefix = next(given, "model.")
    wanted = names.stored_tensors(config, prefix)
    redundant = {prefix + name for name in names.redundant(config)}
    _check(tensors, wanted, redundant | set(names.HEADS))
    _check_head(tensors, prefix + names.EMBEDDING)

    def zeros(leaf, sharding):
        return _zeros(leaf.shape, dtype, sharding)()

    leaves = flat(jax.tree.map(zeros, model.abstract(config), shardings))
    for name, stored in wanted.items():
        _fill(leaves, tensors, name, stored)
    return nested(leaves)


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[[], jax.Array]:
    """Makes an empty leaf on the devices alone; leaves of one kind share what is compiled."""
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _check(tensors: Tensors, wanted: Mapping[str, list[StoredTensor]], redundant: set[str]) -> None:
    shapes = {name: stored[0].file_shape for name, stored in wanted.items()}
    given = tensors.shapes
    misshapen = [
        f"{name} {list(given[name])} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in given and given[name] != shape
    ]
    missing = [name for name in shapes if name not in given]
    extra = [n for n in given if n not in shapes and n not in redundant and not _ignored(n)]
    problems = {"lacks": missing, "has an unknown": extra, "has a misshapen": misshapen}
    for problem, tensor_names in problems.items():
        if tensor_names:
            more = len(tensor_names) - _MOST_NAMED
            listed = ", ".join(tensor_names[:_MOST_NAMED]) + f" and {more} more" * (more > 0)
            raise ConfigError(tensors.key, f"{tensors.folder} {problem} tensor: {listed}")


def _ignored(name: str) -> bool:
    inner = name.removeprefix("model.")
    return inner.startswith(names.IGNORED) or name.endswith("rotary_emb.inv_freq")


def _check_head(tensors: Tensors, embedding: str) -> None:
    """Raises: ConfigError for an output head that is not the embedding."""
    for head in (name for name in names.HEADS if name in tensors.shapes):
        is_equal = tensors.shapes[head] == tensors.shapes[embedding] and all(
            np.array_equal(tensors.read(head, rows), tensors.read(embedding, rows))
            for rows in _blocks(tensors.shapes[head])
        )
        if not is_equal:
            problem = f"{tensors.folder} has an output head of its own, which no model here has"
            raise ConfigError(tensors.key, problem, head, f"none, or a copy of {embedding}")


# --- Filling ---------------------------------------------------------------------------------


def _fill(leaves: Leaves, tensors: Tensors, name: str, stored: list[StoredTensor]) -> None:
    """Reads one tensor of the file into the leaves of all tensors that it stores."""
    shape = tensors.shapes[name] or (1,)
    by_rows = all(t.layout is AS_IS and (t.part is None or t.part.axis > 0) for t in stored)
    blocks = _blocks(shape) if by_rows else [slice(0, shape[0])]
    for block in blocks:
        rows = tensors.read(name, block)
        for tensor in stored:
            part = rows if tensor.part is None else rows[tensor.part.of(rows.shape)]
            own = (len(rows), *tensor.shape[1:]) if len(blocks) > 1 else tensor.shape
            values = tensor.layout.to_ours(part, own)
            leaves[tensor.path] = _updated(leaves[tensor.path], tensor, values, block.start)


def _blocks(shape: tuple[int, ...]) -> list[slice]:
    """The rows of a file's tensor in stretches of at most BLOCK_BYTES; a vector is one."""
    height, *rest = shape
    block = max(1, min(height, BLOCK_BYTES // (4 * math.prod(rest)))) if rest else height
    return [slice(start, min(start + block, height)) for start in range(0, height, block)]


def _updated(leaf: jax.Array, tensor: StoredTensor, values: np.ndarray, start: int) -> jax.Array:
    """The leaf with `values` from row `start` on, of their own layer where it is stacked."""
    whole: Any = leaf.sharding
    spec = whole.spec[0 if tensor.repetition is None else 1 :]
    if values.shape != tensor.shape:  # a block of rows need not divide as the whole does
        spec = (None, *spec[1:])
    sharding = NamedSharding(whole.mesh, P(*spec))
    index = (start,) if tensor.repetition is None else (tensor.repetition, start)
    return _update(leaf, jax.device_put(np.asarray(values, leaf.dtype), sharding), index)


@functools.partial(jax.jit, donate_argnums=0)
def _update(leaf: jax.Array, values: jax.Array, index: tuple) -> jax.Array:
    values = values.reshape((1,) * (leaf.ndim - values.ndim) + values.shape)
    starts = (*index, *(0,) * leaf.ndim)[: leaf.ndim]
    return jax.lax.dynamic_update_slice(leaf, values, starts)

"""A Hugging Face folder's tensors, straight into stacked and sharded arrays.

The stacked leaves are made where they live, then filled one tensor at a time by a donated update,
so the host never holds more than one tensor; tables too large for that go by blocks of rows.
Everything is checked against the names and shapes that the model asks for before the first read.
"""

import functools
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.pretrained import names
from hybrid.pretrained.names import AS_IS, Row
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
    prefix = _prefix(tensors.shapes)
    rows = list(names.rows(config))
    _check(tensors, prefix, rows, names.redundant(config))
    params = jax.tree.map(
        lambda leaf, where: _empty(leaf.shape, jnp.dtype(dtype), where),
        model.abstract(config),
        shardings,
    )
    for name, group in itertools.groupby(sorted(rows, key=_by_name), key=_by_name):
        _fill(params, tensors, prefix + name, list(group))
    return params


def _by_name(row: Row) -> str:
    return row.name


def _prefix(shapes: Mapping[str, Any]) -> str:
    """What stands before the names of the decoder's tensors in this folder."""
    return next((p for p in names.PREFIXES if f"{p}embed_tokens.weight" in shapes), "model.")


def _check(tensors: Tensors, prefix: str, rows: list[Row], redundant: set[str]) -> None:
    wanted = {prefix + row.name: row.file_shape for row in rows}
    there = tensors.shapes
    wrong = [
        f"{name} {list(there[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in there and there[name] != shape
    ]
    missing = [name for name in wanted if name not in there]
    unneeded = {prefix + name for name in redundant}
    extra = [n for n in there if n not in wanted and n not in unneeded and not _ignored(n)]
    for what, found in (("lacks", missing), ("has an unknown", extra), ("has a misshapen", wrong)):
        if found:
            shown = ", ".join(found[:_MOST_NAMED])
            more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            raise ConfigError(tensors.key, f"{tensors.folder} {what} tensor: {shown}{more}")


def _ignored(name: str) -> bool:
    inner = name.removeprefix("model.")
    return inner.startswith(names.IGNORED) or name.endswith("rotary_emb.inv_freq")


# --- Filling ---------------------------------------------------------------------------------


def _empty(shape: tuple[int, ...], dtype: jnp.dtype, where: NamedSharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)()


def _fill(params: model.Params, tensors: Tensors, name: str, rows: list[Row]) -> None:
    """Reads one tensor of the file into all of the leaves that have a part in it."""
    height, *rest = tensors.shapes[name] or (1,)
    by_rows = all(row.layout is AS_IS and (row.part is None or row.part.axis > 0) for row in rows)
    block = height
    if by_rows and len(tensors.shapes[name]) > 1:
        block = max(1, min(height, BLOCK_BYTES // (4 * int(np.prod(rest)))))
    for start in range(0, height, block):
        piece = tensors.read(name, slice(start, min(start + block, height)))
        for row in rows:
            part = piece if row.part is None else piece[row.part.of(piece.shape)]
            shape = (len(piece), *row.shape[1:]) if block < height else row.shape
            _put(params, row, row.layout.to_ours(part, shape), start)


def _put(params: model.Params, row: Row, values: np.ndarray, start: int) -> None:
    """Writes `values` into a leaf from row `start` on, of its own layer where it is stacked."""
    *path, last = row.path
    node = functools.reduce(lambda tree, name: tree[name], path, params)
    leaf = node[last]
    own = leaf.sharding.spec[0 if row.repetition is None else 1 :]
    if values.shape != row.shape:  # a block of rows need not divide as the whole does
        own = (None, *own[1:])
    values = np.asarray(values, leaf.dtype)
    there = jax.device_put(values, NamedSharding(leaf.sharding.mesh, P(*own)))
    at = (start,) if row.repetition is None else (row.repetition, start)
    node[last] = _update(leaf, there, at)


@functools.partial(jax.jit, donate_argnums=0)
def _update(leaf: jax.Array, values: jax.Array, at: tuple) -> jax.Array:
    values = values.reshape((1,) * (leaf.ndim - values.ndim) + values.shape)
    starts = (*at, *(0,) * leaf.ndim)[: leaf.ndim]
    return jax.lax.dynamic_update_slice(leaf, values, starts)

"""Parameters as checkpoints of format 1 and 2 hold them: each layer of a period apart.

    now         segments[i][run]     leaves [repetitions · length, ...], a run being `length` equal
                                     layers that follow each other (model/stack.py)
    up to 2     segments[i][slot]    leaves [repetitions, ...], a slot for each layer of a period

A tree is one of parameters or holds such ones, as an optimizer's state does.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hybrid.config import ConfigError

SINCE = 3  # the first format with runs


def is_apart(record: Mapping[str, Any]) -> bool:
    """Whether the checkpoint of this record has slots."""
    return record.get("format", 1) < SINCE


def apart(tree: Any, record: Mapping[str, Any]) -> Any:
    """`tree` with slots in place of runs.  record: of the checkpoint, which names the segments.

    Raises: ConfigError if the tree does not have the layers of the record.
    """

    def cut(node):
        if not _is_params(node):
            return node
        slots = {i: _slots(runs, *record["segments"][i]) for i, runs in node["segments"].items()}
        return {**node, "segments": slots}

    return jax.tree.map(cut, tree, is_leaf=_is_params)


def together(tree: Any, like: Any) -> Any:
    """The inverse: `tree` with the runs of `like`, whose leaves have shapes and shardings."""

    def join(node, target):
        if not _is_params(node):
            return node
        pairs = ((i, _runs(node["segments"][i], target["segments"][i])) for i in target["segments"])
        return {**node, "segments": dict(pairs)}

    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    put = jax.jit(
        lambda tree: jax.tree.map(join, tree, like, is_leaf=_is_params), out_shardings=shardings
    )
    return put(tree)


def _is_params(node: Any) -> bool:
    return isinstance(node, dict) and "segments" in node


def _length(run: Any, repetitions: int) -> int:
    return jax.tree.leaves(run)[0].shape[0] // repetitions


def _slots(segment: dict[int, Any], letters: str, repetitions: int) -> dict[int, Any]:
    def cut(leaf, start, length):
        shape = (repetitions, *leaf.shape[1:])
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)
        return leaf[start::length]

    slots = []
    for run in (segment[number] for number in sorted(segment)):
        length = _length(run, repetitions)
        for i in range(length):
            slots.append(jax.tree.map(lambda leaf, i=i, length=length: cut(leaf, i, length), run))
    if len(slots) != len(letters):
        problem = f"was saved by an earlier version, with {len(letters)} layers of adapters"
        raise ConfigError("--workdir", problem, f"{len(slots)} now", "the version that saved it")
    return dict(enumerate(slots))


def _runs(slots: dict[int, Any], runs: dict[int, Any]) -> dict[int, Any]:
    repetitions = jax.tree.leaves(slots)[0].shape[0]
    joined, first = {}, 0
    for number in sorted(runs):
        length = _length(runs[number], repetitions)
        own = [slots[first + i] for i in range(length)]
        joined[number] = jax.tree.map(_interleaved, *own)
        first += length
    return joined


def _interleaved(*leaves: jax.Array) -> jax.Array:
    """Rows of the first repetition, one of each leaf, then of the second, and so on."""
    return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])

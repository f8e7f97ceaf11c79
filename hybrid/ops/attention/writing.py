"""The door to writing: new tokens into the slots of stacked caches.

Read next: `pallas/write.py`, what TPUs use.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hybrid import axes
from hybrid.ops import cpu, dispatch
from hybrid.ops.attention.pallas import door as pallas
from hybrid.ops.attention.request import ROWS, head_names
from hybrid.ops.dispatch import Implementation, Operation, per_device


@dataclasses.dataclass(frozen=True)
class WriteRequest:
    """A call of `write`: t tokens of a row at once."""

    backend: str
    query_length: int

    def __str__(self) -> str:
        return f"writing to caches [t={self.query_length}, {self.backend}]"


def write(tensors: Any, row: jax.Array | int, new: Any, at: jax.Array, num_slots: int) -> Any:
    """A tree of stacked arrays with new tokens in one of their rows.

    Args:
      tensors: arrays [layers, b, k, s, ...].
      row: the layer that is written to.
      new: arrays [b, k, t, ...] of the same tree.
      at: int32 [b, t], the token's slot; `num_slots` for none. Slots rise by one from token to
        token, or from the last slot to the first.
      num_slots: s.
    Returns: the tree of `tensors`.
    """
    chosen = CACHE_WRITE.choose(WriteRequest(dispatch.backend(), at.shape[1]))
    if not chosen.needs_shard_map:
        return chosen.function(tensors, row, new, at, num_slots)

    def one(stacked, chunk):
        def call(stacked, row, chunk, at):
            return chosen.function(stacked, row, chunk, at, num_slots)

        _, kv_heads = head_names(stacked.shape[2])
        names = (axes.BATCH, kv_heads, None, *[None] * (stacked.ndim - 4))
        operands = (stacked, jnp.asarray(row, jnp.int32), chunk, at)
        return per_device(call, operands, ((axes.LAYERS, *names), (), names, ROWS))

    return jax.tree.map(one, tensors, new)


def _scatter(tensors, row, new, at, num_slots):
    rows = jnp.arange(len(at))[:, None]
    at, new = cpu.written_twice(at, new, num_slots)

    def one(stacked, chunk):
        # Indices around the head axis put the indexed axes first: [b, t, k, ...].
        return stacked.at[row, rows, :, at].set(chunk.swapaxes(1, 2), mode="drop")

    return jax.tree.map(one, tensors, new)


CACHE_WRITE = Operation(
    "writing to caches",
    (
        Implementation("blocks", pallas.write, pallas.check_few, needs_shard_map=True),
        Implementation("scatter", _scatter),
    ),
    is_logged=False,
)

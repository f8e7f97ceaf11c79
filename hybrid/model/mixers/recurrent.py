"""What mixers share whose layers keep a state of fixed size, whatever the length of a row.

A mixer of this kind names the arrays that one row keeps (`RecurrentSpec.shapes`), reads them with
`carried` and gives them back with `kept`. A document begins with a state of zeros, also in the
middle of a packed row, and padding changes nothing (`Tokens`).
"""

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from hybrid.model.mixers.protocol import CacheFormat, LayerState, MixerSpec, Placement


@dataclasses.dataclass(frozen=True)
class RecurrentSpec(MixerSpec):
    """A mixer with one state a row."""

    LACKS: ClassVar[Mapping[str, str]] = {
        "kv_sharing": "has no keys and values to share",
        "rewind": "keeps one state, those before it are gone",
        "export": "has no counterpart in transformers' Gemma",
    }

    @abc.abstractmethod
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays that one row keeps."""

    def init_state(self, form: CacheFormat, repetitions: int, batch: int) -> dict[str, jax.Array]:
        """Zeros, [repetitions, b, ...]."""
        return {
            name: jnp.zeros((repetitions, batch, *each.shape), each.dtype)
            for name, each in self.shapes().items()
        }

    def state_bytes(self, form: CacheFormat) -> int:
        """Bytes of the arrays, the same for every capacity."""
        sizes = ((math.prod(each.shape), each.dtype.itemsize) for each in self.shapes().values())
        return sum(size * itemsize for size, itemsize in sizes)

    def facts(self) -> Iterator[str]:
        """Sizes, work and memory."""
        yield from self.facts_of_sizes()
        yield "work O(t)"
        yield "keeps one state"

    @abc.abstractmethod
    def facts_of_sizes(self) -> Iterator[str]:
        """The lines of `facts` before what that costs."""


class Tokens(NamedTuple):
    """Where tokens stand, as a recurrence reads it.

    Attributes:
      is_first: bool [b, t], of its document: what is kept of earlier tokens ends before it.
      is_real: bool [b, t], False for padding behind the new tokens of a step.
      num_new: int32 [b], real tokens.
    """

    is_first: jax.Array
    is_real: jax.Array
    num_new: jax.Array


def tokens(placement: Placement) -> Tokens:
    """The tokens of `placement`; those of whole rows are all real."""
    batch, time = placement.positions.shape
    step = placement.step
    num_new = jnp.full((batch,), time, jnp.int32) if step is None else step.num_new
    is_real = jnp.arange(time)[None, :] < num_new[:, None]
    return Tokens(placement.positions == 0, is_real, num_new)


def carried(spec: RecurrentSpec, state: LayerState | None, batch: int) -> dict[str, jax.Array]:
    """The arrays of a layer [b, ...], zeros where there is no state."""
    if state is None:
        shapes = spec.shapes().items()
        return {name: jnp.zeros((batch, *each.shape), each.dtype) for name, each in shapes}
    return {
        name: jax.lax.dynamic_index_in_dim(array, state.row, 0, keepdims=False)
        for name, array in state.arrays.items()
    }


def kept(state: LayerState | None, new: dict[str, jax.Array]) -> dict[str, Any] | None:
    """The stacked arrays of `state` with those of the layer replaced by `new`."""
    if state is None:
        return None
    return {
        name: jax.lax.dynamic_update_index_in_dim(
            array, new[name].astype(array.dtype), state.row, 0
        )
        for name, array in state.arrays.items()
    }

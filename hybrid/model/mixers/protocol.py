"""What a token mixer says of itself: the one protocol behind plans, stacks, caches, costs, figures.

A letter of the pattern is a row of a table (`mixers/__init__.py`): a `Letter`, which makes the
`MixerSpec` of a layer. All that depends on the kind of a layer is a method of its spec:

    build                             the module and its parameters
    init_state, state_bytes           what a layer keeps of earlier tokens while decoding
    grow, earliest_rewind             how that changes with the cache
    shared_key, shared, reads_slots   arrays made once for all layers that read the same
    flops_per_token, reach            costs, and how far back a layer sees
    split_sizes                       what the tensor axis of a mesh must divide
    summary, facts, picture           for tables and figures
    LACKS, SPLITS_TIME                for refusals

Read next: `attention.py`, the mixer of L and G.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybrid.axes import Positions, Segments
from hybrid.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class CacheFormat:
    """How caches are kept.

    Attributes:
      capacity: tokens that a row has room for.
      dtype: of keys and values.
      slack: tokens that can be rewound.
      unified: form of unified keys and values, as `inference.unified_cache`.
    """

    capacity: int
    dtype: str = "float32"
    slack: int = 0
    unified: str = "value"


class LayerState(NamedTuple):
    """The stacked state of a slot of the plan, and the row that belongs to the layer at hand."""

    arrays: dict[str, Any]
    row: jax.Array | int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheStep:
    """New tokens [b, t] that go behind those in the cache, as every layer reads it.

    Attributes:
      form: how caches are kept.
      length: int32 [b], tokens valid before the step.
      written: int32 [b], tokens ever written before it.
      num_new: int32 [b], how many of the t tokens are real; the rest is padding.
      slots: `MixerSpec.shared` of the positions 0 … capacity − 1, where layers read it.
    """

    form: CacheFormat = dataclasses.field(metadata={"static": True})
    length: jax.Array
    written: jax.Array
    num_new: jax.Array
    slots: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the tokens of a batch stand: all that mixers read besides the stream.

    Attributes:
      positions: int32 [b, t], from 0 within a document.
      segment_ids: int32 [b, t], or None where every row is one document.
      shared: `MixerSpec.shared` of all layers.
      step: the cache that the tokens go behind; None: they are whole rows.
      num_parts: devices that a row's time is split over. Above 1 the stream is in the order of
        `ops/attention/context.py`, and so is `shared`; positions and segments are in the row's.
    """

    positions: Positions
    segment_ids: Segments | None
    shared: dict[str, Any]
    step: CacheStep | None = None
    num_parts: int = dataclasses.field(default=1, metadata={"static": True})


class Look(NamedTuple):
    """How figures draw a kind of layer.

    Attributes:
      colour, tint: of lines and marks, and a light one of areas.
      ramp: colours that the shades of several such cells of a sweep run through, first to last.
      line_style: as matplotlib takes it.
    """

    colour: str
    tint: str
    ramp: Sequence[str]
    line_style: Any = "-"


@dataclasses.dataclass(frozen=True)
class MixerSpec(abc.ABC):
    """All that makes the mixer of a layer; equal specs are equal code and stack into one scan.

    A mixer overrides what is abstract; the rest has the default of a mixer without it.

    Attributes:
      donor: index of the layer whose keys and values this one reads; None: it has its own.
      donates: whether later layers read this layer's keys and values.
    """

    # What the mixer does not do, and why: "kv_sharing", "rewind" or "export".
    LACKS: ClassVar[Mapping[str, str]] = {}
    # Whether it serves rows whose time is split over devices, `Placement.num_parts` above 1.
    SPLITS_TIME: ClassVar[bool] = False

    donor: int | None = dataclasses.field(default=None, kw_only=True)
    donates: bool = dataclasses.field(default=False, kw_only=True)

    @abc.abstractmethod
    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """The module: (x [b, t, d], placement, donated, state) -> (y, keys and values, state).

        `donated` is what the donor's module gave second: keys and values, or one of them. `state`
        is a `LayerState` behind a cache, else None; the state that comes back holds x's real tokens
        and no trace of padding.
        """

    @property
    def reads_first(self) -> bool:
        """Whether later layers of the letter read what the first one's module gives second."""
        return False

    # --- State -------------------------------------------------------------------------------

    @abc.abstractmethod
    def init_state(self, form: CacheFormat, repetitions: int, batch: int) -> dict[str, Any]:
        """The empty state of `repetitions` layers: arrays [repetitions, batch, ...]."""

    @abc.abstractmethod
    def state_bytes(self, form: CacheFormat) -> int:
        """Bytes of the state of one row."""

    def state_bytes_all_global(self, form: CacheFormat) -> int:
        """The same if the layer shared nothing and kept keys and values of the whole context."""
        return self.state_bytes(form)

    def grow(self, state: dict[str, Any], form: CacheFormat, larger: CacheFormat) -> dict[str, Any]:
        """The state with the capacity of `larger`."""
        return state

    def earliest_rewind(self, form: CacheFormat, written: jax.Array) -> jax.Array:
        """int32 [b]: the fewest tokens that rows can be cut back to, of `written` at most.

        Not called where LACKS has "rewind".
        """
        return jnp.zeros_like(written)

    # --- Arrays made once for all layers -----------------------------------------------------

    @property
    def shared_key(self) -> str | None:
        """Names what `shared` gives: equal for layers that read the same; None: nothing."""
        return None

    def shared(self, positions: Positions, dtype: Any) -> Any:
        """Arrays that follow from the positions alone, such as rotary angles."""
        raise TypeError(f"{type(self).__name__} has a shared_key, so it must override shared")

    def reads_slots(self, form: CacheFormat) -> bool:
        """Whether a step needs `shared` of the cache's slots besides."""
        return False

    # --- Costs -------------------------------------------------------------------------------

    @abc.abstractmethod
    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """Forward FLOPs of (weight products, mixing), averaged over positions 0 … context − 1."""

    @property
    def reach(self) -> int | None:
        """Tokens that one layer sees, the own included; None: all earlier ones."""
        return None

    @property
    def chunk_size(self) -> int | None:
        """Where a layer sees nothing outside the own chunk of so many tokens; else None."""
        return None

    def request(self, config: ModelConfig, length: int) -> Any:
        """What the layer requests of the door to attention for rows of `length`; None: nothing."""
        return None

    def split_sizes(self) -> Mapping[str, int]:
        """Sizes that `mesh.tensor` must divide, by their key under `model.`; others are copied."""
        return {}

    # --- For people --------------------------------------------------------------------------

    @abc.abstractmethod
    def summary(self) -> str:
        """A line of `hybrid.plan`."""

    def facts(self) -> Iterator[str]:
        """Short lines of the pattern's figure."""
        yield self.summary()

    def picture(self, num_tokens: int, window_size: int) -> np.ndarray:
        """bool [num_tokens, num_tokens]: which earlier tokens reach which; windows cut short."""
        return np.tri(num_tokens, dtype=bool)


@dataclasses.dataclass(frozen=True)
class Letter:
    """A letter of the pattern.

    Attributes:
      letter: the letter itself.
      kind: `local`, `global` or `state`, by which cache bytes are summed.
      title: of the mixer, for tables ("local attention").
      spec: (config, slot of the period) -> the mixer of a layer.  Raises: ConfigError.
      look: in figures.
      citation: paper, with its number.
      section: name and class of the mixer's section of keys under `model.`, or None.
    """

    letter: str
    kind: str
    title: str
    spec: Callable[[ModelConfig, int], MixerSpec]
    look: Look
    citation: str
    section: tuple[str, type] | None = None


def shared_arrays(specs: Iterable[MixerSpec], positions: Positions, dtype: Any) -> dict[str, Any]:
    """`MixerSpec.shared` of all `specs` by their keys, each made once."""
    by_key = {spec.shared_key: spec for spec in specs if spec.shared_key is not None}
    return {key: spec.shared(positions, dtype) for key, spec in by_key.items()}

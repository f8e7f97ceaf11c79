"""Who sees whom, as a value.

A `Band` says which keys a query may attend to. The oracle, every attention kernel and context
parallelism read the same value, and all of them and the caches decide by one function, `visible`,
so a window or a segment can't be dropped on the way. A key is visible when all of these hold:

    causal    the key is not later than the query
    window    the query is less than `window_size` positions ahead (the token itself counts)
    segment   both belong to the same packed document
    present   the key's position is not negative (an empty cache slot has position -1)

Two ways to say where tokens stand:

  * regular: query i is the token of key i + offset. Within a segment, positions rise by one, so
    indices alone decide, and whole tiles outside the band can be skipped. Training and evaluation
    have offset 0; a halo of earlier keys, or a chunk behind a cache, has its length as offset.
  * positions given: anything goes (a ring cache, ragged rows); nothing is skipped, unless `part`
    says that queries and keys are those of a row split over devices (`attention/context.py`).

Read next: `attention/reference.py`, which turns a band into the plain masked softmax.
"""

import dataclasses

import jax
import jax.numpy as jnp


def visible(q_position, kv_position, window_size: int | None, q_segment=None, kv_segment=None):
    """Whether a query sees a key, bool; the arrays broadcast against each other.

    Args:
      q_position, kv_position: integers; a negative `kv_position` is no key.
      window_size: keys a token sees at most, itself included; None: all earlier ones.
      q_segment, kv_segment: integers, or None where all tokens are of one document.
    """
    seen = (kv_position <= q_position) & (kv_position >= 0)
    if window_size is not None:
        seen &= q_position - kv_position < window_size
    return seen if q_segment is None else seen & same_segment(q_segment, kv_segment)


def same_segment(q_segment, kv_segment):
    """The part of `visible` that is left to decide where positions are known to be in the band."""
    return q_segment == kv_segment


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Band:
    """The visible keys of each query.

    Attributes:
      window_size: keys a token sees at most, itself included; None sees all earlier tokens.
      q_segments, kv_segments: int32 [b, t] and [b, s], or None where a row is one document.
      q_positions, kv_positions: int32 [b, t] and [b, s], or None: query i is the token of key
        i + offset.
      offset: keys before the token of the first query. Keys behind the last query's are never
        visible.
      part: int32, beside positions: the queries are those of device `part` of `num_parts`, and the
        keys are whole rows, both in the order of `attention/context.py`; None: any positions.
    Raises: ValueError where the fields contradict each other.
    """

    window_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    q_positions: jax.Array | None = None
    kv_positions: jax.Array | None = None
    offset: int = dataclasses.field(default=0, metadata={"static": True})
    part: jax.Array | None = None
    num_parts: int = dataclasses.field(default=1, metadata={"static": True})

    def __post_init__(self):
        if self.window_size is not None and self.window_size < 1:
            raise ValueError(f"window_size: must be at least 1, got {self.window_size}")
        if (self.q_segments is None) != (self.kv_segments is None):
            raise ValueError("q_segments and kv_segments: give both or neither")
        if (self.q_positions is None) != (self.kv_positions is None):
            raise ValueError("q_positions and kv_positions: give both or neither")
        if self.offset < 0:
            raise ValueError(f"offset: must be at least 0, got {self.offset}")
        if self.offset and self.q_positions is not None:
            raise ValueError("offset: positions are given, which say where tokens stand")

    @classmethod
    def of_row(cls, window_size: int | None = None, segments: jax.Array | None = None) -> "Band":
        """The band of rows that attend to themselves: `segments` is int32 [b, t] or None."""
        return cls(window_size=window_size, q_segments=segments, kv_segments=segments)

    @property
    def is_regular(self) -> bool:
        """Whether indices say where tokens stand, so that tiles can be skipped."""
        return self.q_positions is None

    def visible(self, q_start, q_size: int, kv_start, kv_size: int) -> jax.Array:
        """The mask of one tile, bool [b or 1, q_size, kv_size]; starts may be traced."""

        def queries(array):
            return jax.lax.dynamic_slice_in_dim(array, q_start, q_size, axis=1)[:, :, None]

        def keys(array):
            return jax.lax.dynamic_slice_in_dim(array, kv_start, kv_size, axis=1)[:, None, :]

        if self.is_regular:
            q = (q_start + self.offset + jnp.arange(q_size))[None, :, None]
            kv = (kv_start + jnp.arange(kv_size))[None, None, :]
        else:
            q, kv = queries(self.q_positions), keys(self.kv_positions)
        if self.q_segments is None:
            return visible(q, kv, self.window_size)
        segments = queries(self.q_segments), keys(self.kv_segments)
        return visible(q, kv, self.window_size, *segments)

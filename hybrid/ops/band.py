"""Who sees whom, as a value.

A `Band` says which keys a query may attend to. The oracle, every attention kernel, caches and
context parallelism read the same value, so a window or a segment can't be dropped on the way.
A key is visible when all of these hold:

    causal    the key is not later than the query
    window    the query is less than `window_size` positions ahead (the token itself counts)
    segment   both belong to the same packed document
    present   the key's position is not negative (an empty cache slot has position -1)

Two ways to say where tokens stand:

  * positions left out: query i and key i are the same token of one row (t == s). Within a
    segment, positions rise by one, so indices alone decide, and whole tiles outside the band
    can be skipped. Training and evaluation are this case.
  * positions given: anything goes (a ring cache, a halo, ragged rows); nothing is skipped.

Read next: `attention/reference.py`, which turns a band into the plain masked softmax.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Band:
    """The visible keys of each query.

    Attributes:
      window_size: keys a token sees at most, itself included; None sees all earlier tokens.
      q_segments, kv_segments: int32 [b, t] and [b, s], or None where a row is one document.
      q_positions, kv_positions: int32 [b, t] and [b, s], or None where query and key of one
        index are the same token.
    """

    window_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    q_positions: jax.Array | None = None
    kv_positions: jax.Array | None = None

    def __post_init__(self):
        if self.window_size is not None and self.window_size < 1:
            raise ValueError(f"window_size: must be at least 1, got {self.window_size}")
        if (self.q_segments is None) != (self.kv_segments is None):
            raise ValueError("q_segments and kv_segments: give both or neither")
        if (self.q_positions is None) != (self.kv_positions is None):
            raise ValueError("q_positions and kv_positions: give both or neither")

    @classmethod
    def of_row(cls, window_size: int | None = None, segments: jax.Array | None = None) -> "Band":
        """The band of rows that attend to themselves: `segments` is int32 [b, t] or None."""
        return cls(window_size=window_size, q_segments=segments, kv_segments=segments)

    @property
    def is_self(self) -> bool:
        """Whether query i and key i are the same token, so that tiles can be skipped."""
        return self.q_positions is None

    def visible(self, q_start, q_size: int, kv_start, kv_size: int) -> jax.Array:
        """The mask of one tile, bool [b or 1, q_size, kv_size]; starts may be traced."""

        def tile(array, start, size):
            return jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)

        if self.is_self:
            q = (q_start + jnp.arange(q_size))[None, :, None]
            kv = (kv_start + jnp.arange(kv_size))[None, None, :]
        else:
            q = tile(self.q_positions, q_start, q_size)[:, :, None]
            kv = tile(self.kv_positions, kv_start, kv_size)[:, None, :]
        seen = (kv <= q) & (kv >= 0)
        if self.window_size is not None:
            seen &= q - kv < self.window_size
        if self.q_segments is not None:
            q_segments = tile(self.q_segments, q_start, q_size)[:, :, None]
            kv_segments = tile(self.kv_segments, kv_start, kv_size)[:, None, :]
            seen &= q_segments == kv_segments
        return seen

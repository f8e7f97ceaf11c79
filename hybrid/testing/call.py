"""A call of attention as a value: three arrays, who sees whom, how scores are made."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hybrid.ops.band import visible
from hybrid.ops.dispatch import Unsupported

ARRAYS = ("q", "k", "v", "sinks", "q_segments", "kv_segments", "q_positions", "kv_positions")
# What a call may use beyond causal attention of a row to itself.
FEATURES = ("window_size", "segments", "own_segments", "offset", "positions", "softcap", "sinks")


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one call of attention is to compute; `hybrid.attend` says it in a formula.

    Attributes:
      q: [b, t, n, h].  k, v: [b, s, k, h]; query head i reads KV head i // (n / k).
      scale: multiplies the scores, before `softcap`.
      window_size: keys a token sees at most, itself included; None: all earlier ones.
      q_segments, kv_segments: int32 [b, t] and [b, s] from 1 on, or None; tokens see only their
        own segment.
      offset: keys before the token of the first query: query i is the token of key i + offset.
      q_positions, kv_positions: int32 [b, t] and [b, s] in place of the offset, or None; -1 is a
        key that is not there.
      softcap: scores become softcap·tanh(scores/softcap).
      sinks: [n], a logit of each head that joins the softmax and has no value; neither scaled nor
        capped.
    """

    q: Any
    k: Any
    v: Any
    scale: float = 1.0
    window_size: int | None = None
    q_segments: Any = None
    kv_segments: Any = None
    offset: int = 0
    q_positions: Any = None
    kv_positions: Any = None
    softcap: float | None = None
    sinks: Any = None

    @property
    def features(self) -> tuple[str, ...]:
        """Those of `FEATURES` that the call uses.

        "offset" is any call whose queries are not the tokens of all keys; "own_segments" one whose
        queries have other segments than the keys of their tokens.
        """
        has_positions = self.q_positions is not None
        is_row = self.offset == 0 and self.q.shape[1] == self.k.shape[1]
        used = {
            "window_size": self.window_size is not None,
            "segments": self.q_segments is not None,
            "own_segments": self._has_own_segments(),
            "offset": not has_positions and not is_row,
            "positions": has_positions,
            "softcap": self.softcap is not None,
            "sinks": self.sinks is not None,
        }
        return tuple(name for name in FEATURES if used[name])

    def need_only(self, *served: str) -> None:
        """Refuses a call that uses other features than these, so that none is dropped silently.

        Raises: Unsupported with the others' names; ValueError for a name not in `FEATURES`.
        """
        unknown = set(served) - set(FEATURES)
        if unknown:
            raise ValueError(f"served: {sorted(unknown)} not among {', '.join(FEATURES)}")
        others = [name for name in self.features if name not in served]
        if others:
            raise Unsupported(f"no {', '.join(others)}")

    def visible(self) -> np.ndarray:
        """Which keys each query sees, bool [b, t, s], for callables that take a mask."""
        segments: tuple[np.ndarray, ...] = ()
        if self.q_segments is not None:
            segments = (
                np.asarray(self.q_segments)[:, :, None],
                np.asarray(self.kv_segments)[:, None],
            )
        q_positions, kv_positions = self.positions()
        positions = q_positions[:, :, None], kv_positions[:, None]
        seen = visible(*positions, self.window_size, *segments)
        return np.broadcast_to(seen, (self.q.shape[0], self.q.shape[1], self.k.shape[1]))

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of queries and keys, [b or 1, t] and [b or 1, s], written out."""
        if self.q_positions is not None:
            return np.asarray(self.q_positions), np.asarray(self.kv_positions)
        queries = self.offset + np.arange(self.q.shape[1])
        return queries[None], np.arange(self.k.shape[1])[None]

    def map_arrays(self, function: Callable[[Any], Any]) -> "AttentionCall":
        """The same call with `function` of each array."""
        given = {name: getattr(self, name) for name in ARRAYS}
        changed = {name: function(array) for name, array in given.items() if array is not None}
        return dataclasses.replace(self, **changed)

    def _has_own_segments(self):
        if self.q_segments is None or self.q_positions is not None:
            return False
        queries = np.asarray(self.q_segments)
        keys = np.asarray(self.kv_segments)[:, self.offset :][:, : queries.shape[1]]
        return not np.array_equal(queries, keys)

"""The attention cases, which the contract tests run against the oracle in every dtype."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.ops.band import Band


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of attention: sizes, window, segments, softcap, scale and sinks.

    Attributes:
      time: queries.
      documents: segments that each row is cut into at random places; 0 gives no segment ids.
      offset: keys before the first query's own.
      extra_keys: keys behind the last query's own, which no query sees.
    """

    name: str
    batch: int
    time: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window_size: int | None = None
    documents: int = 0
    softcap: float | None = None
    scale: float = 1.0
    sinks: bool = False
    offset: int = 0
    extra_keys: int = 0

    @property
    def num_keys(self) -> int:
        return self.offset + self.time + self.extra_keys

    def arrays(self, dtype=jnp.float32, seed: int = 0) -> dict[str, jax.Array]:
        """q, k, v, dout (a cotangent) and sinks where the case has them, normal, in `dtype`."""
        rng = np.random.default_rng(seed)
        queries = (self.batch, self.time, self.num_heads, self.head_dim)
        keys = (self.batch, self.num_keys, self.num_kv_heads, self.head_dim)
        shapes = {"q": queries, "k": keys, "v": keys, "dout": queries}
        shapes |= {"sinks": (self.num_heads,)} if self.sinks else {}
        return {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}

    def band(self, seed: int = 0) -> Band:
        """Who sees whom in this case."""
        return Band(self.window_size, **self._segments(seed), offset=self.offset)

    def band_of_positions(self, seed: int = 0) -> Band:
        """The same band with positions written out, which hides the offset from every path."""
        keys = jnp.tile(jnp.arange(self.num_keys, dtype=jnp.int32), (self.batch, 1))
        queries = keys[:, self.offset :][:, : self.time]
        positions = {"q_positions": queries, "kv_positions": keys}
        return Band(self.window_size, **self._segments(seed), **positions)

    def _segments(self, seed):
        if not self.documents:
            return {}
        rng = np.random.default_rng(seed)
        ids = np.sort(rng.integers(0, self.documents, (self.batch, self.num_keys)), axis=1)
        ids = jnp.asarray(ids, jnp.int32)
        return {"q_segments": ids[:, self.offset :][:, : self.time], "kv_segments": ids}


SMALL = (
    Case("local", 2, 96, 4, 2, 16, window_size=8),
    Case("local, packed", 2, 96, 4, 1, 16, window_size=24, documents=4),
    Case("local, ragged blocks", 1, 333, 4, 1, 8, window_size=33, documents=3),
    Case("local, window 1", 2, 50, 2, 1, 8, window_size=1),
    Case("local, window of one row", 1, 40, 2, 2, 8, window_size=40),
    Case("local, window beyond the row", 1, 40, 2, 1, 8, window_size=100, documents=2),
    Case("local, wide window", 1, 1300, 2, 1, 8, window_size=600),
    Case("local, softcap and scale", 2, 70, 2, 2, 8, window_size=16, softcap=3.0, scale=0.5),
    Case("local, sinks", 2, 70, 4, 2, 8, window_size=16, documents=3, sinks=True),
    Case("global", 2, 96, 4, 2, 16),
    Case("global, packed", 2, 96, 4, 1, 16, documents=4),
    Case("global, ragged blocks", 1, 777, 4, 1, 8, documents=3),
    Case("global, many tiles", 1, 1300, 2, 1, 8),
    Case("global, one token", 2, 1, 2, 1, 8),
    Case("global, softcap and scale", 2, 70, 2, 1, 8, documents=2, softcap=3.0, scale=0.5),
    Case("global, sinks", 1, 333, 6, 3, 8, softcap=3.0, scale=0.5, sinks=True),
)

# Queries that stand behind keys: a halo, a chunk behind a cache.
OFFSETS = (
    Case("local, window below the offset", 2, 70, 4, 2, 8, window_size=8, offset=33),
    Case("local, window above the offset", 1, 150, 4, 1, 8, window_size=64, offset=7, documents=3),
    Case("local, halo of a window", 1, 333, 2, 1, 8, window_size=129, offset=128, documents=4),
    Case("local, window of all keys", 1, 40, 2, 1, 8, window_size=90, offset=50),
    Case("local, wide window", 1, 600, 2, 1, 8, window_size=600, offset=901),
    Case("local, one query", 2, 1, 4, 2, 8, window_size=16, offset=200, documents=5, sinks=True),
    Case("local, keys behind", 1, 45, 2, 1, 8, window_size=20, offset=31, extra_keys=29),
    Case("local, softcap, sinks", 1, 63, 4, 2, 8, window_size=9, offset=21, softcap=3.0,
         scale=0.5, sinks=True),
    Case("global, tile edges", 1, 300, 2, 1, 8, offset=255),
    Case("global, long offset", 1, 33, 2, 1, 8, offset=777, documents=3),
    Case("global, one query", 2, 1, 2, 1, 8, offset=130),
    Case("global, keys behind", 1, 45, 2, 1, 8, offset=0, extra_keys=29, documents=2),
)  # fmt: skip

"""What an implementation is asked to serve, and how it refuses.

An implementation is a module with two functions: `check(request)` raises `Unsupported` with a
reason in words where it cannot serve, and `attend(...)` computes. The door (`__init__.py`) keeps
them in a table.
"""

import dataclasses

import jax

from hybrid.ops.band import Band


class Unsupported(ValueError):
    """An implementation cannot serve this request; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything about a call that decides who may serve it. Sizes are whole, not per device.

    Attributes:
      kind: "local" where the band has a window, else "global".
      backend: "cpu", "gpu" or "tpu".
      query_length, key_length: t and s.
      is_self: query i and key i are the same token (the band gives no positions).
      num_heads, num_kv_heads, head_dim: n, k and h.
    """

    kind: str
    backend: str
    dtype: str
    head_dim: int
    query_length: int
    key_length: int
    num_heads: int = 1
    num_kv_heads: int = 1
    window_size: int | None = None
    is_self: bool = True
    has_segments: bool = False
    softcap: float | None = None
    has_sinks: bool = False

    @classmethod
    def of(
        cls,
        q: jax.Array,
        k: jax.Array,
        band: Band,
        softcap: float | None,
        sinks: jax.Array | None = None,
    ) -> "Request":
        """The request that a call of `attend` makes on the default backend."""
        return cls(
            kind="global" if band.window_size is None else "local",
            backend=jax.default_backend(),
            dtype=q.dtype.name,
            head_dim=q.shape[3],
            query_length=q.shape[1],
            key_length=k.shape[1],
            num_heads=q.shape[2],
            num_kv_heads=k.shape[2],
            window_size=band.window_size,
            is_self=band.is_self,
            has_segments=band.q_segments is not None,
            softcap=softcap,
            has_sinks=sinks is not None,
        )

"""What decides who may serve a call of attention, in sizes of one device."""

import dataclasses

import jax

from hybrid import axes, sharding
from hybrid.ops import dispatch
from hybrid.ops.band import Band

ROWS = (axes.BATCH, None)  # of segments and positions: time is not split


def head_names(num_kv_heads: int) -> tuple[str | None, str | None]:
    """Logical names of the axes of query and KV heads.

    A device needs the KV heads of its query heads. Both are split alike, or the query heads alone
    where there is one KV head; else neither.
    """
    is_split = sharding.split_axes(axes.KV_HEADS, num_kv_heads)
    return (axes.HEADS, axes.KV_HEADS) if is_split or num_kv_heads == 1 else (None, None)


def _local_heads(num_heads, num_kv_heads):
    heads, kv_heads = head_names(num_kv_heads)
    return sharding.local_size(heads, num_heads), sharding.local_size(kv_heads, num_kv_heads)


@dataclasses.dataclass(frozen=True)
class AttentionRequest:
    """A call of `attend`.

    Attributes:
      backend: "cpu", "gpu" or "tpu".  device_kind: as jax names it; "" where not known.
      query_length, key_length: t and s.
      num_heads, num_kv_heads, head_dim: n, k and h.
      is_regular, offset, num_parts: as of the band.
    """

    backend: str
    dtype: str
    head_dim: int
    query_length: int
    key_length: int
    num_heads: int = 1
    num_kv_heads: int = 1
    window_size: int | None = None
    is_regular: bool = True
    offset: int = 0
    num_parts: int = 1
    has_segments: bool = False
    softcap: float | None = None
    has_sinks: bool = False
    device_kind: str = ""

    def __str__(self) -> str:
        kind = "global" if self.window_size is None else "local"
        sizes = f"t={self.query_length}, s={self.key_length}, h={self.head_dim}"
        return f"attention of {kind} layers [{sizes}, {self.dtype}, {self.backend}]"

    @classmethod
    def of(cls, q, k, band: Band, softcap: float | None, sinks=None) -> "AttentionRequest":
        """The request of a call of `attend` with these arrays, or with arrays of these shapes."""
        num_heads, num_kv_heads = _local_heads(q.shape[2], k.shape[2])
        return cls(
            backend=dispatch.backend(),
            dtype=q.dtype.name,
            head_dim=q.shape[3],
            query_length=q.shape[1],
            key_length=k.shape[1],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            window_size=band.window_size,
            is_regular=band.is_regular,
            offset=band.offset,
            num_parts=band.num_parts,
            has_segments=band.q_segments is not None,
            softcap=softcap,
            has_sinks=sinks is not None,
            device_kind=dispatch.device_kind(),
        )


@dataclasses.dataclass(frozen=True)
class CachedAttentionRequest:
    """A call of `attend_cached`: t new queries over s slots; `head_dim` is that of the values."""

    backend: str
    dtype: str
    stored_dtype: str
    head_dim: int
    query_length: int
    num_slots: int
    num_heads: int
    num_kv_heads: int
    window_size: int | None

    def __str__(self) -> str:
        kind = "global" if self.window_size is None else "local"
        sizes = f"t={self.query_length}, s={self.num_slots}, h={self.head_dim}"
        stored = f"{self.dtype} over {self.stored_dtype}"
        return f"attention to caches of {kind} layers [{sizes}, {stored}, {self.backend}]"

    @classmethod
    def of(
        cls,
        query: jax.Array,
        values: jax.Array,
        window_size: int | None,
    ) -> "CachedAttentionRequest":
        """The request of queries [b, t, n, h] over stored values [layers, b, k, s, h]."""
        num_heads, num_kv_heads = _local_heads(query.shape[2], values.shape[2])
        return cls(
            backend=dispatch.backend(),
            dtype=query.dtype.name,
            stored_dtype=values.dtype.name,
            head_dim=values.shape[-1],
            query_length=query.shape[1],
            num_slots=values.shape[3],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            window_size=window_size,
        )

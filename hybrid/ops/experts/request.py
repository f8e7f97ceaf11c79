"""What decides who may serve a call of experts, in sizes of one device."""

import dataclasses

import jax

from hybrid import axes
from hybrid.ops import dispatch
from hybrid.sharding import local_size


@dataclasses.dataclass(frozen=True)
class ExpertsRequest:
    """A call of `experts`: e, a, d and f of one device, in `dtype` on "cpu", "gpu" or "tpu"."""

    backend: str
    dtype: str
    num_experts: int
    num_active: int
    width: int
    expert_width: int

    def __str__(self) -> str:
        sizes = f"e={self.num_experts}, a={self.num_active}, d={self.width}, f={self.expert_width}"
        return f"experts [{sizes}, {self.dtype}, {self.backend}]"

    @classmethod
    def of(cls, choice: jax.Array, gate: jax.Array, dtype: str) -> "ExpertsRequest":
        """The request that a call makes for tokens of `dtype`."""
        num_experts, width, expert_width = gate.shape
        return cls(
            backend=dispatch.backend(),
            dtype=dtype,
            num_experts=local_size(axes.EXPERTS, num_experts),
            num_active=choice.shape[2],
            width=width,
            expert_width=local_size(axes.FFN, expert_width),
        )

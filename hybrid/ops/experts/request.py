"""What decides who may serve a call of experts, in sizes of one device."""

import dataclasses

import jax

from hybrid import axes
from hybrid.ops import dispatch
from hybrid.sharding import local_size


@dataclasses.dataclass(frozen=True)
class ExpertsRequest:
    """A call of `experts`.

    Attributes:
      backend: "cpu", "gpu" or "tpu".
      num_tokens: b·t.
      num_experts, num_active, width, expert_width: e, a, d and f.
    """

    backend: str
    dtype: str
    num_tokens: int
    num_experts: int
    num_active: int
    width: int
    expert_width: int

    def __str__(self) -> str:
        # Without the tokens, whose number differs from chunk to chunk of a prompt.
        sizes = f"e={self.num_experts}, a={self.num_active}, d={self.width}, f={self.expert_width}"
        return f"experts [{sizes}, {self.dtype}, {self.backend}]"

    @classmethod
    def of(cls, choice: jax.Array, gate: jax.Array, dtype: str) -> "ExpertsRequest":
        """The request that a call makes for tokens of `dtype`."""
        (batch, length, num_active), (num_experts, width, expert_width) = choice.shape, gate.shape
        return cls(
            backend=dispatch.backend(),
            dtype=dtype,
            num_tokens=local_size(axes.BATCH, batch) * length,
            num_experts=local_size(axes.EXPERTS, num_experts),
            num_active=num_active,
            width=width,
            expert_width=local_size(axes.FFN, expert_width),
        )

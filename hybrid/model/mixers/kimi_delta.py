"""Kimi Delta Attention, letter `K`: Gated DeltaNet whose decay is a number a channel.

    g = −e^{A_log} softplus(x·Wf1·Wf2 + dt_bias)          [h] a head; A_log a number a head
    S = Diag(e^g) S + β k (v − (Diag(e^g) S)ᵀ k)ᵀ          o = Sᵀq
    y = (rms(o) · sigmoid(x·Wg1·Wg2)) Wo

with q, k, v and β as in Gated DeltaNet, keys and values equally wide, and the decay and the
output gate through a bottleneck of `rank`. A_log starts at the logarithm of uniform 1 … 16.
Source: Kimi Linear (2510.26692), sec. 3 and 4; equal to `KimiLinearDeltaAttention` of
transformers.

Read first: `gated_deltanet.py`.
"""

import dataclasses

import jax
from flax import nnx

from hybrid.config import key
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.gated_deltanet import DecayRate, GatedDeltaNet, GatedDeltaNetSpec
from hybrid.model.mixers.low_rank import LowRank
from hybrid.model.mixers.protocol import Letter, Look
from hybrid.ops import delta_rule
from hybrid.ops.norm import wide


@dataclasses.dataclass(frozen=True)
class KimiDeltaConfig:
    """Keys under `model.kda.`."""

    num_heads: int = key(0, "heads; 0: model.num_heads", at_least=0)
    head_dim: int = key(0, "width of queries, keys and values; 0: model.head_dim", at_least=0)
    conv_size: int = key(4, "tokens that the convolutions of q, k and v see", at_least=1)
    rank: int = key(0, "bottleneck of the decay and of the output gate; 0: head_dim", at_least=0)


@dataclasses.dataclass(frozen=True)
class KimiDeltaSpec(GatedDeltaNetSpec):
    """The heads of one layer, and the bottleneck of their gates."""

    rank: int

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """The module of one layer."""
        return KimiDelta(self, config, rngs=rngs)

    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """2·d·n·(4h + 1) for q, k, v, output and β; 4·r·(d + n·h) for decay and gate."""
        width, heads, size = config.d_model, self.num_heads, self.head_dim
        weights = 2 * width * heads * (4 * size + 1) + 4 * self.rank * (width + heads * size)
        return weights, heads * delta_rule.flops_per_token(context, size, size, has_channels=True)

    def split_sizes(self) -> dict[str, int]:
        """Heads."""
        return {"kda.num_heads": self.num_heads}

    def summary(self) -> str:
        """Heads and the size of the state."""
        heads = f"{self.num_heads} heads with a state of {self.head_dim} x {self.value_dim}"
        return f"delta rule with decays a channel, {heads}, convolutions over {self.conv_size}"


def _spec(config: ModelConfig, slot: int) -> KimiDeltaSpec:
    own = config.section("kda")
    head_dim, num_heads = own.head_dim or config.head_dim, own.num_heads or config.num_heads
    return KimiDeltaSpec(
        num_heads=num_heads,
        num_key_heads=num_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        conv_size=own.conv_size,
        negative_eigenvalues=False,
        dtype=config.dtype,
        rank=own.rank or head_dim,
    )


LETTER = Letter(
    letter="K",
    kind="state",
    title="Kimi Delta Attention",
    spec=_spec,
    look=Look("#5b6b7b", "#edf0f3", ("#9aa8b5", "#2a343d"), line_style=(0, (6, 1, 1, 1, 1, 1))),
    citation="Kimi Linear (2510.26692)",
    section=("kda", KimiDeltaConfig),
)


class KimiDelta(GatedDeltaNet):
    """The delta rule with decays a channel."""

    spec: KimiDeltaSpec

    def _build_gates(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        heads, size = self.spec.num_heads, self.spec.head_dim
        self.decay = LowRank(self.spec.rank, (heads, size), config, rngs=rngs)
        self.decay_rate = DecayRate(heads, size, 1.0, config, rngs)
        self.gate = LowRank(self.spec.rank, (heads, size), config, rngs=rngs)

    def _log_decay(self, x):
        return self.decay_rate(self.decay(x))

    def _gate(self, x):
        return jax.nn.sigmoid(wide(self.gate(x)))

"""Gated DeltaNet, letter `D`: a state that forgets, and that replaces what it holds at a key.

    q, k, v = silu(conv(x·Wq)), silu(conv(x·Wk)), silu(conv(x·Wv))
    q = q / (|q| √h)      k = k / |k|
    β = sigmoid(x·Wb)     g = −e^{A_log} softplus(x·Wa + dt_bias)       a number a head
    S = e^g S + β k (v − e^g Sᵀk)ᵀ            o = Sᵀq
    y = (rms(o) · silu(x·Wz)) Wo

The convolutions are causal, over `conv_size` tokens of one channel. With `negative_eigenvalues`
β is 2·sigmoid(x·Wb), so that a state can be turned over at a key (2411.12537). All else is a head
of values; with fewer `num_key_heads`, r = num_heads / num_key_heads heads of values in a row, i·r
… i·r + r − 1, read and write at the queries and keys of head i. Qwen3-Next has r = 2.

A_log starts at the logarithm of uniform 0 … 16, dt_bias at the inverse softplus of log-uniform
0.001 … 0.1, as in flash-linear-attention and OLMo Hybrid.
Source: Gated DeltaNet (2412.06464), sec. 3; equal to `Qwen3NextGatedDeltaNet` and
`OlmoHybridGatedDeltaNet` of transformers.

Read next: `hybrid/ops/delta_rule.py`, the recurrence; `kimi_delta.py`, with a decay a channel.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.config import key
from hybrid.model.config import ModelConfig, check_divides
from hybrid.model.layers import Linear, RMSNorm, param_dtype
from hybrid.model.mixers import recurrent
from hybrid.model.mixers.convolution import ShortConvolution
from hybrid.model.mixers.protocol import LayerState, Letter, Look, Placement
from hybrid.model.mixers.recurrent import RecurrentSpec, Tokens
from hybrid.ops import delta_rule
from hybrid.ops.norm import unit, wide

_STEPS = (0.001, 0.1)  # what softplus(dt_bias) starts in
_INTO_HEADS = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig:
    """Keys under `model.delta.`."""

    num_heads: int = key(0, "heads of values, each with a state; 0: model.num_heads", at_least=0)
    num_key_heads: int = key(
        0, "heads of queries and keys, each for as many heads of values; 0: num_heads", at_least=0
    )
    head_dim: int = key(0, "width of queries and keys; 0: model.head_dim", at_least=0)
    value_dim: int = key(0, "width of values; 0: as keys", at_least=0)
    conv_size: int = key(4, "tokens that the convolutions of q, k and v see", at_least=1)
    negative_eigenvalues: bool = key(False, "beta in 0 … 2 in place of 0 … 1")


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetSpec(RecurrentSpec):
    """The heads of one layer."""

    num_heads: int
    num_key_heads: int
    head_dim: int
    value_dim: int
    conv_size: int
    negative_eigenvalues: bool
    dtype: str

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """The module of one layer."""
        return GatedDeltaNet(self, config, rngs=rngs)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Heads of q, k and v, and the width of one."""
        of_keys = self.num_key_heads, self.head_dim
        return {"q": of_keys, "k": of_keys, "v": (self.num_heads, self.value_dim)}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The state in at least float32, and the last inputs of each convolution."""
        matrix = (self.num_heads, self.head_dim, self.value_dim)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        inputs = {
            name: jax.ShapeDtypeStruct((self.conv_size - 1, heads * size), self.dtype)
            for name, (heads, size) in self.sizes.items()
        }
        return {"state": jax.ShapeDtypeStruct(matrix, wide)} | inputs

    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """2·d·(2·k·h + n·(3v + 2)): q and k of k heads; of n, v, gate and output, β and g; and
        the delta rule's of n heads."""
        widths = 2 * self.num_key_heads * self.head_dim + self.num_heads * (3 * self.value_dim + 2)
        mixing = delta_rule.flops_per_token(context, self.head_dim, self.value_dim)
        return 2 * config.d_model * widths, self.num_heads * mixing

    def split_sizes(self) -> dict[str, int]:
        """Heads."""
        return {f"delta.{name}": getattr(self, name) for name in ("num_heads", "num_key_heads")}

    def summary(self) -> str:
        """Heads and the size of the state."""
        heads = f"{self.num_heads} heads with a state of {self.head_dim} x {self.value_dim}"
        if self.num_key_heads != self.num_heads:
            heads += f" over {self.num_key_heads} of keys"
        return f"gated delta rule, {heads}, convolutions over {self.conv_size}"

    def facts_of_sizes(self) -> Iterator[str]:
        """Heads and the size of their state."""
        yield f"{self.num_heads} heads of {self.head_dim} x {self.value_dim}"


def _spec(config: ModelConfig, slot: int) -> GatedDeltaNetSpec:
    own = config.section("delta")
    head_dim, num_heads = own.head_dim or config.head_dim, own.num_heads or config.num_heads
    num_key_heads = own.num_key_heads or num_heads
    of_values = "model.delta.num_heads" if own.num_heads else "model.num_heads"
    check_divides("delta.num_key_heads", num_key_heads, of_values, num_heads)
    return GatedDeltaNetSpec(
        num_heads=num_heads,
        num_key_heads=num_key_heads,
        head_dim=head_dim,
        value_dim=own.value_dim or head_dim,
        conv_size=own.conv_size,
        negative_eigenvalues=own.negative_eigenvalues,
        dtype=config.dtype,
    )


LETTER = Letter(
    letter="D",
    kind="state",
    title="Gated DeltaNet",
    spec=_spec,
    look=Look("#2e8b57", "#e8f5ee", ("#74c69d", "#14502f"), line_style=(0, (6, 1, 1, 1))),
    citation="Gated DeltaNet (2412.06464)",
    section=("delta", DeltaNetConfig),
)


# --- The module ------------------------------------------------------------------------------


class GatedDeltaNet(nnx.Module):
    """The gated delta rule of one layer."""

    def __init__(self, spec: GatedDeltaNetSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.spec = spec
        width, heads, value_dim = config.d_model, spec.num_heads, spec.value_dim
        linear = functools.partial(Linear, config=config, rngs=rngs)
        for name, sizes in spec.sizes.items():
            channels = math.prod(sizes)
            convolution = ShortConvolution(
                spec.conv_size, channels, axes.HEADS, has_bias=False, config=config, rngs=rngs
            )
            setattr(self, f"{name}_proj", linear((width, *sizes), _INTO_HEADS))
            setattr(self, f"{name}_conv", convolution)
        self.beta_proj = linear((width, heads), _INTO_HEADS[:2])
        self.o_norm = RMSNorm(value_dim, axes.HEAD_DIM, config=config)
        o_names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        self.o_proj = linear((heads, value_dim, width), o_names, num_axes=2)
        self._build_gates(config, rngs)

    def _build_gates(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        width, heads = config.d_model, self.spec.num_heads
        linear = functools.partial(Linear, config=config, rngs=rngs)
        self.decay_proj = linear((width, heads), _INTO_HEADS[:2])
        self.decay_rate = DecayRate(heads, 1, 0.01, config, rngs)
        self.gate_proj = linear((width, heads, self.spec.value_dim), _INTO_HEADS)

    def _log_decay(self, x):
        """g [b, t, n, 1], or [b, t, n, h] of a mixer with decays a channel."""
        return self.decay_rate(self.decay_proj(x)[..., None])

    def _gate(self, x):
        """What the normed values are multiplied by, [b, t, n, v], in at least float32."""
        return jax.nn.silu(wide(self.gate_proj(x)))

    def __call__(
        self,
        x: Hidden,
        placement: Placement,
        donated: None = None,
        state: LayerState | None = None,
    ) -> tuple[Hidden, None, dict[str, jax.Array] | None]:
        """The layer's result, nothing to donate, and its state with x's real tokens in it."""
        tokens = recurrent.tokens(placement)
        before = recurrent.carried(self.spec, state, len(x))
        heads = {
            name: self._convolved(name, x, placement, tokens, before[name])
            for name in self.spec.sizes
        }
        (q, _), (k, _), (v, _) = heads.values()
        is_real = tokens.is_real[..., None, None]
        values, after = delta_rule.delta_rule(
            self._for_values(unit(wide(q)) * self.spec.head_dim**-0.5),
            self._for_values(jnp.where(is_real, unit(wide(k)), 0)),
            wide(v),
            jnp.where(is_real, self._log_decay(x), 0),
            self._beta(x),
            before["state"],
            tokens.is_first & tokens.is_real,
        )
        y = self.o_proj((self.o_norm(values) * self._gate(x)).astype(x.dtype))
        inputs = {name: last for name, (_, last) in heads.items()}
        return y, None, recurrent.kept(state, inputs | {"state": after})

    def _convolved(self, name: str, x, placement: Placement, tokens: Tokens, before):
        """silu(conv(x·W)) [b, t, n, ...], and the convolution's last inputs."""
        heads = checkpoint_name(getattr(self, f"{name}_proj")(x), "qkv")
        inputs = heads.reshape(*x.shape[:2], -1)
        convolution = getattr(self, f"{name}_conv")
        mixed, last = convolution(inputs, placement.positions, tokens, before)
        return jax.nn.silu(mixed).reshape(heads.shape), last

    def _for_values(self, x):
        """What heads of values read, [b, t, n, h], of queries or keys [b, t, k, h]."""
        return jnp.repeat(x, self.spec.num_heads // self.spec.num_key_heads, axis=2)

    def _beta(self, x):
        most = 2 if self.spec.negative_eigenvalues else 1
        return most * jax.nn.sigmoid(wide(self.beta_proj(x)))


class DecayRate(nnx.Module):
    """g = −e^{A_log} softplus(steps + dt_bias), for steps [b, t, n, m] of n heads.

    A_log starts at the logarithm of uniform `lowest` … 16.
    """

    def __init__(self, heads: int, per_head: int, lowest: float, config: ModelConfig, rngs):
        dtype = param_dtype(config)
        rate = jax.random.uniform(rngs.params(), (heads,), dtype, lowest, 16)
        low, high = map(math.log, _STEPS)
        step = jnp.exp(jax.random.uniform(rngs.params(), (heads * per_head,), dtype, low, high))
        # One axis each: tensors of two are cast to the stream's dtype, and decay as weights do.
        self.A_log = nnx.Param(jnp.log(rate), axes=(axes.HEADS,))
        self.dt_bias = nnx.Param(step + jnp.log(-jnp.expm1(-step)), axes=(axes.HEADS,))

    def __call__(self, steps: jax.Array) -> jax.Array:
        bias = self.dt_bias[...].reshape(1, 1, *steps.shape[2:])
        rate = jnp.exp(self.A_log[...])[None, None, :, None]
        return -rate * jax.nn.softplus(steps.astype(bias.dtype) + bias)

"""Griffin's recurrent block (`R`) around its gated linear recurrence, the RG-LRU.

    (1)  x = conv(u·Wx)                        gate = gelu(u·Wg)
    (2)  r = sigmoid(x·Wr + b_r)               i = sigmoid(x·Wi + b_i)
    (3)  a = exp(−8·softplus(Λ)·r)
    (4)  h_t = a_t·h_{t−1} + sqrt(1 − a_t²)·(i_t·x_t)
    (5)  out = (h·gate)·Wo

u is the layer's input; the convolution sees 4 tokens; Wr and Wi are block-diagonal, so that a
device which holds some blocks needs no other's channels. A document's first token has a = 0 and
the factor 1: h = i·x. (3) and (4) are computed in at least float32.
The square root's slope is cut at 1000, which gates of a near 1 would pass without bound.
Source: Griffin (2402.19427), sec. 2.3 and 2.4, eqs. 1 to 4, and app. A for the start of Λ.

Read next: `hybrid/ops/linear_recurrence.py`, which computes (4).
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.config import ConfigError, key
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear, param_dtype
from hybrid.model.mixers import recurrent
from hybrid.model.mixers.convolution import ShortConvolution
from hybrid.model.mixers.protocol import LayerState, Letter, Look, Placement
from hybrid.model.mixers.recurrent import RecurrentSpec
from hybrid.ops.linear_recurrence import linear_recurrence

SHARPNESS = 8.0  # the 8 of (3), c in the paper
START = (0.9, 0.999)  # a starts between these where r = 1
STEEPEST_ROOT = 1000.0


@dataclasses.dataclass(frozen=True)
class RGLRUConfig:
    """Keys under `model.rg_lru.`."""

    width: int = key(0, "channels of the recurrence; 0: model.d_model", at_least=0)
    num_blocks: int = key(0, "blocks of the gates' kernels; 0: model.num_heads", at_least=0)
    conv_size: int = key(
        4, "tokens that the convolution sees, the token itself counted", at_least=1
    )


@dataclasses.dataclass(frozen=True)
class RGLRUSpec(RecurrentSpec):
    """The recurrent block of one layer: channels, blocks of the gates, dtype of the stream."""

    width: int
    num_blocks: int
    conv_size: int
    dtype: str

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> "RGLRU":
        """The module of one layer."""
        return RGLRU(self, config, rngs=rngs)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """h, and the last inputs of the convolution."""
        wide, narrow = jnp.promote_types(self.dtype, jnp.float32), jnp.dtype(self.dtype)
        return {
            "state": jax.ShapeDtypeStruct((self.width,), wide),
            "inputs": jax.ShapeDtypeStruct((self.conv_size - 1, self.width), narrow),
        }

    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """Three projections and two gates; the recurrence has no matrix product."""
        inputs = 3 * config.d_model + 2 * self.width // self.num_blocks
        return 2 * self.width * inputs, 0

    def split_sizes(self) -> dict[str, int]:
        """Blocks of the gates' kernels."""
        return {"rg_lru.num_blocks": self.num_blocks}

    def summary(self) -> str:
        """Channels, blocks of the gates, the convolution."""
        gates = f"gates in {self.num_blocks} block{'' if self.num_blocks == 1 else 's'}"
        return f"gated linear recurrence of {self.width}, {gates}, convolution {self.conv_size}"

    def facts_of_sizes(self) -> Iterator[str]:
        """What is seen, and channels."""
        yield "sees all earlier tokens"
        yield f"state of {self.width}"


def _spec(config: ModelConfig, slot: int) -> RGLRUSpec:
    keys = config.section("rg_lru")
    width, num_blocks = keys.width or config.d_model, keys.num_blocks or config.num_heads
    if width % num_blocks:
        name = "num_blocks" if keys.num_blocks else "width"
        problem = f"{width} channels are not divisible into {num_blocks} blocks"
        raise ConfigError(f"rg_lru.{name}", problem, getattr(keys, name))
    return RGLRUSpec(width, num_blocks, keys.conv_size, config.dtype)


LETTER = Letter(
    letter="R",
    kind="state",
    title="RG-LRU",
    spec=_spec,
    look=Look("#8a6d1f", "#f6f1e2", ("#c9ad5f", "#453505"), line_style=(0, (5, 1, 1, 1))),
    citation="Griffin (2402.19427)",
    section=("rg_lru", RGLRUConfig),
)


# --- The module ------------------------------------------------------------------------------


class RGLRU(nnx.Module):
    """The recurrent block of one layer; parameters as its spec says."""

    def __init__(self, spec: RGLRUSpec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.spec = spec
        linear = functools.partial(Linear, config=config, rngs=rngs)
        gate = functools.partial(BlockLinear, spec.num_blocks, spec.width, config=config, rngs=rngs)
        into, out = (config.d_model, spec.width), (spec.width, config.d_model)
        self.x_proj = linear(into, (axes.EMBED, axes.HEADS))
        self.gate_proj = linear(into, (axes.EMBED, axes.HEADS))
        self.conv = ShortConvolution(
            spec.conv_size, spec.width, axes.HEADS, config=config, rngs=rngs
        )
        self.recurrence_gate, self.input_gate = gate(), gate()
        start = jax.random.uniform(rngs.params(), (spec.width,), param_dtype(config), *START)
        # exp(−8·softplus(Λ)) = start
        values = jnp.log(jnp.expm1(-jnp.log(start) / SHARPNESS))
        self.decay = nnx.Param(values, axes=(axes.HEADS,))
        self.out_proj = linear(out, (axes.HEADS, axes.EMBED))

    def __call__(
        self,
        x: Hidden,
        placement: Placement,
        donated: None = None,
        state: LayerState | None = None,
    ) -> tuple[Hidden, None, dict[str, jax.Array] | None]:
        """The layer's result, no keys and values, and its state with x's tokens in it."""
        before = recurrent.carried(self.spec, state, len(x))
        tokens = recurrent.tokens(placement)
        values, inputs = self.conv(
            self.x_proj(x), placement.positions, tokens, before["inputs"]
        )  # (1)
        h = self._recur(values, tokens, before["state"])
        gate = jax.nn.gelu(self.gate_proj(x), approximate=True)
        new = {"state": h[:, -1], "inputs": inputs}
        return self.out_proj(h.astype(x.dtype) * gate), None, recurrent.kept(state, new)  # (5)

    def _recur(self, x, tokens, state):
        """h [b, t, width] of (4), padding leaving it as it is."""
        wide = self.decay[...].dtype
        r, i = (jax.nn.sigmoid(gate(x).astype(wide)) for gate in self._gates())  # (2)
        log_a = -SHARPNESS * jax.nn.softplus(self.decay[...])[None, None] * r  # (3)
        is_first, is_real = tokens.is_first[..., None], tokens.is_real[..., None]
        factor = jnp.where(is_first, 1, bounded_sqrt(-jnp.expm1(2 * log_a)))
        fresh = jnp.where(is_real, factor * i * x, 0)
        a = jnp.where(is_real, jnp.where(is_first, 0, jnp.exp(log_a)), 1)
        return linear_recurrence(a, fresh, state)  # (4)

    def _gates(self):
        return self.recurrence_gate, self.input_gate


class BlockLinear(nnx.Module):
    """x·kernel + bias, [b, t, width] to the same, each block of channels by itself."""

    def __init__(self, num_blocks: int, width: int, *, config: ModelConfig, rngs: nnx.Rngs):
        size, dtype = width // num_blocks, param_dtype(config)
        values = size**-0.5 * jax.random.normal(rngs.params(), (num_blocks, size, size), dtype)
        self.kernel = nnx.Param(values, axes=(axes.BLOCKS, axes.HEAD_DIM, None))
        self.bias = nnx.Param(jnp.zeros((width,), dtype), axes=(axes.HEADS,))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        blocks = x.reshape(*x.shape[:2], len(kernel), -1)
        return jnp.einsum("btni,nio->btno", blocks, kernel).reshape(x.shape) + bias[None, None]


@jax.custom_jvp
def bounded_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x) with a slope of at most STEEPEST_ROOT."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_slope(primals, tangents):
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx / jnp.sqrt(jnp.maximum(4 * x, STEEPEST_ROOT**-2))

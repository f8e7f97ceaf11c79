"""Mamba-2 (`M`): a state space whose decay, input and output follow from the token.

With heads n of width h, a state of m numbers a channel, and B, C that a group of heads shares:

    (1)  x, B, C = silu(conv(u·Wx)), silu(conv(u·WBC))     z = u·Wz
    (2)  Δ = softplus(u·WΔ + dt_bias)                      g = −exp(a_log)·Δ
    (3)  H_t = e^{g_t}·H_{t−1} + Δ_t·x_t·B_tᵀ              y_t = H_t·C_t + skip·x_t
    (4)  out = rms(y·silu(z))·Wo

u is the layer's input; the convolutions see 4 tokens; the norm is over the channels of a group.
Equations (2), (3) and the norm are computed in at least float32. Channels are split by heads over
devices; B and C, which all heads of a group read, are copied.
Source: Mamba-2 (2405.21060), sec. 7.1 and fig. 6 right.

Read next: `hybrid/ops/state_space.py`, which computes (3).
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
from hybrid.model.layers import Linear, RMSNorm, param_dtype
from hybrid.model.mixers import recurrent
from hybrid.model.mixers.convolution import ShortConvolution
from hybrid.model.mixers.protocol import LayerState, Letter, Look, Placement
from hybrid.model.mixers.recurrent import RecurrentSpec
from hybrid.ops import state_space
from hybrid.ops.norm import rms_norm

FASTEST_DECAY = 16.0  # −A starts between 1 and this


@dataclasses.dataclass(frozen=True)
class Mamba2Config:
    """Keys under `model.mamba2.`."""

    expand: int = key(2, "channels of the state space, in widths of the stream", at_least=1)
    head_dim: int = key(64, "channels of a head", at_least=1)
    state_dim: int = key(128, "numbers that the state keeps of a channel", at_least=1)
    num_groups: int = key(1, "groups of heads, each with its own B and C and norm", at_least=1)
    conv_size: int = key(
        4, "tokens that the convolutions see, the token itself counted", at_least=1
    )
    dt_min: float = key(1e-3, "the step size starts between this", more_than=0)
    dt_max: float = key(0.1, "and this, a head at a time", more_than=0)

    def __post_init__(self):
        if self.dt_min > self.dt_max:
            raise ConfigError("dt_min", f"must be at most dt_max ({self.dt_max})", self.dt_min)


@dataclasses.dataclass(frozen=True)
class Mamba2Spec(RecurrentSpec):
    """The state space of one layer: heads, their state, and the dtypes of what a row keeps."""

    num_heads: int
    head_dim: int
    state_dim: int
    num_groups: int
    conv_size: int
    dt_range: tuple[float, float]
    dtype: str

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.num_heads * self.head_dim

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> "Mamba2":
        """The module of one layer."""
        return Mamba2(self, config, rngs=rngs)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The state of (3), and the last inputs of the convolutions."""
        wide, past = jnp.promote_types(self.dtype, jnp.float32), self.conv_size - 1
        state = (self.num_heads, self.head_dim, self.state_dim)
        shared = 2 * self.num_groups * self.state_dim
        return {
            "state": jax.ShapeDtypeStruct(state, wide),
            "x_inputs": jax.ShapeDtypeStruct((past, self.width), jnp.dtype(self.dtype)),
            "bc_inputs": jax.ShapeDtypeStruct((past, shared), jnp.dtype(self.dtype)),
        }

    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """Projections; and C·B and the pairs' sums in chunks of c, the state read and written."""
        groups = self.num_groups * self.state_dim
        into = 2 * self.width + 2 * groups + self.num_heads
        projections = 2 * config.d_model * (into + self.width)
        size = state_space.chunk_size_of(context)
        mixing = 2 * size * (groups + self.width) + 4 * self.width * self.state_dim
        return projections, mixing * (-(-context // size) * size / context)

    def summary(self) -> str:
        """Heads, their state, the convolutions."""
        groups = "" if self.num_groups == 1 else f" in {self.num_groups} groups"
        heads = f"{self.num_heads} heads{groups}, head_dim {self.head_dim}"
        return f"state space, {heads}, state of {self.state_dim}, convolution {self.conv_size}"

    def facts_of_sizes(self) -> Iterator[str]:
        """What is seen, heads and state."""
        yield "sees all earlier tokens"
        yield f"{self.num_heads} heads of {self.head_dim}"
        yield f"state of {self.state_dim}"


def _spec(config: ModelConfig, slot: int) -> Mamba2Spec:
    keys = config.section("mamba2")
    width = keys.expand * config.d_model
    num_heads = width // keys.head_dim
    if width % keys.head_dim:
        problem = f"must divide the {width} channels (expand × model.d_model)"
        raise ConfigError("mamba2.head_dim", problem, keys.head_dim)
    if num_heads % keys.num_groups:
        raise ConfigError("mamba2.num_groups", f"must divide {num_heads} heads", keys.num_groups)
    return Mamba2Spec(
        num_heads=num_heads,
        head_dim=keys.head_dim,
        state_dim=keys.state_dim,
        num_groups=keys.num_groups,
        conv_size=keys.conv_size,
        dt_range=(keys.dt_min, keys.dt_max),
        dtype=config.dtype,
    )


LETTER = Letter(
    letter="M",
    kind="state",
    title="Mamba-2",
    spec=_spec,
    look=Look("#b03a5b", "#faeaef", ("#dd8aa2", "#5e1229"), line_style=(0, (1, 1))),
    citation="Mamba-2 (2405.21060)",
    section=("mamba2", Mamba2Config),
)


# --- The module ------------------------------------------------------------------------------


class Mamba2(nnx.Module):
    """The state space of one layer; parameters as its spec says."""

    def __init__(self, spec: Mamba2Spec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.spec, self.config = spec, config
        width, heads, head_dim = config.d_model, spec.num_heads, spec.head_dim
        linear = functools.partial(Linear, config=config, rngs=rngs)
        convolution = functools.partial(ShortConvolution, spec.conv_size, config=config, rngs=rngs)
        names = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
        self.x_proj = linear((width, heads, head_dim), names)
        self.gate_proj = linear((width, heads, head_dim), names)
        shared = (2, spec.num_groups, spec.state_dim)
        self.bc_proj = linear((width, *shared), (axes.EMBED, None, None, None))
        self.dt_proj = linear((width, heads), (axes.EMBED, axes.HEADS))
        self.x_conv = convolution(spec.width, axes.HEADS)
        self.bc_conv = convolution(2 * spec.num_groups * spec.state_dim, None)
        self.norm = RMSNorm(spec.width, axes.HEADS, config=config)
        o_names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
        self.out_proj = linear((heads, head_dim, width), o_names, num_axes=2)
        dtype = param_dtype(config)
        self.a_log = _per_head(jnp.log(_uniform(rngs, heads, (1.0, FASTEST_DECAY), dtype)))
        low, high = jnp.log(jnp.array(spec.dt_range, dtype))
        dt = jnp.exp(_uniform(rngs, heads, (low, high), dtype))
        self.dt_bias = _per_head(dt + jnp.log(-jnp.expm1(-dt)))  # softplus(dt_bias) = dt
        self.skip = _per_head(jnp.ones((heads,), dtype))

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
        where = placement.positions, tokens
        values, x_inputs = self.x_conv(_flat(self.x_proj(x)), *where, before["x_inputs"])  # (1)
        shared, bc_inputs = self.bc_conv(_flat(self.bc_proj(x)), *where, before["bc_inputs"])
        values = jax.nn.silu(values).reshape(*x.shape[:2], self.spec.num_heads, -1)
        y, last = self._recur(
            values, jax.nn.silu(shared), self._step_size(x, tokens), tokens, before
        )
        y = y * jax.nn.silu(self.gate_proj(x).astype(y.dtype))  # (4)
        y = self._normed(_flat(y)).reshape(y.shape).astype(x.dtype)
        new = {"state": last, "x_inputs": x_inputs, "bc_inputs": bc_inputs}
        return self.out_proj(y), None, recurrent.kept(state, new)

    def _step_size(self, x, tokens):
        """Δ [b, t, n] in at least float32; 0 at padding, so that it leaves the state alone."""
        bias = self.dt_bias[...][None, None]
        dt = jax.nn.softplus(self.dt_proj(x).astype(bias.dtype) + bias)  # (2)
        return jnp.where(tokens.is_real[..., None], dt, 0)

    def _recur(self, values, shared, dt, tokens, before):
        """(3): y [b, t, n, h] and the state behind the last token."""
        write, read = jnp.moveaxis(
            shared.reshape(*shared.shape[:2], 2, self.spec.num_groups, -1), 2, 0
        )
        inputs = state_space.Inputs(
            x=(values * dt[..., None]).astype(values.dtype),
            log_decay=-jnp.exp(self.a_log[...])[None, None] * dt,
            write=write,
            read=read,
            is_first=tokens.is_first,
        )
        y, state = state_space.state_space(inputs, before["state"])
        return y + self.skip[...][None, None, :, None] * values, state

    def _normed(self, y):
        """y [b, t, channels] normed within each group of heads."""
        grouped = y.reshape(*y.shape[:2], self.spec.num_groups, -1)
        unit = rms_norm(grouped, None, eps=self.config.norm_eps).reshape(y.shape)
        return unit * (self.norm.offset + self.norm.scale[...])[None, None]


def _per_head(values):
    return nnx.Param(values, axes=(axes.HEADS,))


def _uniform(rngs, size, limits, dtype):
    low, high = limits
    return jax.random.uniform(rngs.params(), (size,), dtype, low, high)


def _flat(x):
    """[b, t, ...] as [b, t, channels]."""
    return x.reshape(*x.shape[:2], -1)

"""RWKV-7's time mixing, letter `W`: a state whose transition each token chooses, erasing at one key
and writing at another.

    x^z = x + (x_before − x) ⊙ μ_z                      for z of r, w, k, v, a, g
    r = x^r·Wr     k = x^k·Wk     v = x^v·Wv
    v = v + (v' − v) ⊙ sigmoid(v0 + x^v·V1·V2)           with `value_residual`, beyond the first
    g_t = −e^{−½} sigmoid(w0 + tanh(x^w·W1)·W2)          logarithm of decay, a number a channel
    a = sigmoid(a0 + x^a·A1·A2)                          how much is erased
    κ = (k ⊙ ξ) / |k ⊙ ξ|  a head                        where it is erased
    k̃ = k ⊙ (1 + (a − 1) ⊙ α)
    S = (Diag(e^{g_t}) − (a ⊙ κ) κᵀ) S + k̃ vᵀ           o = Sᵀr
    y = ((norm(o) + (r ⊙ k̃ · ρ) v) ⊙ sigmoid(x^g·G1)·G2) Wo

x_before is the token before x in its document, 0 before the first; norm is a layer norm a head,
with weight and bias; v' is the v of the model's first `W` layer, which donates it to all later
ones, as attention does keys and values. The S here is the transpose of the paper's. Reference
weights start by depth; here all layers start as those in the middle do.
Source: RWKV-7 (2503.14456), sec. 4.1; equal to `RWKV_x070_TMix_seq` of the package rwkv.

Read next: `hybrid/ops/delta_rule.py`, the recurrence.
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
from hybrid.axes import Hidden, Value
from hybrid.config import key
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Linear, param_dtype
from hybrid.model.mixers import recurrent
from hybrid.model.mixers.low_rank import LowRank
from hybrid.model.mixers.protocol import LayerState, Letter, Look, Placement
from hybrid.model.mixers.recurrent import RecurrentSpec
from hybrid.ops import delta_rule
from hybrid.ops.norm import rms_norm, unit
from hybrid.ops.short_convolution import last_inputs, short_convolution

FASTEST = math.exp(-0.5)  # −g at most
NORM_EPS = 64e-5  # of the norm over a head's values
_UNIT_EPS = 1e-12  # of the square of a length
# Exponents of the mixing vectors, 1 − (i / d)^p of channel i, in the middle of the stack.
_SHIFTS = {"r": 0.1, "w": 0.45, "k": 0.35, "v": 0.35, "a": 0.45, "g": 0.1}


@dataclasses.dataclass(frozen=True)
class Rwkv7Config:
    """Keys under `model.rwkv7.`."""

    num_heads: int = key(0, "heads; 0: model.num_heads", at_least=0)
    head_dim: int = key(0, "width of keys and values; 0: model.head_dim", at_least=0)
    decay_rank: int = key(0, "bottleneck of the decay; 0: about 1.8 d_model^0.5", at_least=0)
    erase_rank: int = key(0, "bottleneck of what is erased; 0: as decay_rank", at_least=0)
    gate_rank: int = key(0, "bottleneck of the output gate; 0: about 0.6 d_model^0.8", at_least=0)
    value_residual: bool = key(False, "layers mix their values with those of the first of them")
    value_rank: int = key(0, "bottleneck of that mix's share; 0: about 1.3 d_model^0.5", at_least=0)


@dataclasses.dataclass(frozen=True)
class Rwkv7Spec(RecurrentSpec):
    """Heads and bottlenecks of one layer."""

    num_heads: int
    head_dim: int
    decay_rank: int
    erase_rank: int
    gate_rank: int
    value_residual: bool
    value_rank: int
    width: int
    dtype: str

    @property
    def reads_first(self) -> bool:
        """With the value residual: these are values."""
        return self.value_residual

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """The module of one layer."""
        return Rwkv7(self, config, rngs=rngs)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The state in at least float32, and the last token of the stream."""
        matrix = (self.num_heads, self.head_dim, self.head_dim)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        last = jax.ShapeDtypeStruct((1, self.width), self.dtype)
        return {"state": jax.ShapeDtypeStruct(matrix, wide), "last": last}

    def flops_per_token(self, config: ModelConfig, context: int) -> tuple[float, float]:
        """2·d·n·4h for r, k, v and the output, 2·r·(d + n·h) for each bottleneck r."""
        heads, size = self.num_heads, self.head_dim
        ranks = self.decay_rank + self.erase_rank + self.gate_rank
        ranks += 0 if self.donor is None else self.value_rank
        weights = 8 * self.width * heads * size + 2 * ranks * (self.width + heads * size)
        mixing = delta_rule.flops_per_token(context, size, size, is_general=True)
        return weights, heads * mixing

    def split_sizes(self) -> dict[str, int]:
        """Heads."""
        return {"rwkv7.num_heads": self.num_heads}

    def summary(self) -> str:
        """Heads, the size of the state, bottlenecks."""
        heads = f"{self.num_heads} heads with a state of {self.head_dim} x {self.head_dim}"
        ranks = f"{self.decay_rank}, {self.erase_rank} and {self.gate_rank}"
        source = "" if self.donor is None else f", values mixed with those of layer {self.donor}"
        return f"RWKV-7, {heads}, bottlenecks of {ranks}{source}"

    def facts_of_sizes(self) -> Iterator[str]:
        """Heads and the size of their state."""
        yield f"{self.num_heads} heads of {self.head_dim} x {self.head_dim}"


def _spec(config: ModelConfig, slot: int) -> Rwkv7Spec:
    own, width = config.section("rwkv7"), config.d_model
    decay_rank = own.decay_rank or _suggested(1.8 * width**0.5)
    return Rwkv7Spec(
        num_heads=own.num_heads or config.num_heads,
        head_dim=own.head_dim or config.head_dim,
        decay_rank=decay_rank,
        erase_rank=own.erase_rank or decay_rank,
        gate_rank=own.gate_rank or _suggested(0.6 * width**0.8),
        value_residual=own.value_residual,
        value_rank=own.value_rank or _suggested(1.3 * width**0.5),
        width=width,
        dtype=config.dtype,
    )


def _suggested(rank: float) -> int:
    """The nearest multiple of 32, as the reference chooses bottlenecks."""
    return max(32, 32 * round(rank / 32))


LETTER = Letter(
    letter="W",
    kind="state",
    title="RWKV-7",
    spec=_spec,
    look=Look("#8e44ad", "#f4eaf8", ("#c39bd3", "#4a2060"), line_style=(0, (1, 1))),
    citation="RWKV-7 (2503.14456)",
    section=("rwkv7", Rwkv7Config),
)


# --- The module ------------------------------------------------------------------------------


class Rwkv7(nnx.Module):
    """The time mixing of one layer."""

    def __init__(self, spec: Rwkv7Spec, config: ModelConfig, *, rngs: nnx.Rngs):
        self.spec = spec
        heads = (spec.num_heads, spec.head_dim)
        linear = functools.partial(Linear, config=config, rngs=rngs)
        low_rank = functools.partial(LowRank, heads=heads, config=config, rngs=rngs, start=0.1)
        into = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
        self.r_proj = linear((spec.width, *heads), into)
        self.k_proj = linear((spec.width, *heads), into)
        self.v_proj = linear((spec.width, *heads), into)
        self.o_proj = linear((*heads, spec.width), (*into[1:], axes.EMBED), num_axes=2)
        self.decay = low_rank(spec.decay_rank, inner=jnp.tanh)
        self.erase = low_rank(spec.erase_rank)
        self.gate = low_rank(spec.gate_rank, inner=jax.nn.sigmoid)
        if spec.donor is not None:
            self.value = low_rank(spec.value_rank)
        self._build_vectors(param_dtype(config))

    def _build_vectors(self, dtype) -> None:
        """Vectors of one axis each: tensors of two are cast to the stream's dtype, and decayed."""
        width, (heads, size) = self.spec.width, (self.spec.num_heads, self.spec.head_dim)
        channel = jnp.arange(width, dtype=dtype) / width
        self.shift = nnx.Dict(
            {name: nnx.Param(1 - channel**p, axes=(axes.EMBED,)) for name, p in _SHIFTS.items()}
        )
        line = jnp.linspace(0, 1, heads * size, dtype=dtype)
        zigzag = jnp.tile(jnp.linspace(-1, 1, size, dtype=dtype), heads)
        zigzag = zigzag * jnp.abs(zigzag)

        def vector(values):
            return nnx.Param(values, axes=(axes.HEADS,))

        ones = jnp.ones_like(line)
        self.decay_bias = vector(-5.5 + 6 * line ** (1 + 0.5**0.3) + 2.5 * zigzag)  # w0
        self.erase_bias = vector(-0.19 + 0.3 * zigzag + 0.4 * (line - 0.5))  # a0
        self.erase_key = vector(0.71 - 0.1 * (line - 0.5))  # ξ
        if self.spec.donor is not None:
            self.value_bias = vector(0.73 - 0.4 * (line - 0.5))  # v0
        self.key_mix = vector(1.02 * ones)  # α
        self.bonus = vector(-0.04 * ones)  # ρ
        self.norm_scale, self.norm_bias = vector(ones), vector(0 * ones)

    def __call__(
        self,
        x: Hidden,
        placement: Placement,
        donated: Value | None = None,
        state: LayerState | None = None,
    ) -> tuple[Hidden, Value, dict[str, jax.Array] | None]:
        """The layer's result, its values, and its state with x's real tokens in it.

        Args:
          donated: [b, t, n, h], the values of the donor, for a layer that has one.
        """
        tokens = recurrent.tokens(placement)
        before = recurrent.carried(self.spec, state, len(x))
        mixed = self._mixed(x, placement.positions, before["last"])
        r, k, v = (
            checkpoint_name(project(mixed[name]), "qkv").astype(before["state"].dtype)
            for name, project in (("r", self.r_proj), ("k", self.k_proj), ("v", self.v_proj))
        )
        if donated is not None:
            first = jax.nn.sigmoid(self._biased(self.value(mixed["v"]), self.value_bias))
            v = v + (donated - v) * first
        share = jax.nn.sigmoid(self._biased(self.erase(mixed["a"]), self.erase_bias))
        erased = unit(k * self._of_heads(self.erase_key), eps=_UNIT_EPS)
        k = k * (1 + (share - 1) * self._of_heads(self.key_mix))
        is_real = tokens.is_real[..., None, None]
        values, after = delta_rule.general_delta_rule(
            r,
            jnp.where(is_real, k, 0),
            v,
            jnp.where(is_real, self._log_decay(mixed["w"]), 0),
            jnp.where(is_real, -share * erased, 0),
            erased,
            before["state"],
            tokens.is_first & tokens.is_real,
            fastest=FASTEST,
        )
        bonus = jnp.sum(r * k * self._of_heads(self.bonus), axis=-1, keepdims=True)
        values = (self._normed(values) + bonus * v) * self.gate(mixed["g"]).astype(v.dtype)
        last = last_inputs(x, before["last"], 2, tokens.num_new)
        new = {"state": after, "last": last}
        y = self.o_proj(values.astype(x.dtype))
        return y, v.astype(x.dtype), recurrent.kept(state, new)

    def _mixed(self, x, positions, last):
        """x^z by z."""
        width = x.shape[-1]
        take_previous = jnp.stack([jnp.ones(width), jnp.zeros(width)])
        change = short_convolution(x, take_previous, positions, last) - x
        return {
            name: x + change * vector[...].astype(x.dtype)[None, None]
            for name, vector in self.shift.items()
        }

    def _log_decay(self, x):
        return -FASTEST * jax.nn.sigmoid(self._biased(self.decay(x), self.decay_bias))

    def _biased(self, x, bias):
        return x.astype(bias.dtype) + self._of_heads(bias)

    def _of_heads(self, vector):
        """[1, 1, n, h] of a vector [n·h]."""
        return vector[...].reshape(1, 1, self.spec.num_heads, self.spec.head_dim)

    def _normed(self, values):
        """The layer norm of each head's values."""
        centred = values - jnp.mean(values, axis=-1, keepdims=True)
        normed = rms_norm(centred, None, eps=NORM_EPS)
        return normed * self._of_heads(self.norm_scale) + self._of_heads(self.norm_bias)

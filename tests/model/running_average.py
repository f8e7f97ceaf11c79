"""A mixer for tests alone, letter `A`: a gated running average (`docs/add_a_mixer.md`).

    h_t = a·h_{t−1} + (1 − a)·x_t·W_v        h = 0 before a document's first token
    y_t = (sigmoid(x_t·W_g) · h_t)·W_o

with one decay a for all layers, `model.average.decay`. The state of a row is h after each of its
last `slack + 1` tokens, that of position p in slot p mod (slack + 1), so it can be rewound.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid import axes
from hybrid.config import key
from hybrid.model.layers import Linear
from hybrid.model.mixers.protocol import Letter, Look, MixerSpec


@dataclasses.dataclass(frozen=True)
class AverageConfig:
    """Keys under `model.average.`."""

    decay: float = key(0.9, "share of the average that each token keeps", at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class AverageSpec(MixerSpec):
    """A running average of vectors [width] with one decay."""

    LACKS: ClassVar[Mapping[str, str]] = {
        "kv_sharing": "has no keys and values to share",
        "export": "has no counterpart in transformers",
    }

    width: int
    decay: float
    dtype: str

    def build(self, config, rngs):
        return Average(self, config, rngs=rngs)

    def init_state(self, form, repetitions, batch):
        shape = (repetitions, batch, form.slack + 1, self.width)
        return {"averages": jnp.zeros(shape, self.dtype)}

    def state_bytes(self, form):
        return (form.slack + 1) * self.width * jnp.dtype(self.dtype).itemsize

    def earliest_rewind(self, form, written):
        return jnp.where(written <= form.slack + 1, 0, written - form.slack)

    def flops_per_token(self, config, context):
        return 6.0 * config.d_model * self.width, 0.0

    def summary(self):
        return f"running average of {self.width}, decay {self.decay:g}"


LETTER = Letter(
    letter="A",
    kind="state",
    title="running average",
    spec=lambda config, slot: AverageSpec(
        width=config.num_heads * config.head_dim,
        decay=config.section("average").decay,
        dtype=str(jnp.promote_types(config.dtype, jnp.float32)),
    ),
    look=Look("#7a3fb0", "#f3ecfa", ("#b48ad6", "#3d1a60")),
    citation="for tests",
    section=("average", AverageConfig),
)


class Average(nnx.Module):
    """The running average of one layer."""

    def __init__(self, spec, config, *, rngs):
        self.spec = spec
        wide, narrow = (config.d_model, spec.width), (spec.width, config.d_model)
        into, out = (axes.EMBED, axes.FFN), (axes.FFN, axes.EMBED)
        self.value_proj = Linear(wide, into, config=config, rngs=rngs)
        self.gate_proj = Linear(wide, into, config=config, rngs=rngs)
        self.out_proj = Linear(narrow, out, config=config, rngs=rngs)

    def __call__(self, x, placement, donated=None, state=None):
        step, fresh = placement.step, (1 - self.spec.decay) * self.value_proj(x)
        fresh = fresh.astype(self.spec.dtype)
        is_first = placement.positions == 0
        if step is None:
            first = jnp.zeros_like(fresh[:, 0])
            keeps = jnp.where(is_first, 0, self.spec.decay).astype(fresh.dtype)
        else:
            ring = jax.lax.dynamic_index_in_dim(state.arrays["averages"], state.row, 0, False)
            rows, size = jnp.arange(len(ring)), ring.shape[1]
            first = ring[rows, (step.length - 1) % size]
            first = jnp.where((step.length > 0)[:, None], first, 0)
            is_real = jnp.arange(x.shape[1])[None, :] < step.num_new[:, None]
            keeps = jnp.where(is_real, self.spec.decay, 1).astype(fresh.dtype)
            fresh = jnp.where(is_real[..., None], fresh, 0)
        averages = _scan(keeps[..., None], fresh, first)
        y = self.out_proj(averages.astype(x.dtype) * jax.nn.sigmoid(self.gate_proj(x)))
        if step is None:
            return y, None, None
        index = jnp.arange(x.shape[1])[None, :]
        after = (step.length + step.num_new)[:, None]
        positions = step.length[:, None] + index
        is_kept = (index < step.num_new[:, None]) & (positions >= after - size)
        at = jnp.where(is_kept, positions % size, size)
        stacked = state.arrays["averages"]
        stacked = stacked.at[state.row, rows[:, None], at].set(averages, mode="drop")
        return y, None, {"averages": stacked}


def _scan(keeps, fresh, first):
    """h_t = keeps_t·h_{t−1} + fresh_t from h_0 = first, all t at once."""

    def join(left, right):
        return left[0] * right[0], left[1] * right[0] + right[1]

    product, total = jax.lax.associative_scan(join, (keeps, fresh), axis=1)
    return total + product * first[:, None]

"""Experts by `jax.lax.ragged_dot` over sorted tokens: one product over groups of unequal sizes.

On a TPU it costs what the chosen experts cost (1.004 times, counted); on a CPU it computes every
expert for every token, so it refuses there.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.axes import Hidden
from hybrid.ops.dispatch import Unsupported
from hybrid.ops.experts.request import ExpertsRequest


def check(request: ExpertsRequest) -> None:
    """Serves accelerators."""
    if request.backend == "cpu":
        raise Unsupported("ragged_dot computes all experts for all tokens on a CPU")


def experts(
    x: Hidden,
    choice: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> Hidden:
    """As `hybrid.ops.experts.experts`; a choice of e is none."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    num_experts, num_active = gate.shape[0], choice.shape[-1]
    tokens = rearrange(x, "b t d -> (b t) d")
    chosen = choice.reshape(-1)
    order = jnp.argsort(chosen, stable=True)
    sizes = jnp.bincount(chosen, length=num_experts + 1)[:num_experts].astype(jnp.int32)
    rows = tokens[order // num_active]
    gate, up, down = (kernel.astype(x.dtype) for kernel in (gate, up, down))
    middle = jax.nn.gelu(jax.lax.ragged_dot(rows, gate, sizes), approximate=True)
    middle = middle * jax.lax.ragged_dot(rows, up, sizes)
    out = jax.lax.ragged_dot(middle, down, sizes, preferred_element_type=wide)
    # Rows without an expert come last and belong to no group.
    grouped = jnp.arange(len(order)) < jnp.sum(sizes)
    out = jnp.where(grouped[:, None], out, 0) * weights.reshape(-1).astype(wide)[order][:, None]
    summed = jnp.zeros(tokens.shape, wide).at[order // num_active].add(out)
    return summed.reshape(x.shape).astype(x.dtype)

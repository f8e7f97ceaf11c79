"""Experts by `jax.lax.ragged_dot` over sorted tokens: one product over groups of unequal sizes.

On a TPU it costs what the chosen experts cost (1.004 times, counted); on CPUs and GPUs it computes
every expert for every token, so it refuses there. So would a TPU for the kernels' gradients: XLA
has no product that sums over each group's rows, and forms them for all groups, 128 times the work
with 128 experts. They are jax's Pallas kernel `tgmm` (megablox, 2211.15841), which visits each row
once.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.axes import Hidden
from hybrid.ops import dispatch
from hybrid.ops.dispatch import Unsupported
from hybrid.ops.experts.request import ExpertsRequest

_MOST_ROWS, _MOST_WHOLE = 512, 1024  # of a tile


def check(request: ExpertsRequest) -> None:
    """Serves TPUs."""
    if request.backend != "tpu":
        raise Unsupported(f"ragged_dot computes all experts for all tokens on a {request.backend}")


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
    product = _dot if dispatch.backend() == "tpu" else _ragged_dot
    act = jax.nn.gelu(product(rows, gate, sizes, x.dtype), approximate=True)
    out = product(act * product(rows, up, sizes, x.dtype), down, sizes, wide)
    # Rows without an expert come last and belong to no group.
    grouped = jnp.arange(len(order)) < jnp.sum(sizes)
    out = jnp.where(grouped[:, None], out, 0) * weights.reshape(-1).astype(wide)[order][:, None]
    summed = jnp.zeros(tokens.shape, wide).at[order // num_active].add(out)
    return summed.reshape(x.shape).astype(x.dtype)


def _ragged_dot(rows, kernels, sizes, dtype):
    """Each row times the matrix of its group: [m, k], [e, k, n], int32 [e] -> [m, n]."""
    return jax.lax.ragged_dot(rows, kernels, sizes, preferred_element_type=dtype)


_dot = jax.custom_vjp(_ragged_dot, nondiff_argnums=(3,))


def _forward(rows, kernels, sizes, dtype):
    return _ragged_dot(rows, kernels, sizes, dtype), (rows, kernels, sizes)


def _backward(dtype, kept, dout):
    del dtype
    rows, kernels, sizes = kept
    dout = dout.astype(rows.dtype)
    drows = jax.lax.ragged_dot(dout, jnp.swapaxes(kernels, 1, 2), sizes)
    return drows, over_groups(rows, dout, sizes).astype(kernels.dtype), None


_dot.defvjp(_forward, _backward)


def over_groups(
    left: jax.Array, right: jax.Array, sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """leftᵀ·right summed over the rows of each group: [m, k], [m, n], int32 [e] -> [e, k, n].

    Rows beyond the last group belong to none. interpret: on another machine than a TPU, for tests.
    """
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm  # other backends lack it

    tiles = min(_MOST_ROWS, -(-len(left) // 128) * 128)
    pad = ((0, -len(left) % tiles), (0, 0))
    left, right = jnp.pad(left, pad), jnp.pad(right, pad)
    tiling = (tiles, _tile(left.shape[1]), _tile(right.shape[1]))
    return tgmm(left.T, right, sizes, jnp.float32, tiling, interpret=interpret)


def _tile(size: int) -> int:
    """The largest multiple of 128 up to 512 that divides an axis, else all of a short one."""
    fitting = [tile for tile in (512, 384, 256, 128) if size % tile == 0]
    return fitting[0] if fitting else min(size, _MOST_WHOLE)

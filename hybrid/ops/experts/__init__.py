"""The door to experts: each token's gated feed-forwards, one for each expert that it is sent to.

    y = Σ_j w_j · (gelu(x·gate_j) · (x·up_j))·down_j         over the token's chosen experts j

Dropless: no expert has a limit, none of a token's choices is left out. `hybrid/ops/dispatch.py`
says how an implementation is chosen.

On a mesh each device computes its own experts for its own rows and the results are summed:

    x, choice, weights    tokens, copies along the axes of experts and width
    kernels               experts, each split along its width; d_model, which fsdp splits, is
                          gathered in the compute dtype, and the gradient is scattered in its own

Read next: `reference.py` (the oracle), `blocked.py` (what CPUs and GPUs run).
"""

import functools

import jax
import jax.numpy as jnp

from hybrid import axes
from hybrid.axes import Hidden
from hybrid.ops.dispatch import Implementation, Operation, per_device
from hybrid.ops.experts import blocked, ragged, reference
from hybrid.ops.experts.request import ExpertsRequest
from hybrid.sharding import split_axes

__all__ = ["EXPERTS", "ExpertsRequest", "experts"]

EXPERTS = Operation(
    "experts",
    (
        Implementation("ragged", ragged.experts, ragged.check),
        Implementation("blocked", blocked.experts, blocked.check),
        Implementation("reference", reference.experts),
    ),
)
_TOKENS = (axes.BATCH, axes.TIME, None)
_INTO = (axes.EXPERTS, axes.EMBED, axes.FFN)
_OUT = (axes.EXPERTS, axes.FFN, axes.EMBED)


def experts(
    x: Hidden,
    choice: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    implementation: str = "auto",
) -> Hidden:
    """The weighted sum of each token's experts.

    Args:
      x: [b, t, d].
      choice, weights: [b, t, a], int32 and floating; a token's experts differ.
      gate, up: [e, d, f].  down: [e, f, d].
      implementation: "auto" or a name of `EXPERTS.names`.
    Returns: [b, t, d] in x's dtype, accumulated in at least float32.
    Raises: Unsupported where the named implementation refuses; ValueError for an unknown name.
    """
    request = ExpertsRequest.of(choice, gate, x.dtype.name)
    chosen = EXPERTS.choose(request, implementation)
    operands = (x, choice, weights, gate, up, down)
    split = zip(_INTO, gate.shape, strict=True)
    own = functools.partial(_own_experts, chosen.function, *(split_axes(*axis) for axis in split))
    return per_device(own, operands, (_TOKENS, _TOKENS, _TOKENS, _INTO, _INTO, _OUT))


def _own_experts(function, by_expert, by_fsdp, by_width, x, choice, weights, gate, up, down):
    """This device's share, summed over the mesh axes that split experts and their width.

    Choices of other devices' experts become "none", index e.
    """
    if by_expert:
        num_own = gate.shape[0]
        own = choice - jax.lax.axis_index(by_expert) * num_own
        choice = jnp.where((own >= 0) & (own < num_own), own, num_own)
    gate, up = (_gathered(kernel, by_fsdp, 1, x.dtype) for kernel in (gate, up))
    y = function(x, choice, weights, gate, up, _gathered(down, by_fsdp, 2, x.dtype))
    if not by_expert + by_width:
        return y
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return jax.lax.psum(y.astype(wide), by_expert + by_width).astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(kernel, over, axis, dtype):
    """A kernel gathered over mesh axes in `dtype`, but given in its own, in which its gradient is
    summed over the devices and scattered."""
    if not over:
        return kernel
    whole = jax.lax.all_gather(kernel.astype(dtype), over, axis=axis, tiled=True)
    return whole.astype(kernel.dtype)


def _gathered_backward(over, axis, dtype, kept, dkernel):
    del dtype, kept
    if not over:
        return (dkernel,)
    return (jax.lax.psum_scatter(dkernel, over, scatter_dimension=axis, tiled=True),)


_gathered.defvjp(lambda *arguments: (_gathered(*arguments), None), _gathered_backward)

"""The door to experts: each token's gated feed-forwards, one for each expert that it is sent to.

    y = Σ_j w_j · (gelu(x·gate_j) · (x·up_j))·down_j         over the token's chosen experts j

Dropless: no expert has a limit, none of a token's choices is left out. With "auto" the first
implementation that serves the backend is taken; a named one serves or raises `Unsupported`.

On a mesh each device computes its own experts for its own rows and the results are summed:

    x, choice, weights    rows over data and fsdp, copies along expert and tensor
    kernels               experts over expert, width over tensor, gathered along fsdp

Read next: `reference.py` (the oracle), `blocked.py` (what a CPU runs).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hybrid.axes import Hidden
from hybrid.ops.attention.support import Unsupported
from hybrid.ops.experts import blocked, ragged, reference

__all__ = ["IMPLEMENTATIONS", "Unsupported", "choose", "experts"]

IMPLEMENTATIONS = {"ragged": ragged, "blocked": blocked, "reference": reference}
_ROWS, _EXPERT, _TENSOR = ("data", "fsdp"), "expert", "tensor"


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
    Returns: [b, t, d] in x's dtype, accumulated in at least float32.
    Raises: Unsupported where the named implementation refuses; ValueError for an unknown name.
    """
    local = IMPLEMENTATIONS[choose(implementation)].experts
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return local(x, choice, weights, gate, up, down)
    tensor = _TENSOR if gate.shape[2] % mesh.shape[_TENSOR] == 0 else None
    rows, wide = P(_ROWS), P(_EXPERT, None, tensor)
    return jax.shard_map(
        functools.partial(_own_experts, local, split_width=tensor is not None),
        mesh=mesh,
        in_specs=(rows, rows, rows, wide, wide, P(_EXPERT, tensor, None)),
        out_specs=rows,
        check_vma=False,
    )(x, choice, weights, gate, up, down)


def _own_experts(local, x, choice, weights, gate, up, down, *, split_width):
    """This device's share: choices of other devices' experts become "none", index e."""
    num_own = gate.shape[0]
    own = choice - jax.lax.axis_index(_EXPERT) * num_own
    own = jnp.where((own >= 0) & (own < num_own), own, num_own)
    y = local(x, own, weights, gate, up, down)
    wide = jnp.promote_types(y.dtype, jnp.float32)
    axes = (_EXPERT, _TENSOR) if split_width else (_EXPERT,)
    return jax.lax.psum(y.astype(wide), axes).astype(y.dtype)


def choose(implementation: str = "auto", backend: str | None = None) -> str:
    """The name of the implementation that serves `backend` (default: this one).

    Raises: Unsupported where the named one refuses; ValueError for an unknown name.
    """
    backend = backend or jax.default_backend()
    if implementation != "auto":
        if implementation not in IMPLEMENTATIONS:
            known = ", ".join(["auto", *IMPLEMENTATIONS])
            raise ValueError(f"experts: no implementation {implementation!r}; known: {known}")
        IMPLEMENTATIONS[implementation].check(backend)
        return implementation
    for name, module in IMPLEMENTATIONS.items():
        try:
            module.check(backend)
        except Unsupported:
            continue
        return name
    raise AssertionError("the reference serves everything")

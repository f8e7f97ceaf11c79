"""Experts over blocks of sorted tokens: each block meets one expert's matrices.

The pairs of tokens and experts are put in order of the experts, each expert's filled up to whole
blocks (`Groups`):

    pairs    0 … n·a − 1, pair i is choice i mod a of token i div a
    rows     block after block; a block holds pairs of one expert, the rest of it is empty

Sizes are known while tracing: with blocks of B rows at most ceil(n·a / B) + e blocks are used,
whatever the choices are. A scan walks the blocks and skips empty ones, so the work grows with the
pairs, not with the experts. With x the rows of a block, w their weights, and the matrices of its
expert:

    (1)  a = x·gate        u = x·up
    (2)  m = gelu(a) · u
    (3)  r = m·down        y_token = Σ_pairs w·r

Kept: a and u of every row. Backward, with dr = dy of a row's token:

    (4)  dn = dr·downᵀ         dw = Σ_f m·dn             dm = w·dn
    (5)  ddown += (w·m)ᵀ·dr    du = dm·gelu(a)           da = dm · u · gelu'(a)
    (6)  dx_row = da·gateᵀ + du·upᵀ     dgate += xᵀ·da   dup += xᵀ·du

The gradients of the matrices ride in the scan's carry and are added to in place, expert by
expert; autodiff would add an array of all experts for each block.

8192 tokens at d 256, f 128, 16 experts of which 2 a token, forward and backward: 0.15 to 0.22 s
against 1.7 to 2.1 s of the oracle; blocks of 128 rows, 64 and 512 are slower (2 cores).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.axes import Hidden
from hybrid.ops.dispatch import Unsupported
from hybrid.ops.experts.request import ExpertsRequest

MOST_ROWS = 128  # of a block
FEWEST_ROWS = 8


class Groups(NamedTuple):
    """Where each pair lies, and what lies in each row.

    Attributes:
      row_of_pair: int32 [n·a]; for a pair without an expert, one row beyond the last.
      pair_of_row: int32 [rows]; n·a where a row is empty.
      expert_of_block: int32 [blocks]; e where a block is empty.
    """

    row_of_pair: jax.Array
    pair_of_row: jax.Array
    expert_of_block: jax.Array

    @classmethod
    def of(cls, choice: jax.Array, num_experts: int, block: int) -> "Groups":
        """The groups of int32 [n, a] choices; a choice of e is none."""
        chosen = choice.reshape(-1)
        num_pairs = chosen.shape[0]
        num_blocks = -(-num_pairs // block) + num_experts
        counts = jnp.bincount(chosen, length=num_experts + 1)[:num_experts].astype(jnp.int32)
        ends = jnp.cumsum((counts + block - 1) // block)  # in blocks
        first_row = block * (ends - (counts + block - 1) // block)
        order = jnp.argsort(chosen, stable=True).astype(jnp.int32)
        place = jnp.arange(num_pairs, dtype=jnp.int32)
        sorted_choice = chosen[order]
        first_pair = jnp.cumsum(counts) - counts
        expert = jnp.minimum(sorted_choice, num_experts - 1)
        row = first_row[expert] + place - first_pair[expert]
        row = jnp.where(sorted_choice < num_experts, row, num_blocks * block)
        return cls(
            row_of_pair=jnp.zeros(num_pairs, jnp.int32).at[order].set(row),
            pair_of_row=jnp.full(num_blocks * block, num_pairs, jnp.int32)
            .at[row]
            .set(order, mode="drop"),
            expert_of_block=jnp.searchsorted(
                ends, jnp.arange(num_blocks), side="right", method="compare_all"
            ).astype(jnp.int32),
        )


def check(request: ExpertsRequest) -> None:
    """Serves CPUs; elsewhere a loop over small products would leave the device idle."""
    if request.backend != "cpu":
        raise Unsupported("walks small blocks one by one: for CPUs")


def experts(
    x: Hidden,
    choice: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> Hidden:
    """As `hybrid.ops.experts.experts`; a choice of e is none."""
    rows = rearrange(x, "b t d -> (b t) d")
    choice, weights = (rearrange(array, "b t a -> (b t) a") for array in (choice, weights))
    groups = Groups.of(choice, gate.shape[0], block_rows(choice.size, gate.shape[0]))
    out = _experts(rows, weights, gate, up, down, groups)
    return out.reshape(x.shape).astype(x.dtype)


def block_rows(num_pairs: int, num_experts: int) -> int:
    """Rows of a block: about half of an expert's mean share, a power of two within bounds."""
    share = max(1, num_pairs // (2 * num_experts))
    return min(MOST_ROWS, max(FEWEST_ROWS, 1 << (share - 1).bit_length()))


@jax.custom_vjp
def _experts(x, weights, gate, up, down, groups):
    return _forward(x, weights, gate, up, down, groups)[0]


def _forward(x, weights, gate, up, down, groups):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows = _blocks(_rows_of_tokens(x, weights.shape[1], groups), groups)
    kernels = tuple(kernel.astype(x.dtype) for kernel in (gate, up, down))

    def one(_, block):
        index, x = block
        (g, u, d), width = _at(kernels, index), gate.shape[2]

        def compute():
            a, b = x @ g, x @ u  # (1)
            return a, b, jnp.dot(_gelu(a) * b, d, preferred_element_type=wide)  # (2), (3)

        empty = jnp.zeros((len(x), width), x.dtype)
        return _, _where_used(index, gate, compute, (empty, empty, jnp.zeros(x.shape, wide)))

    _, (a, u, r) = jax.lax.scan(one, None, (groups.expert_of_block, rows))
    of_pairs = _of_pairs(r.reshape(-1, x.shape[1]), groups, weights.shape)
    out = jnp.einsum("nad,na->nd", of_pairs, weights.astype(wide))
    return out.astype(x.dtype), (x, weights, gate, up, down, groups, a, u)


def _backward(kept, dout):
    x, weights, gate, up, down, groups, a, u = kept
    wide = jnp.promote_types(x.dtype, jnp.float32)
    num_active = weights.shape[1]
    kernels = tuple(kernel.astype(x.dtype) for kernel in (gate, up, down))
    of_rows = functools.partial(_rows_of_tokens, num_active=num_active, groups=groups)
    rows, drows = (_blocks(of_rows(array), groups) for array in (x, dout.astype(x.dtype)))
    padded = jnp.append(weights.reshape(-1), 0).astype(x.dtype)
    row_weights = _blocks(padded[groups.pair_of_row][:, None], groups)

    def one(total, block):
        index, x, dr, w, a, u = block
        g, up, d = _at(kernels, index)

        def compute():
            act, slope = _gelu(a), _gelu_slope(a)
            dn = dr @ d.T  # (4)
            dw = jnp.sum((act * u * dn).astype(wide), axis=-1)
            dm = w * dn
            du, da = dm * act, dm * u * slope  # (5)
            added = _product(x, da), _product(x, du), _product(w * act * u, dr)
            return (da @ g.T + du @ up.T).astype(wide), dw, added  # (6)

        nothing = tuple(jnp.zeros(kernel.shape[1:], wide) for kernel in kernels)
        unused = jnp.zeros(x.shape, wide), jnp.zeros(len(x), wide), nothing
        dx, dw, added = _where_used(index, gate, compute, unused)
        at = jnp.minimum(index, len(gate) - 1)
        total = tuple(t.at[at].add(more) for t, more in zip(total, added, strict=True))
        return total, (dx, dw)

    blocks = (groups.expert_of_block, rows, drows, row_weights, a, u)
    zeros = tuple(jnp.zeros(kernel.shape, wide) for kernel in (gate, up, down))
    total, (dx, dw) = jax.lax.scan(one, zeros, blocks)
    dx = jnp.sum(_of_pairs(dx.reshape(-1, x.shape[1]), groups, weights.shape), axis=1)
    dw = _of_pairs(dw.reshape(-1, 1), groups, weights.shape)[..., 0]
    gradients = (g.astype(k.dtype) for g, k in zip(total, (gate, up, down), strict=True))
    return dx.astype(x.dtype), dw.astype(weights.dtype), *gradients, None


_experts.defvjp(_forward, _backward)


# --- Pieces ----------------------------------------------------------------------------------


def _rows_of_tokens(array, num_active, groups):
    """[n, d] -> [rows, d], the token of each row's pair; zeros in empty rows."""
    padded = jnp.pad(array, ((0, 1), (0, 0)))
    return padded[groups.pair_of_row // num_active]


def _of_pairs(rows, groups, shape):
    """[rows, d] -> [n, a, d], the row of each pair; zeros for a pair without an expert."""
    padded = jnp.pad(rows, ((0, 1), (0, 0)))
    return padded[groups.row_of_pair].reshape(*shape, -1)


def _blocks(rows, groups):
    return rows.reshape(len(groups.expert_of_block), -1, rows.shape[-1])


def _at(kernels, index):
    """The matrices of one expert; of any for an empty block."""
    return tuple(jax.lax.dynamic_index_in_dim(k, index, keepdims=False) for k in kernels)


def _where_used(index, gate, compute, empty):
    return jax.lax.cond(index < gate.shape[0], compute, lambda: empty)


def _product(left, right):
    wide = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.dot(left.T, right, preferred_element_type=wide)


def _gelu(a):
    return jax.nn.gelu(a, approximate=True)


def _gelu_slope(a):
    return jax.vjp(_gelu, a)[1](jnp.ones_like(a))[0]

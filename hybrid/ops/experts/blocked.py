"""Experts over blocks of sorted tokens: each block meets one expert's matrices.

The pairs of tokens and experts are put in order of the experts, each expert's filled up to whole
blocks (`Groups`):

    pairs    0 … n·a − 1, pair i is choice i mod a of token i div a
    rows     block after block; a block holds pairs of one expert, the rest of it is empty

Sizes are known while tracing: with blocks of B rows at most ceil(n·a / B) + e blocks are used, and
at most n·a, whatever the choices are. A scan walks the blocks, so the work grows with the pairs,
not with the experts, and skips empty ones: on a CPU one by one; on a GPU in waves of several, whose
matrices are gathered for one batched product. With x the rows of a block, w their weights, and the
matrices of its expert:

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
Compiled for an H100, 8192 tokens at d 2816, f 704, 128 experts of which 8 a token: 1.5 times the
FLOPs of the chosen experts and 5.2 GiB; by `ragged_dot` 128 times and 176 GiB.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from hybrid.axes import Hidden
from hybrid.ops import dispatch
from hybrid.ops.dispatch import Unsupported
from hybrid.ops.experts.request import ExpertsRequest

MOST_ROWS = 128  # of a block
FEWEST_ROWS = 8
GPU_MOST_ROWS, GPU_FEWEST_ROWS = 512, 16
WAVE_ROWS, WAVE_BLOCKS = 4096, 32  # of a wave, at most


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
    def of(cls, choice: jax.Array, num_experts: int, block: int, wave: int = 1) -> "Groups":
        """The groups of int32 [n, a] choices, in whole waves of blocks; a choice of e is none."""
        chosen = choice.reshape(-1)
        num_pairs = chosen.shape[0]
        num_blocks = most_blocks(num_pairs, num_experts, block)
        num_blocks += -num_blocks % wave
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
    """Serves CPUs and GPUs, where `ragged_dot` computes all experts for all tokens."""
    if request.backend == "tpu":
        raise Unsupported("gathers matrices for its blocks: for CPUs and GPUs")


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
    block, wave = block_sizes(choice.size, gate.shape[0], dispatch.backend())
    groups = Groups.of(choice, gate.shape[0], block, wave)
    out = _experts(rows, weights, gate, up, down, groups, wave)
    return out.reshape(x.shape).astype(x.dtype)


def block_sizes(num_pairs: int, num_experts: int, backend: str) -> tuple[int, int]:
    """Rows of a block, about half of an expert's mean share and a power of two within bounds, and
    blocks of a wave."""
    share = max(1, num_pairs // (2 * num_experts))
    rows = 1 << (share - 1).bit_length()
    if backend == "cpu":
        return min(MOST_ROWS, max(FEWEST_ROWS, rows)), 1
    rows = min(GPU_MOST_ROWS, max(GPU_FEWEST_ROWS, rows))
    blocks = most_blocks(num_pairs, num_experts, rows)
    return rows, min(WAVE_BLOCKS, WAVE_ROWS // rows, blocks)


def most_blocks(num_pairs: int, num_experts: int, block: int) -> int:
    """Blocks that are used at most: a full one for each `block` pairs, and one that is not full for
    each expert; none without a pair."""
    return min(num_pairs, -(-num_pairs // block) + num_experts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _experts(x, weights, gate, up, down, groups, wave):
    return _forward(x, weights, gate, up, down, groups, wave)[0]


def _forward(x, weights, gate, up, down, groups, wave):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows = _blocks(_rows_of_tokens(x, weights.shape[1], groups), groups)
    kernels = tuple(kernel.astype(x.dtype) for kernel in (gate, up, down))

    def compute(index, x):
        g, u, d = _at(kernels, index)
        a, b = x @ g, x @ u  # (1)
        return a, b, jnp.dot(_gelu(a) * b, d, preferred_element_type=wide)  # (2), (3)

    compute = _each(compute, len(gate), wave)
    blocks = groups.expert_of_block, rows
    _, (a, u, r) = _walk(lambda _, block: (_, compute(*block)), None, blocks, wave)
    of_pairs = _of_pairs(r.reshape(-1, x.shape[1]), groups, weights.shape)
    out = jnp.einsum("nad,na->nd", of_pairs, weights.astype(wide))
    return out.astype(x.dtype), (x, weights, gate, up, down, groups, a, u)


def _backward(wave, kept, dout):
    x, weights, gate, up, down, groups, a, u = kept
    wide = jnp.promote_types(x.dtype, jnp.float32)
    num_active = weights.shape[1]
    kernels = tuple(kernel.astype(x.dtype) for kernel in (gate, up, down))
    of_rows = functools.partial(_rows_of_tokens, num_active=num_active, groups=groups)
    rows, drows = (_blocks(of_rows(array), groups) for array in (x, dout.astype(x.dtype)))
    padded = jnp.append(weights.reshape(-1), 0).astype(x.dtype)
    row_weights = _blocks(padded[groups.pair_of_row][:, None], groups)

    def compute(index, x, dr, w, a, u):
        g, up, d = _at(kernels, index)
        act, slope = _gelu(a), _gelu_slope(a)
        dn = dr @ d.T  # (4)
        dw = jnp.sum((act * u * dn).astype(wide), axis=-1)
        dm = w * dn
        du, da = dm * act, dm * u * slope  # (5)
        added = _product(x, da), _product(x, du), _product(w * act * u, dr)
        return (da @ g.T + du @ up.T).astype(wide), dw, added  # (6)

    compute = _each(compute, len(gate), wave)

    def add(total, block):
        dx, dw, added = compute(*block)
        pairs = zip(total, added, strict=True)
        return tuple(t.at[block[0]].add(more, mode="drop") for t, more in pairs), (dx, dw)

    blocks = (groups.expert_of_block, rows, drows, row_weights, a, u)
    zeros = tuple(jnp.zeros(kernel.shape, wide) for kernel in (gate, up, down))
    total, (dx, dw) = _walk(add, zeros, blocks, wave)
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


def _each(compute, num_experts, wave):
    """`compute` of a block, or of all of a wave, and zeros where it is empty."""
    compute = compute if wave == 1 else jax.vmap(compute)

    def unless_empty(index, *block):
        shapes = jax.eval_shape(compute, index, *block)
        zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
        is_used = jnp.min(index) < num_experts
        return jax.lax.cond(is_used, lambda: compute(index, *block), lambda: zeros)

    return unless_empty


def _walk(step, state, blocks, wave):
    """A scan of `step` over blocks, or waves of them; what it gives is of blocks again."""
    if wave == 1:
        return jax.lax.scan(step, state, blocks)
    waves = jax.tree.map(lambda array: array.reshape(-1, wave, *array.shape[1:]), blocks)
    state, results = jax.lax.scan(step, state, waves)
    return state, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), results)


def _product(left, right):
    wide = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.dot(left.T, right, preferred_element_type=wide)


def _gelu(a):
    return jax.nn.gelu(a, approximate=True)


def _gelu_slope(a):
    return jax.vjp(_gelu, a)[1](jnp.ones_like(a))[0]

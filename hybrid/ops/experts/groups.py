"""Token–expert pairs in order of their experts, each expert's group filled up to whole blocks.

    pairs    0 … n·a − 1, pair i is choice i mod a of token i div a
    rows     block after block; a block holds pairs of one expert, the rest of it is empty

Sizes are known while tracing: with blocks of B rows at most ceil(n·a / B) + e blocks are used,
whatever the choices are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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

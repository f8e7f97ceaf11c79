"""How a mesh splits a table [v, d] and the tokens [b, t] that meet it, and what then has to move.

A table has a row for each word: the embedding, and the per-layer ones. Its columns are split by
fsdp, which also splits the rows of the batch; its rows by tensor; a table never exists whole on a
device. The methods run under `shard_map` (`ops/dispatch.py: per_device`), and where nothing is
split they change nothing.

Read next: `embedding.py` (rows by token), `loss.py` (all rows against all tokens).
"""

import dataclasses

import jax
import jax.numpy as jnp

from hybrid import axes
from hybrid.sharding import split_axes

TOKENS = (axes.BATCH, axes.TIME)
HIDDEN = (*TOKENS, None)


@dataclasses.dataclass(frozen=True)
class TableParts:
    """The mesh axes that split a table and its tokens.

    Attributes:
      tokens: that split the tokens, by row of the batch or by time.
      rows, columns: that split the table.
    """

    tokens: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, tokens: jax.Array, table: jax.Array, columns: str) -> "TableParts":
        """Of arrays [b, t] and [v, d] under the active mesh; `columns`: the name of d's axis."""
        by_batch, by_time = map(split_axes, TOKENS, tokens.shape)
        by_column = split_axes(columns, table.shape[1])
        return cls(by_batch + by_time, split_axes(axes.VOCAB, table.shape[0]), by_column)

    @property
    def splits_alike(self) -> bool:
        """Whether devices with other columns also have other tokens."""
        return bool(self.columns) and set(self.columns) <= set(self.tokens)

    # --- Rows --------------------------------------------------------------------------------

    def first_row(self, table: jax.Array) -> jax.Array:
        """The id of the first row of this device's table [v / parts, ...]."""
        if not self.rows:
            return jnp.int32(0)
        return jax.lax.axis_index(self.rows).astype(jnp.int32) * table.shape[0]

    def sum_of_rows(self, x: jax.Array) -> jax.Array:
        """Summed over the devices that have other rows."""
        return jax.lax.psum(x, self.rows) if self.rows else x

    # --- Columns -----------------------------------------------------------------------------

    def whole(self, block: jax.Array) -> jax.Array:
        """All columns of rows [c, d / parts], [c, d]."""
        if not self.columns:
            return block
        return jax.lax.all_gather(block, self.columns, axis=1, tiled=True)

    def own_columns(self, x: jax.Array) -> jax.Array:
        """This device's columns of x [..., d]."""
        if not self.columns:
            return x
        size = x.shape[-1] // jax.lax.axis_size(self.columns)
        start = jax.lax.axis_index(self.columns) * size
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=x.ndim - 1)

    def scattered_sum(self, block: jax.Array) -> jax.Array:
        """This device's columns of a sum over tokens [c, d], but for the sum in `sum_of_tokens`."""
        if not self.splits_alike:
            return self.own_columns(block)
        return jax.lax.psum_scatter(block, self.columns, scatter_dimension=1, tiled=True)

    def sum_of_tokens(self, table: jax.Array) -> jax.Array:
        """A gradient [v / parts, d / parts] summed over the devices that have other tokens.

        Along the axes of the columns it has been summed already.
        """
        rest = tuple(axis for axis in self.tokens if axis not in self.columns)
        return jax.lax.psum(table, rest) if rest else table

    # --- An exchange: own columns of all tokens <-> all columns of own tokens --------------------

    def tokens_of_all(self, tokens: jax.Array) -> jax.Array:
        """The tokens [B, t] of all devices that share the table's rows, of this one's [b, t]."""
        if not self.splits_alike:
            return tokens
        return jax.lax.all_gather(tokens, self.columns, axis=0, tiled=True)

    def to_tokens(self, x: jax.Array) -> jax.Array:
        """[..., B, t, d / parts] -> [..., b, t, d]."""
        batch, last = x.ndim - 3, x.ndim - 1
        if self.splits_alike:
            return jax.lax.all_to_all(x, self.columns, batch, last, tiled=True)
        if not self.columns:
            return x
        return jax.lax.all_gather(x, self.columns, axis=last, tiled=True)

    def to_columns(self, x: jax.Array) -> jax.Array:
        """[..., b, t, d] -> [..., B, t, d / parts]."""
        if not self.splits_alike:
            return self.own_columns(x)
        batch, last = x.ndim - 3, x.ndim - 1
        return jax.lax.all_to_all(x, self.columns, last, batch, tiled=True)

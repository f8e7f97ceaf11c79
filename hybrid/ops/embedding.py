"""Rows of a table by token, without a copy of the table anywhere.

Each device looks up its own columns for the tokens of all devices that share the table, and one
exchange (all-to-all) gives every device all columns of its own tokens. The gradient goes back by
the same exchange, and each device adds up the part of the table that it has:

    lookup      tokens [b, t] -> of all [B, t] -> own columns [B, t, d/F] -> exchanged [b, t, d]
    gradient    [b, t, d] -> exchanged [B, t, d/F] -> added into [v, d/F]

What moves is the result, not the table: with 8192 tokens a device at d 5376 in bfloat16, 84 MiB
against the table's 2.6 GiB.
"""

import functools

import jax
import jax.numpy as jnp

from hybrid import axes
from hybrid.axes import Hidden, Tokens
from hybrid.ops.dispatch import per_device
from hybrid.ops.table import HIDDEN, TOKENS, TableParts


def lookup(
    table: jax.Array, tokens: Tokens, dtype: jax.typing.DTypeLike, columns: str = axes.EMBED
) -> Hidden:
    """table[tokens] in `dtype`.

    Args:
      table: [v, d].  tokens: int32 [b, t].
      columns: the logical name of d's axis.
    Returns: [b, t, d]; the table's gradient is summed in the table's dtype.
    """
    return _lookup(table, tokens, jnp.dtype(dtype), columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table, tokens, dtype, columns):
    return _forward(table, tokens, dtype, columns)[0]


def _forward(table, tokens, dtype, columns):
    parts = TableParts.of(tokens, table, columns)

    def of_part(table, tokens):
        ids, is_own = _own_rows(table, tokens, parts)
        rows = table[ids].astype(dtype)
        rows = rows if is_own is None else jnp.where(is_own, rows, 0)
        return (parts.to_tokens(parts.sum_of_rows(rows)),)

    names, result = ((axes.VOCAB, columns), TOKENS), (*tokens.shape, table.shape[1])
    (out,) = per_device(of_part, (table, tokens), names, ((HIDDEN, result),))
    return out, (table, tokens)


def _backward(dtype, columns, kept, dout):
    del dtype  # that of dout
    table, tokens = kept
    parts = TableParts.of(tokens, table, columns)

    def of_part(table, tokens, dout):
        ids, is_own = _own_rows(table, tokens, parts)
        rows = parts.to_columns(dout).astype(table.dtype)
        rows = rows if is_own is None else jnp.where(is_own, rows, 0)
        return (parts.sum_of_tokens(jnp.zeros_like(table).at[ids].add(rows)),)

    of_table = (axes.VOCAB, columns)
    names, result = (of_table, TOKENS, HIDDEN), (of_table, table.shape)
    (dtable,) = per_device(of_part, (table, tokens, dout), names, (result,))
    return dtable, None


_lookup.defvjp(_forward, _backward)


def _own_rows(table, tokens, parts):
    """Rows of this device's table for the tokens [B, t] that it serves, and which of them it has,
    bool [B, t, 1] (None: all)."""
    ids = parts.tokens_of_all(tokens)
    if not parts.rows:
        return ids, None
    ids = ids - parts.first_row(table)
    is_own = (ids >= 0) & (ids < table.shape[0])
    return jnp.where(is_own, ids, 0), is_own[..., None]

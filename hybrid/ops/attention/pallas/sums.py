"""dq in main memory, to which each block of keys adds: a block of queries comes and goes again.

The next block is read and the last one written while a step computes, by two buffers in turn;
before another block of keys begins all is written. A block's first visit reads nothing.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


class Sums:
    """The sums of one row and KV head: blocks of `queries` of its `group` heads."""

    def __init__(self, total, row, kv_head, buffers, semaphores, *, group, queries, is_new):
        self.total, self.buffers, self.semaphores = total, buffers, semaphores
        self.heads, self.row = pl.ds(kv_head * group, group), row
        self.queries, self.is_new = queries, is_new

    def before(self, step, first, last):
        """Has the block of this step in its buffer, and the next one on its way."""
        block, slot = first + step, jax.lax.rem(step, jnp.int32(2))
        pl.when((step == 0) & (block <= last))(lambda: self._fetch(block, slot))

        @pl.when(block < last)
        def _():
            pl.when(step > 0)(lambda: self._write(block - 1, 1 - slot).wait())
            self._fetch(block + 1, 1 - slot)

        @pl.when((block <= last) & self.is_new(block))
        def _():
            self.buffers[slot] = jnp.zeros(self.buffers.shape[1:], self.buffers.dtype)

        pl.when((block <= last) & ~self.is_new(block))(lambda: self._read(block, slot).wait())

    def add(self, step, piece, columns):
        """Adds [h, rows] of a piece."""
        at = jax.lax.rem(step, jnp.int32(2)), slice(None), piece.queries
        self.buffers[at] += columns.T.reshape(self.buffers.shape[1], -1, columns.shape[0])

    def after(self, step, first, last):
        """Sends the block of this step back."""
        block, slot = first + step, jax.lax.rem(step, jnp.int32(2))

        @pl.when(block <= last)
        def _():
            self._write(block, slot).start()

        @pl.when(block == last)
        def _():
            pl.when(step > 0)(lambda: self._write(block - 1, 1 - slot).wait())
            self._write(block, slot).wait()

    def _fetch(self, block, slot):
        pl.when(~self.is_new(block))(lambda: self._read(block, slot).start())

    def _read(self, block, slot):
        return pltpu.make_async_copy(
            self._place(block), self.buffers.at[slot], self.semaphores.at[0, slot]
        )

    def _write(self, block, slot):
        return pltpu.make_async_copy(
            self.buffers.at[slot], self._place(block), self.semaphores.at[1, slot]
        )

    def _place(self, block):
        return self.total.at[self.row, self.heads, pl.ds(block * self.queries, self.queries)]

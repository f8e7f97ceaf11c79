"""Batches of numpy arrays as arrays on a mesh, whichever of its devices this process has.

Of a training batch a process reads only the rows that its own devices hold; what is held out is
small, and every process has all of it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid.data.batch import Batch
from hybrid.sharding import batch_sharding


def process_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a global batch that the devices of this process hold, in order."""
    by_row = NamedSharding(mesh, P(*batch_sharding(mesh).spec[:1]))
    parts = by_row.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for part in parts if part for row in range(batch_size)[part[0]]})


def place_rows(batch: Batch, mesh: Mesh, batch_size: int, rows: Sequence[int]) -> Batch:
    """A global batch of `batch_size` rows, of which `batch` holds `rows`, this process's own."""
    sharding = batch_sharding(mesh)

    def of_leaf(leaf: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            own = np.searchsorted(rows, range(batch_size)[index[0]])
            return leaf[own][:, *index[1:]]

        return jax.make_array_from_callback((batch_size, *leaf.shape[1:]), sharding, part)

    return jax.tree.map(of_leaf, batch)


def place_whole(batch: Batch, mesh: Mesh) -> Batch:
    """A global batch that every process has whole."""
    return place_rows(batch, mesh, len(batch.tokens), range(len(batch.tokens)))

"""Chunked attention as a band: who sees whom, in rows and behind caches, by counting."""

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import chunks
from hybrid.ops.band import Band, visible

LENGTHS = (5, 1, 12, 6)  # documents of a row


def row():
    positions = np.concatenate([np.arange(length) for length in LENGTHS])
    documents = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    return positions.astype(np.int32), documents


def wanted(size):
    """bool [t, t]: earlier tokens of the same document and chunk."""
    positions, documents = row()
    index, chunk = np.arange(len(positions)), positions // size
    same = (documents[:, None] == documents) & (chunk[:, None] == chunk)
    return same & (index[:, None] >= index)


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_a_token_of_a_row_sees_its_documents_chunk(size):
    positions, _ = row()
    band = Band.of_row(size, chunks.segments(jnp.asarray(positions)[None], size))
    time = len(positions)
    np.testing.assert_array_equal(band.visible(0, time, 0, time)[0], wanted(size))


def test_a_row_that_begins_inside_a_chunk_is_one_from_its_first_token():
    found = chunks.segments(jnp.array([[5, 6, 7, 8, 9]]), 4)
    np.testing.assert_array_equal(found, [[1, 1, 1, 2, 2]])


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_a_token_behind_a_cache_sees_the_same(size):
    positions = np.arange(20, dtype=np.int32)
    apart = chunks.apart(jnp.asarray(positions), size)
    seen = visible(apart[:, None], apart[None], size)
    chunk = positions // size
    expected = (chunk[:, None] == chunk) & (positions[:, None] >= positions)
    np.testing.assert_array_equal(seen, expected)
    assert chunks.apart(jnp.array([-1]), size) == -1

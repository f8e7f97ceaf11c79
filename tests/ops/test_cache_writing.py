"""The kernel that writes tokens into caches, interpreted on a CPU: it equals the scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.ops import dispatch
from hybrid.ops.attention import writing
from hybrid.ops.attention.pallas import write

LAYERS, ROW = 3, 1


@pytest.mark.parametrize(
    ("num_slots", "time", "is_ring"), [(96, 1, False), (75, 5, False), (40, 16, True), (7, 5, True)]
)
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_blocks_are_written_as_the_scatter_writes(num_slots, time, is_ring, dtype):
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.integers(-127, 127, shape), dtype)

    old = {"v": random(LAYERS, 2, 2, num_slots, 8), "scales": random(LAYERS, 2, 2, num_slots)}
    new = {"v": random(2, 2, time, 8), "scales": random(2, 2, time)}

    @jax.jit
    def both(old, new, at):
        with dispatch.use_backend("tpu"):
            got = writing.write(old, jnp.int32(ROW), new, at, num_slots)
        return got, writing.write(old, ROW, new, at, num_slots)

    for start in range(0, num_slots, 3):
        # Rows at different places; tokens behind the second row's end, or an overrun, go nowhere.
        positions = np.stack([start + np.arange(time), (start + 31) + np.arange(time)])
        at = positions % num_slots if is_ring else np.minimum(positions, num_slots)
        at[1, time // 2 + 1 :] = num_slots
        got, wanted = both(old, new, jnp.asarray(at, jnp.int32))
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_blocks_that_tokens_fall_into_are_all_visited():
    for size, num_slots in ((32, 40), (32, 96), (32, 33)):
        for start in range(num_slots):
            at = jnp.asarray((start + np.arange(16))[None] % num_slots, jnp.int32)
            visits = write._visits(at, num_slots, size)
            assert set(np.asarray(at[0]) // size) == set(visits[0].tolist())


def test_kernels_write_few_tokens_on_tpus():
    for call in ((1, "blocks"), (17, "scatter")):
        assert writing.CACHE_WRITE.choose(writing.WriteRequest("tpu", call[0])).name == call[1]
    assert writing.CACHE_WRITE.choose(writing.WriteRequest("cpu", 1)).name == "scatter"

"""Every op gives the same sums and gradients when the batch is sharded over devices.

Run this file as a script to see the report.
"""

import json

import pytest
import simulated


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


def test_a_sharded_batch_gives_the_same_and_gathers_nothing(report):
    assert max(report["errors"]) < 1e-11
    assert report["is_gradient_sharded"]
    assert not report["gathers"]


# --- The process with eight devices -----------------------------------------------------------


def main():
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from hybrid.ops import attention, feed_forward, loss, norm, rope
    from hybrid.ops.band import Band

    rng = np.random.default_rng(0)
    t, d, v = 40, 16, 30
    shapes = {"gate": (d, 32), "up": (d, 32), "down": (32, d), "scale": (d,), "embedding": (v, d)}
    weights = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(8, t, d)))
    ids = jnp.asarray(np.sort(rng.integers(0, 3, (8, t))), jnp.int32)
    mask = jnp.asarray(rng.random((8, t)) < 0.7)

    def run(weights, x, ids, mask):
        positions = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), x.shape[:2])
        kernels = (weights[name] for name in ("gate", "up", "down"))
        x = x + feed_forward.gated_gelu(norm.rms_norm(x, weights["scale"]), *kernels)
        q = rope.apply(x.reshape(8, t, 4, 4), rope.rotation(positions, 4, theta=1e4, dtype=x.dtype))
        for window in (7, None):
            band = Band.of_row(window, ids)
            out = attention.attend(q, q[:, :, :2], q[:, :, 2:], band, implementation="chunked")
            x = x + out.reshape(8, t, d)
        sums = loss.cross_entropy(x, weights["embedding"], ids, mask, block_size=16)
        return sums.nll + 0.01 * sums.z

    step = jax.jit(jax.value_and_grad(run, (0, 1)))
    one = step(weights, x, ids, mask)
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = jax.device_put((x, ids, mask), rows)
    many = step(weights, *sharded)

    def error(a, b):
        return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max())

    report = {
        "errors": jax.tree.leaves(jax.tree.map(error, one, many)),
        "is_gradient_sharded": many[1][1].sharding.is_equivalent_to(rows, 3),
        "gathers": "all-gather" in step.lower(weights, *sharded).compile().as_text(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

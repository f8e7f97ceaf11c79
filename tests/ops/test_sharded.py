"""Every op gives the same sums and gradients when the batch is sharded over devices."""

import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from hybrid.ops import attention, feed_forward, loss, norm, rope
from hybrid.ops.band import Band

rng = np.random.default_rng(0)
t, d, v = 40, 16, 30
weights = {"gate": (d, 32), "up": (d, 32), "down": (32, d), "scale": (d,), "embedding": (v, d)}
weights = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in weights.items()}
x = jnp.asarray(rng.normal(size=(8, t, d)))
ids = jnp.asarray(np.sort(rng.integers(0, 3, (8, t))), jnp.int32)
mask = jnp.asarray(rng.random((8, t)) < 0.7)

def run(weights, x, ids, mask):
    positions = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), x.shape[:2])
    x = x + feed_forward.gated_gelu(norm.rms_norm(x, weights["scale"]),
                                    *(weights[n] for n in ("gate", "up", "down")))
    q = rope.apply(x.reshape(8, t, 4, 4), rope.rotation(positions, 4, theta=1e4, dtype=x.dtype))
    for window in (7, None):
        band = Band.of_row(window, ids)
        out = attention.attend(q, q[:, :, :2], q[:, :, 2:], band, implementation="chunked")
        x = x + out.reshape(8, t, d)
    sums = loss.cross_entropy(x, weights["embedding"], ids, mask, chunk_size=16)
    return sums.nll + 0.01 * sums.z

step = jax.jit(jax.value_and_grad(run, (0, 1)))
one = step(weights, x, ids, mask)
mesh = Mesh(np.array(jax.devices()), ("data",))
rows = NamedSharding(mesh, PartitionSpec("data"))
compiled = step.lower(weights, *jax.device_put((x, ids, mask), rows)).compile()
many = step(weights, *jax.device_put((x, ids, mask), rows))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())
assert many[1][1].sharding.is_equivalent_to(rows, 3), many[1][1].sharding
assert "all-gather" not in compiled.as_text()
print("equal")
"""


def test_a_sharded_batch_gives_the_same_and_gathers_nothing(tmp_path):
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "equal\n", done.stderr[-3000:]

"""The tiny model's loss of 64K tokens really runs in little memory."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2**30
CHILD = """
import resource
import jax
import jax.numpy as jnp
from hybrid import experiment, model
from hybrid.data.batch import Batch

config = experiment.load("configs/tiny.py").model
params = jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))
tokens = jax.random.randint(jax.random.key(1), (1, 65_536), 0, 256)
ones = jnp.ones_like(tokens)
positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
targets = jnp.roll(tokens, -1, axis=1)
batch = Batch(tokens, targets, ones, positions, ones.astype(bool))
sums = jax.jit(lambda params, batch: model.loss_sums(config, params, batch))(params, batch)
print(float(sums.nll / sums.count), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_loss_of_64k_tokens_peaks_under_2_gib():
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
    )
    loss, peak = map(float, child.stdout.split())
    print(f"loss {loss:.2f} nats, peak memory {peak / GIB:.2f} GiB")
    assert 4 < loss < 8  # about log(264) before training
    assert peak < 2 * GIB  # 1.1 as it is

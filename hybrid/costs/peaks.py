"""Peak FLOP/s of devices, for model FLOP/s utilisation: published, or measured."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from hybrid.costs.chips import CHIPS

# Peak dense bfloat16 FLOP/s of a device, by its kind.
KNOWN_PEAKS = {kind: chip.device().flops for chip in CHIPS.values() for kind in chip.kinds}


def peak_flops(configured: float, dtype: str, devices: list[jax.Device]) -> float | None:
    """Peak FLOP/s of all `devices` together, or None where MFU is switched off.

    A configured figure counts for each device; else the table of chips serves and a matrix
    product in `dtype` is timed elsewhere. CPU devices share the machine's cores: they count as one.
    """
    if configured < 0:
        return None
    device = next(device for device in devices if device.process_index == jax.process_index())
    count = 1 if device.platform == "cpu" else len(devices)
    known = KNOWN_PEAKS.get(device.device_kind) if dtype == "bfloat16" else None
    return count * (configured or known or measured_peak(device, dtype))


def measured_peak(device: jax.Device, dtype: str) -> float:
    """FLOP/s of the fastest of a few square matrix products."""
    size = 1024 if device.platform == "cpu" else 8192
    x = jax.device_put(np.ones((size, size), jnp.dtype(dtype)), device)
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    product(x).block_until_ready()
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

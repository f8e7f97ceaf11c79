"""Runs a test file as a script of its own, in float64 on simulated devices.

The number of devices and x64 are fixed before jax starts, so such tests need another process. A
test module that wants one has a `main()` that prints JSON, and a fixture that calls `report`.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


def report(script: str, *words: str, num_devices: int = 8) -> Any:
    """What `script WORDS` prints as JSON, run with `num_devices` CPU devices in float64."""
    flags = [
        f"--xla_force_host_platform_device_count={num_devices}",
        # Compiling is most of the time; unoptimised code runs small shapes just as well.
        "--xla_backend_optimization_level=0",
    ]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": " ".join(flags),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    child = subprocess.run(
        [sys.executable, script, *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    return json.loads(child.stdout)

"""Runs a test file as a script of its own: on simulated devices, a GPU, or compiling for chips that
are not there.

The number of devices, x64 and what libtpu reads are fixed before jax starts, so such tests need
another process. A test module that wants one has a `main()` that prints JSON, and a fixture that
calls `report`, `report_for_tpus` or `report_for_gpus`.
"""

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import Any

import pytest
import quick

ROOT = pathlib.Path(__file__).resolve().parent.parent
NEEDS_LIBTPU = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="libtpu exists for x86-64 Linux only",
)


def report(script: str, *words: str, num_devices: int = 8) -> Any:
    """What `script WORDS` prints as JSON, run with `num_devices` CPU devices in float64."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices} {quick.FLAGS}",
    }
    return json.loads(_printed(script, words, environment, timeout=600))


def report_for_tpus(script: str) -> Any:
    """What `script` prints last as JSON, run so that it can compile for TPUs."""
    from hybrid.plan.compiled import ENVIRONMENT

    return json.loads(_printed(script, (), ENVIRONMENT, timeout=1800).splitlines()[-1])


def report_for_gpus(script: str) -> Any:
    """What `script` prints last as JSON, run with a GPU, or so that it can compile for one."""
    environment = {"JAX_PLATFORMS": "cuda,cpu" if shutil.which("nvidia-smi") else "cpu"}
    environment |= {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return json.loads(_printed(script, (), environment, timeout=1800).splitlines()[-1])


def _printed(script: str, words: tuple[str, ...], environment: dict[str, str], timeout: int):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    child = subprocess.run(
        [sys.executable, script, *words],
        env={**os.environ, **environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
        timeout=timeout,
    )
    return child.stdout

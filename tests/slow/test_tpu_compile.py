"""The train step of configs/small.py compiles for a real TPU topology, and remat pays there."""

import importlib.util
import json
import math
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

from hybrid import experiment, model

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2**30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="libtpu exists for x86-64 Linux only",
    ),
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What the compiler says of remat none and full on v5e:2x4 with fsdp=8."""
    found = importlib.util.find_spec("libtpu")
    assert found, "libtpu is not installed: pip install 'hybrid-attention[slow]'"
    output = tmp_path_factory.mktemp("tpu") / "figures.json"
    script = ROOT / "benchmarks" / "tpu_compile.py"
    subprocess.run(
        [sys.executable, script, "--remat", "none", "full", "--json", output],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(output.parent)},
        check=True,
        timeout=1800,
    )
    return {row["remat"]: row for row in json.loads(output.read_text())["rows"]}


def test_state_is_split_over_the_devices_and_donated(figures):
    params = model.abstract(experiment.load("configs/small.py").model)
    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    for row in figures.values():
        # Parameters and two moments, an eighth each. A TPU pads the 96 columns of a part to its
        # tiles of 128 where it keeps them last, which adds 5 % here; next to nothing is copied.
        assert 3 * size / 8 <= row["arguments"] < 1.06 * 3 * size / 8
        assert row["donated"] > 0.95 * row["arguments"]


def test_rematerialisation_shrinks_the_temporaries_of_a_device(figures):
    none, full = figures["none"]["temporaries"], figures["full"]["temporaries"]
    assert none < 16 * GIB  # a v5e chip
    assert full < none / 3

"""`hybrid.plan --topology` on a real TPU topology: what a device holds, computes and exchanges."""

import importlib.util
import json
import math
import os
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

from hybrid import experiment, model
from hybrid.model.params import flat

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2**30
# Four layers compile in a quarter of the time of twelve.
OVERRIDES = {
    "model.pattern": "LG",
    "model.num_layers": "4",
    "model.vocab_size": "8192",
    "mesh.data": "1",
    "mesh.fsdp": "8",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"),
        reason="libtpu exists for x86-64 Linux only",
    ),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the command says of remat none and full on v5e:2x4 with fsdp=8."""
    found = importlib.util.find_spec("libtpu")
    assert found, "libtpu is not installed: pip install 'hybrid-attention[slow]'"
    folder = tmp_path_factory.mktemp("tpu")
    keys = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    command = [sys.executable, "-m", "hybrid.plan", "--config=configs/small.py", "--json"]

    def report(remat):
        child = subprocess.run(
            [*command, "--topology=v5e:2x4", *keys, f"--config.model.remat={remat}"],
            env={**os.environ, "XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            timeout=3000,
        )
        return json.loads(child.stdout)

    return {remat: report(remat) for remat in ("none", "full")}


@pytest.fixture(scope="module")
def params():
    """Elements of the kernels by the part that uses them."""
    loaded = experiment.load("configs/small.py", OVERRIDES)
    counted = {"local": 0, "global": 0, "embedding_and_loss": 0}
    plan = model.layer_plan(loaded.model)
    for path, leaf in flat(model.abstract(loaded.model)).items():
        if path[0] == "segments" and path[-1] == "kernel":
            counted[plan.segments[path[1]].specs[path[2]].kind] += math.prod(leaf.shape)
        elif path[0] == "embedder":
            counted["embedding_and_loss"] += math.prod(leaf.shape)
    return counted


def test_state_is_split_over_the_devices_and_donated(reports):
    params = model.abstract(experiment.load("configs/small.py", OVERRIDES).model)
    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    for report in reports.values():
        sizes = report["bytes_per_device"]
        # Parameters and two moments, an eighth each. A TPU pads the 96 columns of a part to its
        # tiles of 128 where it keeps them last; next to nothing is copied.
        assert 3 * size / 8 <= sizes["arguments"] < 1.1 * 3 * size / 8
        assert sizes["total"] < sizes["arguments"] + sizes["temporaries"] + size / 100


def test_rematerialisation_shrinks_the_temporaries_of_a_device(reports):
    none, full = (reports[remat]["bytes_per_device"]["temporaries"] for remat in ("none", "full"))
    assert none < 16 * GIB  # a v5e chip
    assert full < none / 2
    assert reports["none"]["fits"]
    assert reports["full"]["fits"]


def test_layers_exchange_what_their_weights_and_gradients_need(reports, params):
    """Weights in bfloat16 for each pass, the gradient in float32: 8 bytes a parameter, 10 with
    remat; norms and padding on top."""
    for remat, passes in (("none", 2), ("full", 3)):
        exchanged = reports[remat]["collective_bytes_per_device"]
        for part in ("local", "global"):
            assert 2 * 2 + 4 < 1.01 * exchanged[part] / params[part] < 1.05 * (2 * passes + 4)
        assert exchanged["embedding_and_loss"] < 16 * params["embedding_and_loss"] + 2**26
        assert exchanged["experts"] == 0
        assert exchanged["other"] < 0.02 * exchanged["total"]


def test_the_program_multiplies_what_the_formula_says(reports):
    for report in reports.values():
        assert 0.95 < report["flops_ratio"] < 1.25
        assert report["flops_by_part"]["local"] > 0.2 * report["flops_per_device"]


def test_the_roofline_is_possible(reports):
    for report in reports.values():
        assert 0 < report["roofline"]["mfu"] <= 1
        assert report["roofline"]["tokens_per_second_per_chip"] > 0

"""`hybrid.plan --topology` on a real TPU topology: what a device holds, computes and exchanges."""

import functools
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
import simulated

from hybrid import experiment, model
from hybrid.model.params import flat

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2**30
# A period of two layers compiles in a third of the time of one of six.
COMMON = {"model.pattern": "LG", "model.num_layers": "4", "mesh.data": "1", "mesh.fsdp": "8"}
OVERRIDES = COMMON | {"model.vocab_size": "8192"}
NARROW = COMMON | {
    "model.d_model": "256",
    "model.ffn_dim": "512",
    "model.num_heads": "8",
    "model.num_kv_heads": "4",
    "model.num_global_kv_heads": "2",
    "model.head_dim": "128",
    "model.global_head_dim": "128",
    "model.vocab_size": "2048",
    "model.window_size": "128",
    "training.context_length": "512",
    "training.batch_size": "8",
}
# Of each kind of preset: separate and unified keys and values; per-layer embeddings and keys and
# values that are reused; experts.
SMALL = {
    "31b": NARROW,
    "e2b": NARROW
    | {
        "model.num_layers": "6",
        "model.num_kv_shared_layers": "2",
        "model.kv_shared_ffn_dim": "1024",
        "model.layer_embedding_dim": "64",
    },
    "26b_a4b": NARROW
    | {"model.num_experts": "8", "model.num_active_experts": "2", "model.expert_dim": "128"},
}

# Experts compile longest.
each_preset = pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=pytest.mark.weekly if name == "26b_a4b" else pytest.mark.slow)
        for name in SMALL
    ],
)
pytestmark = simulated.NEEDS_LIBTPU


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the command says of a page under overrides on v5e:2x4."""
    found = importlib.util.find_spec("libtpu")
    assert found, "libtpu is not installed: pip install 'hybrid-attention[slow]'"
    folder = tmp_path_factory.mktemp("tpu")

    def run(page, overrides):
        keys = [f"--config.{key}={value}" for key, value in overrides.items()]
        command = [sys.executable, "-m", "hybrid.plan", f"--config={page}", "--json"]
        child = subprocess.run(
            [*command, "--topology=v5e:2x4", *keys],
            env={**os.environ, "XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=3000,
        )
        return json.loads(child.stdout)

    return run


@pytest.fixture(scope="module")
def reports(report):
    """Of remat none and full."""
    page = "configs/small.py"
    return {name: report(page, OVERRIDES | {"model.remat": name}) for name in ("none", "full")}


@pytest.fixture(scope="module")
def small(report):
    """Of a narrow model of a preset's kind, remat full; compiled once."""
    return functools.cache(lambda preset: report(f"configs/gemma4.py:{preset}", SMALL[preset]))


def kernels(preset):
    """Elements of that model's kernels by the part that uses them, and of its embedding."""
    loaded = experiment.load(f"configs/gemma4.py:{preset}", SMALL[preset])
    counted = dict.fromkeys(("local", "global", "experts", "embedding_and_loss"), 0)
    plan = model.layer_plan(loaded.model)
    for path, leaf in flat(model.abstract(loaded.model)).items():
        if path[0] == "segments" and path[-1] == "kernel":
            kind = plan.segments[path[1]].runs[path[2]].spec.kind
            counted["experts" if "experts" in path else kind] += math.prod(leaf.shape)
        elif path[0] == "embedder":
            counted["embedding_and_loss"] += math.prod(leaf.shape)
    return counted


@pytest.mark.weekly
def test_state_is_split_over_the_devices_and_donated(reports):
    params = model.abstract(experiment.load("configs/small.py", OVERRIDES).model)
    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    for report in reports.values():
        sizes = report["bytes_per_device"]
        # Parameters and two moments, an eighth each. A TPU pads the 96 columns of a part to its
        # tiles of 128 where it keeps them last; next to nothing is copied.
        assert 3 * size / 8 <= sizes["arguments"] < 1.1 * 3 * size / 8
        assert sizes["total"] < sizes["arguments"] + sizes["temporaries"] + size / 100


@pytest.mark.weekly
def test_rematerialisation_shrinks_the_temporaries_of_a_device(reports):
    none, full = (reports[remat]["bytes_per_device"]["temporaries"] for remat in ("none", "full"))
    assert none < 16 * GIB  # a v5e chip
    assert full < none / 2
    assert reports["none"]["fits"]
    assert reports["full"]["fits"]


@each_preset
def test_layers_exchange_what_their_weights_and_gradients_need(small, preset):
    """Weights in bfloat16 for two or three passes, the gradient in float32: 8 to 10 bytes each."""
    exchanged, elements = small(preset)["collective_bytes_per_device"], kernels(preset)
    groups = [["local"], ["global"]]
    if elements["experts"]:  # whose gathers the compiler may make under the layer's name
        groups = [["local", "global", "experts"]]
    for parts in groups:
        needed, found = (sum(of[part] for part in parts) for of in (elements, exchanged))
        assert 8 * needed <= found <= 10.6 * needed
    assert exchanged["embedding_and_loss"] < 16 * elements["embedding_and_loss"]
    assert exchanged["other"] < 0.02 * exchanged["total"]


@each_preset
def test_the_program_multiplies_what_the_formula_says(small, preset):
    """Tiles of 512 keys for a window of 128: local scores cost four times the formula's, which is
    most of what a model this narrow computes too much."""
    assert 1 < small(preset)["flops_ratio"] < 1.5
    assert small(preset)["flops_by_part"]["local"] > 0.2 * small(preset)["flops_per_device"]


@each_preset
def test_the_roofline_is_possible(small, preset):
    assert 0 < small(preset)["roofline"]["mfu"] <= 1
    assert small(preset)["roofline"]["tokens_per_second_per_chip"] > 0


@pytest.mark.slow
def test_libtpu_takes_each_flag_of_the_page_and_refuses_another(report):
    """By `hybrid.plan`, whose process tries them on an empty program before the step."""
    page = (ROOT / "docs" / "xla_flags.md").read_text()
    section = page.partition("\n## TPU\n")[2].partition("\n## ")[0]
    flags = re.findall(r"^\| `(xla_\w+=[^`]*)` \|", section, re.MULTILINE)
    assert len(flags) > 20
    wrong = "xla_tpu_no_such_flag=1"
    with pytest.raises(subprocess.CalledProcessError) as raised:
        report("configs/tiny.py", COMMON | {"xla.tpu_flags": ",".join([*flags, wrong])})
    assert raised.value.returncode == 2
    assert f"got {wrong}" in raised.value.stderr


@pytest.mark.weekly
def test_a_run_of_layers_compiles_with_what_it_keeps_on_the_host(report):
    keys = {"model.pattern": "LLG", "model.num_layers": "6", "model.remat_offload": "attention_out"}
    assert report("configs/gemma4.py:31b", NARROW | keys | {"model.remat": "full"})["fits"]

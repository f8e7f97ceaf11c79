"""Full-size presets: their train steps trace, shard over 8 devices and lower on abstract arrays."""

import json
import math
import sys
import time

import jax
import pytest
import simulated

# Each feature of the family once; the sizes that differ from these in numbers alone are weekly.
MAIN = ("gemma4.py:e2b", "gemma4.py:26b_a4b", "gemma3.py:4b", "gemma2.py:9b", "sinks.py", "nope.py")
OTHERS = (
    *(f"gemma4.py:{size}" for size in ("e4b", "12b", "31b")),
    *(f"gemma3.py:{size}" for size in ("270m", "1b", "12b", "27b")),
    *(f"gemma2.py:{size}" for size in ("2b", "27b")),
)
SECONDS = 60


def lowered(page: str) -> dict:
    """Seconds to lower the page's step, and the share of the parameters on one device."""
    from hybrid import experiment
    from hybrid.sharding import MeshConfig, make_mesh
    from hybrid.training import step

    start, run = time.perf_counter(), experiment.load(f"configs/{page}")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    run.check_mesh(mesh)
    with jax.set_mesh(mesh):
        program = step.build(run.model, run.training.step, run.optimizer, mesh)
        program.step.lower(program.state, program.batch)
    whole = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    on_one = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(program.state.params)
    )
    return {"seconds": time.perf_counter() - start, "share": on_one / whole}


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__, *MAIN)


@pytest.fixture(scope="module")
def report_of_others():
    return simulated.report(__file__, *OTHERS)


def check(figures: dict) -> None:
    assert figures["seconds"] < SECONDS
    assert figures["share"] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("page", MAIN)
def test_a_presets_step_lowers_in_time_and_is_split_over_the_devices(report, page):
    check(report[page])


@pytest.mark.weekly
@pytest.mark.parametrize("page", OTHERS)
def test_so_does_that_of_every_other_size(report_of_others, page):
    check(report_of_others[page])


if __name__ == "__main__":
    print(json.dumps({page: lowered(page) for page in sys.argv[1:]}))

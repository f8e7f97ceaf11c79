"""Parameters are made or read where they live: a start holds no further copy of a model.

On eight simulated devices, whose memory is the process's own: its peak beyond the arrays that are
wanted (those of the model read, where it becomes another) stays far below one model. In one
process of its own, which reports as JSON.
"""

import ctypes
import pathlib
import resource
import sys
import tempfile
import threading

import pytest
import simulated

WAYS = ("resume", "of a run", "of a folder", "another pattern", "start")
OPTIMIZERS = ("adamw", "muon")
MODEL = {
    "model.pattern": "LG",
    "model.last_layer": "any",
    "model.num_layers": 8,
    "model.d_model": 512,
    "model.num_heads": 8,
    "model.head_dim": 64,
    "model.ffn_dim": 2048,
    "model.vocab_size": 4096,
    "training.batch_size": 8,
    "mesh.data": 1,
    "mesh.fsdp": 8,
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("way", WAYS)
def test_peak_memory_beyond_the_arrays_is_a_part_of_a_model(report, way):
    assert report["params"] > 100
    assert report["beyond"][way] < 0.5 * report["params"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moments_lie_where_their_parameters_lie(report, optimizer):
    assert report["moments"][optimizer]["num"] >= report["num_leaves"]
    assert report["moments"][optimizer]["elsewhere"] == []


def main():
    import json

    import jax

    from hybrid.sharding import make_mesh
    from hybrid.training import step

    free_at_once()
    loaded = load()
    mesh = make_mesh(loaded.mesh)
    with jax.set_mesh(mesh):
        program = step.of_experiment(loaded, mesh)
        moments = {name: moments_of(load(**{"optimizer.name": name}), mesh) for name in OPTIMIZERS}
        with tempfile.TemporaryDirectory() as folder:
            found = peaks(loaded, mesh, program, pathlib.Path(folder))
    num_leaves = len(jax.tree.leaves(program.state.params))
    print(json.dumps({**found, "moments": moments, "num_leaves": num_leaves}))


def free_at_once():
    """Lets memory that is freed leave the process, so that it isn't taken for a copy."""
    mallopt = ctypes.CDLL(None).mallopt  # parameters of malloc.h
    for name, value in ((-8, 2), (-3, 1 << 16), (-1, 1 << 16)):  # arenas, mmap, trim
        mallopt(name, value)


def load(**overrides):
    from hybrid import experiment

    keys = {name: str(value) for name, value in (MODEL | overrides).items()}
    return experiment.load("configs/tiny.py", keys)


def peaks(loaded, mesh, program, folder):
    """{params: MB of a model, beyond: {way to start: MB of its peak beyond the arrays}}."""
    import jax

    from hybrid import pretrained
    from hybrid.loading.initial import read_initial
    from hybrid.workdir import provenance
    from hybrid.workdir.checkpoint import Checkpoints, restore_state
    from hybrid.workdir.config import CheckpointConfig

    run, hf, beyond = folder / "run", folder / "hf", {}
    state = zeros(program.state)
    whole, params = megabytes(state), megabytes(state.params)
    writer = Checkpoints(run, CheckpointConfig(asynchronous=False))
    writer.save(1, state, {"evaluation_due": False})
    writer.close()
    provenance.write(run, loaded, {})
    pretrained.write_folder(state.params, loaded.model, hf, "byte")
    del state

    def measure(way, wanted, make):
        made, peak = peak_of(make)
        beyond[way] = peak - wanted
        return made

    measure("resume", whole, lambda: restore_state(run, 1, program.state))
    measure("of a folder", params, lambda: read_initial(load(init_from=hf), mesh))
    other = load(**{"init_from": run, "model.pattern": "LLLG"})
    measure("another pattern", 2 * params, lambda: read_initial(other, mesh))
    read = measure("of a run", params, lambda: read_initial(load(init_from=run), mesh))
    # The parameters are donated: what is new are the moments.
    measure("start", whole - params, lambda: program.start(read, jax.random.key(0)))
    return {"params": params, "beyond": beyond}


def zeros(abstract):
    """Arrays of these shapes, each made where it lives."""
    import jax
    import jax.numpy as jnp

    leaves, tree = jax.tree.flatten(abstract)
    made = jax.jit(
        lambda: [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves],
        out_shardings=[leaf.sharding for leaf in leaves],
    )
    return jax.tree.unflatten(tree, made())


def megabytes(tree):
    """Of all devices together, copies counted."""
    import jax

    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards) / 1e6


def peak_of(make):
    """`make()`, and how many MB the process grew by meanwhile at most."""
    import jax

    def resident():
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize() / 1e6

    def watch():
        while not done.wait(0.002):
            seen.append(resident())

    seen, done = [before := resident()], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    made = jax.block_until_ready(make())
    done.set()
    watcher.join()
    return made, max(seen) - before


def moments_of(loaded, mesh):
    """How many arrays of the optimizer's state belong to a parameter, and which lie elsewhere."""
    import jax

    from hybrid.training import step

    state = step.of_experiment(loaded, mesh).state
    params = dict(jax.tree_util.tree_leaves_with_path(state.params))
    num, elsewhere = 0, []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        param = next((params[p] for p in params if path[-len(p) :] == p), None)
        num += param is not None
        if param is not None and leaf.sharding != param.sharding:
            elsewhere.append(jax.tree_util.keystr(path))
    return {"num": num, "elsewhere": elsewhere}


if __name__ == "__main__":
    main()

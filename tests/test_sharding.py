"""One device or eight: equal loss and gradients in float64, parameters split as the rules say.

The eight devices are simulated, in one process of its own that reports as JSON (run this file as
a script to see it).
"""

import json

import pytest
import simulated

MESHES = {
    "data=8": {"data": 8},
    "fsdp=8": {"data": 1, "fsdp": 8},
    "fsdp=4 tensor=2": {"data": 1, "fsdp": 4, "tensor": 2},
}


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_equals_one_devices(report, mesh):
    assert report["dtype"] == "float64"
    assert report[mesh]["loss_error"] < 1e-9


@pytest.mark.parametrize("mesh", MESHES)
def test_each_gradient_equals_one_devices(report, mesh):
    errors = report[mesh]["gradient_errors"]
    assert len(errors) == report["num_leaves"]
    assert {name: error for name, error in errors.items() if not error < 1e-9} == {}


def test_microbatches_on_eight_devices_change_nothing(report):
    assert report["microbatches"]["loss_error"] < 1e-9
    assert max(report["microbatches"]["gradient_errors"].values()) < 1e-9


# [layers, ...] shapes of one device's part; the whole ones stand in `main`.
PARTS = {
    "embedder/embedding": {"data=8": [64, 32], "fsdp=8": [64, 4], "fsdp=4 tensor=2": [32, 8]},
    "segments/0/0/mixer/q_proj/kernel": {
        "data=8": [2, 32, 4, 8],
        "fsdp=8": [2, 4, 4, 8],
        "fsdp=4 tensor=2": [2, 8, 2, 8],
    },
    "segments/0/0/mixer/o_proj/kernel": {
        "data=8": [2, 4, 8, 32],
        "fsdp=8": [2, 4, 8, 4],
        "fsdp=4 tensor=2": [2, 2, 8, 8],
    },
    "segments/0/0/mixer/k_proj/kernel": {  # two KV heads
        "data=8": [2, 32, 2, 8],
        "fsdp=8": [2, 4, 2, 8],
        "fsdp=4 tensor=2": [2, 8, 1, 8],
    },
    "segments/0/1/mixer/k_proj/kernel": {  # one KV head: copied over tensor
        "data=8": [2, 32, 1, 16],
        "fsdp=8": [2, 4, 1, 16],
        "fsdp=4 tensor=2": [2, 8, 1, 16],
    },
    "segments/0/0/feed_forward/gate_proj/kernel": {
        "data=8": [2, 32, 48],
        "fsdp=8": [2, 4, 48],
        "fsdp=4 tensor=2": [2, 8, 24],
    },
    "segments/0/0/feed_forward/down_proj/kernel": {
        "data=8": [2, 48, 32],
        "fsdp=8": [2, 48, 4],
        "fsdp=4 tensor=2": [2, 24, 8],
    },
    "segments/0/0/pre_mixer_norm/scale": {
        "data=8": [2, 32],
        "fsdp=8": [2, 4],
        "fsdp=4 tensor=2": [2, 8],
    },
    "segments/0/0/mixer/q_norm/scale": {mesh: [2, 8] for mesh in MESHES},
}


@pytest.mark.parametrize("mesh", MESHES)
def test_a_device_holds_the_part_that_the_rules_say(report, mesh):
    held = report[mesh]["parts"]
    assert {name: held[name] for name in PARTS} == {name: PARTS[name][mesh] for name in PARTS}


def test_a_step_donates_its_state_and_leaves_it_where_it_was(report):
    assert report["step"]["all_donated"]
    assert report["step"]["all_in_place"]
    assert report["step"]["moved"] > 0


# --- The process with eight devices -----------------------------------------------------------


def main():
    """Prints the report.  Imports here: the environment must be set first."""
    import jax

    from hybrid import model
    from hybrid.model.config import ModelConfig
    from hybrid.sharding import MeshConfig, make_mesh
    from hybrid.training import objective, step
    from hybrid.training.config import OptimizerConfig, StepConfig

    config = ModelConfig(
        pattern="LG",
        num_layers=4,
        window_size=5,
        d_model=32,
        num_heads=4,
        num_kv_heads=2,
        num_global_kv_heads=1,
        head_dim=8,
        global_head_dim=16,
        unified_kv=True,
        ffn_dim=48,
        vocab_size=64,
        dtype="float64",
    )
    training = StepConfig(batch_size=16, context_length=12, num_steps=10)
    optimizer = OptimizerConfig(warmup_fraction=0.0)
    host_batch = _batch(step.abstract_batch(16, 12), config.vocab_size)
    host_params = _params(model.abstract(config))

    def programs(sizes, devices):
        mesh = make_mesh(MeshConfig(**sizes), devices)
        return mesh, step.build(config, training, optimizer, mesh)

    def gradient(sizes, devices, num_microbatches=1):
        mesh, program = programs(sizes, devices)
        params, batch = (
            jax.tree.map(lambda value, to: jax.device_put(value, to.sharding), *pair)
            for pair in ((host_params, program.state.params), (host_batch, program.batch))
        )

        def run(params, batch):
            parts = StepConfig(num_microbatches=num_microbatches)
            sums, gradients = objective.loss_and_gradient(config, params, batch, parts)
            return sums.loss.nll / sums.loss.count, gradients

        with jax.set_mesh(mesh):
            loss, gradients = jax.jit(run)(params, batch)
        parts = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in _named(params)}
        return float(loss), {name: jax.device_get(leaf) for name, leaf in _named(gradients)}, parts

    one = gradient({"data": 1}, jax.devices()[:1])
    result = {"dtype": str(one[1]["embedder/embedding"].dtype), "num_leaves": len(one[1])}
    for name, sizes in MESHES.items():
        result[name] = _compare(one, gradient(sizes, jax.devices()))
    result["microbatches"] = _compare(one, gradient({"data": 8}, jax.devices(), 2))
    result["step"] = _step(*programs(MESHES["fsdp=4 tensor=2"], jax.devices()), host_batch)
    print(json.dumps(result))


def _params(shapes):
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape), shapes)


def _batch(shapes, vocab_size):
    """Packed rows whose predicted tokens are very unequal in number."""
    import dataclasses

    import numpy as np

    rng = np.random.default_rng(1)
    rows, time = shapes.tokens.shape
    segments = np.sort(rng.integers(1, 4, (rows, time)), axis=1).astype(np.int32)
    starts = np.array([[np.searchsorted(row, s) for s in row] for row in segments])
    return dataclasses.replace(
        shapes,
        tokens=rng.integers(0, vocab_size, (rows, time), np.int32),
        targets=rng.integers(0, vocab_size, (rows, time), np.int32),
        segment_ids=segments,
        positions=(np.arange(time) - starts).astype(np.int32),
        loss_mask=rng.random((rows, time)) < np.linspace(0, 1, rows)[:, None] ** 2,
    )


def _compare(one, other):
    import numpy as np

    errors = {
        name: float(np.abs(one[1][name] - leaf).max() / np.abs(one[1][name]).max())
        for name, leaf in other[1].items()
        if not name.endswith("layer_scalar")  # not trained here: its gradient is zero
    }
    zeros = {n: float(np.abs(g).max()) for n, g in other[1].items() if n.endswith("layer_scalar")}
    return {
        "loss_error": abs(one[0] - other[0]) / one[0],
        "gradient_errors": errors | zeros,
        "parts": other[2],
    }


def _step(mesh, program, host_batch):
    """Runs one step and looks at what became of its state."""
    import jax
    import numpy as np

    with jax.set_mesh(mesh):
        state = program.init(jax.random.key(0))
        before = jax.device_get(state.params["embedder"]["embedding"])
        batch = jax.tree.map(
            lambda value, to: jax.device_put(value, to.sharding), host_batch, program.batch
        )
        after, _ = program.step(state, batch)
    moved = np.abs(before - jax.device_get(after.params["embedder"]["embedding"])).max()
    same = jax.tree.map(
        lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim),
        after,
        program.state,
    )
    return {
        "all_donated": all(leaf.is_deleted() for leaf in jax.tree.leaves(state)),
        "all_in_place": all(jax.tree.leaves(same)),
        "moved": float(moved),
    }


def _named(tree):
    import jax

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(str(entry.key) for entry in path), leaf


if __name__ == "__main__":
    main()

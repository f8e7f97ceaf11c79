"""State mixers on one device or eight: equal loss and gradients in float64.

The eight devices are simulated, in one process of its own that reports as JSON (run this file as
a script to see it).
"""

import json

import pytest
import simulated
from jax.sharding import AbstractMesh
from model.small_mixers import STATE_LETTERS, keys_of

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.sharding import MESH_AXES

MESHES = {
    "data=8": {"data": 8},
    "fsdp=8": {"data": 1, "fsdp": 8},
    "fsdp=4 tensor=2": {"data": 1, "fsdp": 4, "tensor": 2},
}
MODEL = {
    "num_layers": 4,
    "window_size": 5,
    "d_model": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "ffn_dim": 48,
    "vocab_size": 64,
}


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("letter", STATE_LETTERS)
def test_loss_and_gradients_equal_one_devices(report, letter, mesh):
    assert report[letter][mesh]["loss_error"] < 1e-9
    errors = report[letter][mesh]["gradient_errors"]
    assert {name: error for name, error in errors.items() if not error < 1e-9} == {}


@pytest.mark.parametrize("letter", STATE_LETTERS)
def test_the_tensor_axis_splits_the_mixers_channels(report, letter):
    whole, parts = (report[letter][mesh]["mixer_sizes"] for mesh in ("fsdp=8", "fsdp=4 tensor=2"))
    assert whole.keys() == parts.keys()
    assert sum(parts.values()) < 1.3 * sum(whole.values())  # 1/8 each, or 1/4 where copied


@pytest.mark.parametrize("letter", STATE_LETTERS)
def test_rows_split_over_devices_are_refused(letter):
    keys = MODEL | {"pattern": f"{letter}G"} | keys_of(letter)
    whole = experiment.from_config({"model": keys})
    reason = rf"mesh\.context: splits time, which .* \({letter}\) does not allow"
    with pytest.raises(ConfigError, match=reason):
        whole.check_context(AbstractMesh((2,), ("context",)))


UNEVEN = {
    "delta.num_heads": "D", "kda.num_heads": "K", "rwkv7.num_heads": "W", "rg_lru.num_blocks": "R",
}  # fmt: skip


@pytest.mark.parametrize("key", UNEVEN)
def test_heads_that_the_tensor_axis_does_not_divide_are_refused_by_key(key):
    section, name = key.split(".")
    keys = MODEL | {"pattern": f"{UNEVEN[key]}G", section: {name: 2}}
    whole = experiment.from_config({"model": keys, "training": {"batch_size": 4}})
    sizes = dict.fromkeys(MESH_AXES, 1) | {"tensor": 4}
    said = rf"^model\.{key}: must be a multiple of mesh\.tensor \(4\), got 2"
    with pytest.raises(ConfigError, match=said):
        whole.check_mesh(AbstractMesh(tuple(sizes.values()), tuple(sizes)))


# --- The process with eight devices -----------------------------------------------------------


def main():
    """Prints the report.  Imports here: the environment must be set first."""
    print(json.dumps({letter: _meshes(letter) for letter in STATE_LETTERS}))


def _meshes(letter):
    import jax
    import numpy as np

    config = experiment.from_config(
        {"model": MODEL | {"pattern": f"{letter}G", "dtype": "float64"} | keys_of(letter)}
    ).model
    one, _ = _gradient(config, {"data": 1}, jax.devices()[:1])
    result = {}
    for name, sizes in MESHES.items():
        other, mixer_sizes = _gradient(config, sizes, jax.devices())
        scales = {leaf: max(np.abs(one[leaf]).max(), 1e-9) for leaf in one}
        errors = {leaf: float(np.abs(one[leaf] - other[leaf]).max() / scales[leaf]) for leaf in one}
        loss_error = errors.pop("loss")
        result[name] = {
            "loss_error": loss_error, "gradient_errors": errors, "mixer_sizes": mixer_sizes
        }  # fmt: skip
    return result


def _gradient(config, sizes, devices):
    """Loss and gradients by name, and how many numbers of the mixer a device holds."""
    import math

    import jax
    from test_sharding import _batch, _named, _params

    from hybrid import model
    from hybrid.sharding import MeshConfig, make_mesh
    from hybrid.training import objective, step
    from hybrid.training.config import OptimizerConfig, StepConfig

    mesh = make_mesh(MeshConfig(**sizes), devices)
    training = StepConfig(batch_size=16, context_length=12, num_steps=10)
    program = step.build(config, training, OptimizerConfig(), mesh)
    host = _params(model.abstract(config)), _batch(step.abstract_batch(16, 12), config.vocab_size)
    places = program.state.params, program.batch
    params, batch = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), host, places)

    def run(params, batch):
        sums, gradients = objective.loss_and_gradient(config, params, batch, StepConfig())
        return sums.loss.nll / sums.loss.count, gradients

    with jax.set_mesh(mesh):
        loss, gradients = jax.jit(run)(params, batch)
    held = {
        name: math.prod(leaf.sharding.shard_shape(leaf.shape))
        for name, leaf in _named(params)
        if name.startswith("segments/0/0/mixer")
    }
    return {"loss": jax.device_get(loss)} | dict(_named(jax.device_get(gradients))), held


if __name__ == "__main__":
    main()

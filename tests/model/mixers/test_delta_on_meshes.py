"""The delta-rule mixers on eight simulated devices: loss and gradients as on one, and the refusal
of rows whose time is split.
"""

import json

import pytest
import simulated

MESHES = {"data=8": {"data": 8}, "fsdp=4 tensor=2": {"data": 1, "fsdp": 4, "tensor": 2}}


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_every_gradient_equal_one_devices(report, mesh):
    assert report[mesh]["loss"] == pytest.approx(report["one"]["loss"], rel=1e-9)
    errors = report[mesh]["errors"]
    assert len(errors) > 30
    assert {name: error for name, error in errors.items() if not error < 1e-9} == {}


def test_heads_are_split_by_tensor(report):
    parts = report["fsdp=4 tensor=2"]["parts"]
    assert parts["segments/0/0/mixer/q_proj/kernel"] == [1, 8, 2, 8]
    assert parts["segments/0/0/mixer/q_conv/kernel"] == [1, 4, 16]
    assert parts["segments/0/1/mixer/decay_rate/dt_bias"] == [1, 16]
    assert parts["segments/0/2/mixer/bonus"] == [1, 16]


@pytest.mark.parametrize("letter", "DKW")
def test_rows_split_over_devices_are_refused(letter):
    from jax.sharding import AbstractMesh

    from hybrid import experiment
    from hybrid.config import ConfigError
    from hybrid.sharding import MESH_AXES

    run = experiment.load("configs/tiny.py", {"model.pattern": f"{letter}LLLLG"})
    with pytest.raises(ConfigError, match=rf"^mesh.context: .*\({letter}\)"):
        run.check_mesh(AbstractMesh((1, 1, 1, 8, 1), MESH_AXES))


# --- The process with eight devices -----------------------------------------------------------


def main():
    """Prints the report.  Imports here: the environment must be set first."""
    import jax
    import numpy as np
    from inference.small_models import params_of
    from model.mixer_contract import packed

    from hybrid import experiment, model
    from hybrid.model.params import flat, param_name
    from hybrid.sharding import MeshConfig, batch_sharding, make_mesh, shardings

    sizes = {"d_model": 32, "num_heads": 4, "head_dim": 8, "ffn_dim": 48, "vocab_size": 40}
    whole = {"pattern": "DKW", "last_layer": "any", "num_layers": 3, "dtype": "float64"}
    config = experiment.from_config({"model": whole | sizes | {"layer_scalar": "trained"}}).model

    def gradient(sizes, devices):
        mesh = make_mesh(MeshConfig(**sizes), devices)
        host = params_of(config)
        places = shardings(mesh, model.logical_axes(config), host)
        params = jax.device_put(host, places)
        batch = jax.device_put(packed(batch=8), batch_sharding(mesh))
        with jax.set_mesh(mesh):
            run = jax.jit(jax.value_and_grad(lambda p, b: model.loss_sums(config, p, b).nll))
            loss, gradients = run(params, batch)
        parts = {param_name(p): x.sharding.shard_shape(x.shape) for p, x in flat(params).items()}
        return float(loss), {param_name(p): np.array(x) for p, x in flat(gradients).items()}, parts

    loss, wanted, _ = gradient({"data": 1}, jax.devices()[:1])
    result = {"one": {"loss": loss}}
    for name, sizes in MESHES.items():
        loss, gradients, parts = gradient(sizes, jax.devices())
        errors = {
            n: float(np.abs(x - wanted[n]).max() / np.abs(wanted[n]).max())
            for n, x in gradients.items()
        }
        result[name] = {"loss": loss, "errors": errors, "parts": parts}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Longformer and BigBird on eight devices: rows, parameters and heads split, the same numbers.

Run this file as a script to see the report.
"""

import json

import pytest
import simulated


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("letter", "SB")
def test_loss_gradients_and_steps_are_the_same(report, letter):
    assert max(report[letter].values()) < 1e-10


# --- The process with eight devices -----------------------------------------------------------


def main():
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np
    from inference.small_models import params_of, tokens_of

    from hybrid import experiment, model, sharding
    from hybrid.data.batch import Batch
    from hybrid.inference.config import InferenceConfig
    from hybrid.inference.session import Session

    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    blocks = {"block_size": 2, "window_blocks": 2, "num_global_blocks": 1, "num_random_blocks": 2}
    sections = {"longformer": {"num_global_tokens": 2}, "bigbird": blocks}

    def config_of(letter):
        sizes = {"d_model": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 24}
        keys = {"pattern": f"L{letter}G", "num_layers": 3, "window_size": 4, "vocab_size": 40}
        return experiment.from_config(
            {"model": sizes | keys | sections | {"dtype": "float64"}}
        ).model

    def batch_of(config):
        tokens = jnp.asarray(tokens_of(config, batch=4, time=24))
        segments = jnp.tile(jnp.where(jnp.arange(24) < 7, 1, 2).astype(jnp.int32), (4, 1))
        positions = jnp.tile(jnp.arange(24, dtype=jnp.int32), (4, 1)) - 7 * (segments - 1)
        return Batch(tokens, tokens, segments, positions, jnp.ones((4, 24), bool))

    def run(config, place):
        def loss(params, batch):
            return model.loss_sums(config, params, batch).nll

        params, batch = place(config, params_of(config), batch_of(config))
        value, gradients = jax.jit(jax.value_and_grad(loss))(params, batch)
        session = Session(config, params, InferenceConfig())
        cache, _ = session.prefill(session.empty(4, 20), np.asarray(batch.tokens)[:, :14])
        step = session.prefill(cache, np.asarray(batch.tokens)[:, 14:15], chunk=1)[1]
        return jax.tree.map(np.asarray, {"loss": value, "gradients": gradients, "step": step})

    def on_mesh(config, params, batch):
        names, shapes = model.logical_axes(config), model.abstract(config)
        params = jax.device_put(params, sharding.shardings(mesh, names, shapes))
        return params, jax.device_put(batch, sharding.batch_sharding(mesh))

    report = {}
    for letter in "SB":
        config = config_of(letter)
        one = run(config, lambda _, *arrays: arrays)
        with jax.set_mesh(mesh):
            many = run(config, on_mesh)
        difference = functools.partial(jax.tree.map, lambda a, b: float(np.abs(a - b).max()))
        errors = difference(one, many)
        report[letter] = {name: max(jax.tree.leaves(errors[name])) for name in errors}
    print(json.dumps(report))


if __name__ == "__main__":
    main()

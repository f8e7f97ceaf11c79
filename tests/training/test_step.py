"""The pure step: what a non-finite step leaves alone, and what its metrics mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import model
from hybrid.data.batch import Batch
from hybrid.model.config import ModelConfig
from hybrid.sharding import MeshConfig, make_mesh
from hybrid.training import objective, step
from hybrid.training.config import OptimizerConfig, StepConfig, TrainingConfig
from hybrid.training.optimizer import make_schedule

CONFIG = ModelConfig(
    pattern="LG", num_layers=2, window_size=3, d_model=16, num_heads=2, head_dim=8, ffn_dim=24,
    vocab_size=32,
)  # fmt: skip
STEP = StepConfig(batch_size=4, context_length=8, num_steps=10, z_loss=0.01, num_microbatches=2)
OPTIMIZER = OptimizerConfig(warmup_fraction=0.5, weight_decay=0.5)


def batch(keep=None):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (4, 9)).astype(np.int32)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        segment_ids=np.ones((4, 8), np.int32),
        positions=np.tile(np.arange(8, dtype=np.int32), (4, 1)),
        loss_mask=rng.random((4, 8)) < 0.7 if keep is None else np.full((4, 8), keep),
    )


@pytest.fixture(scope="module")
def program():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield step.build(CONFIG, STEP, OPTIMIZER, mesh)


@pytest.fixture
def state(program):
    return program.init(jax.random.key(0))


def values(tree):
    return jax.tree.map(np.array, tree)


def test_metrics_are_those_of_the_model_on_the_whole_batch(program, state):
    sums = jax.jit(model.loss_sums, static_argnums=0)(CONFIG, state.params, batch())
    _, metrics = program.step(state, batch())
    assert int(metrics["num_tokens"]) == batch().loss_mask.sum() == int(sums.count)
    np.testing.assert_allclose(metrics["loss"], sums.nll / sums.count, rtol=1e-6)
    np.testing.assert_allclose(metrics["z_loss"], 0.01 * sums.z / sums.count, rtol=1e-6)


def test_the_gradient_is_that_of_the_mean_with_its_z_loss(program, state):
    def mean(params, rows):
        sums = model.loss_sums(CONFIG, params, rows)
        return (sums.nll + 0.01 * sums.z) / sums.count

    wanted = jax.jit(jax.grad(mean))(state.params, batch())
    summed = jax.jit(lambda *inputs: objective.loss_and_gradient(CONFIG, *inputs, STEP))
    _, found = summed(state.params, batch())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, wanted)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(program, state):
    broken = dataclasses.replace(
        state, params=jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.nan), state.params)
    )
    before = values((broken.params, broken.opt_state))
    broken, metrics = program.step(broken, batch())
    broken, metrics = program.step(broken, batch())
    jax.tree.map(np.testing.assert_array_equal, values((broken.params, broken.opt_state)), before)
    assert np.isnan(metrics["loss"])
    assert int(metrics["skipped_steps"]) == int(metrics["bad_in_a_row"]) == 2
    assert int(broken.step) == 2
    # The rate is that of the first update, which has not happened yet.
    np.testing.assert_allclose(metrics["learning_rate"], make_schedule(OPTIMIZER, 10)(0))

    mended = dataclasses.replace(broken, params=program.init(jax.random.key(0)).params)
    mended, metrics = program.step(mended, batch())
    assert (int(metrics["skipped_steps"]), int(metrics["bad_in_a_row"])) == (2, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values(mended.params)))


def test_an_update_moves_every_parameter_that_is_trained(program, state):
    before = values(state.params)
    after, metrics = program.step(state, batch())
    moved = jax.tree.map(lambda a, b: bool(np.abs(a - np.asarray(b)).max()), before, after.params)
    still = {
        jax.tree_util.keystr(path)
        for path, changed in jax.tree_util.tree_leaves_with_path(moved)
        if not changed
    }
    assert all("layer_scalar" in name for name in still)
    assert float(metrics["grad_norm"]) > 0


def test_a_batch_without_a_token_to_predict_has_no_loss_and_is_finite(program, state):
    _, metrics = program.step(state, batch(keep=False))
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0.0
    assert int(metrics["skipped_steps"]) == 0


def test_each_microbatch_takes_rows_from_every_device():
    rows = jnp.arange(16)[:, None]
    parts = objective.split_batch(Batch(rows, rows, rows, rows, rows > 0), 4).tokens[:, :, 0]
    assert parts.tolist() == [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]


def changed(config, field):
    """The config with another value of a field."""
    value = getattr(config, field.name)
    others = {bool: not value, tuple: ((1.0, 3),)}
    return dataclasses.replace(config, **{field.name: others.get(type(value), 2 * value or 1)})


@pytest.mark.parametrize("field", dataclasses.fields(TrainingConfig), ids=lambda field: field.name)
def test_runs_share_a_program_unless_they_differ_in_a_field_of_the_step(field):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    one = TrainingConfig(batch_size=4, context_length=8, num_steps=10, num_microbatches=2)
    first = step.build(CONFIG, one.step, OPTIMIZER, mesh)
    second = step.build(CONFIG, changed(one, field).step, OPTIMIZER, mesh)
    assert (first is second) == (field not in dataclasses.fields(StepConfig))

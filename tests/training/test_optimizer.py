"""Optimizers see layers, not stacks; decay spares vectors; schedules fit any number of steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybrid import experiment, model
from hybrid.model.mixers import MIXERS
from hybrid.model.params import flat
from hybrid.training import optimizer
from hybrid.training.config import OptimizerConfig

NUM_LAYERS, NUM_STEPS = 2, 4
AXES = {
    "embedder": {"embedding": ("vocab", "embed")},
    "segments": {
        0: {
            "q_proj": ("layers", "embed", "heads", "head_dim"),
            "o_proj": ("layers", "heads", "head_dim", "embed"),
            "down_proj": ("layers", "ffn", "embed"),
            "block_gate": ("layers", "blocks", "head_dim", None),
            "conv": ("layers", "conv", "heads"),
            "norm": ("layers", "embed"),
            "layer_scalar": ("layers",),
        }
    },
    "final_norm": {"scale": ("embed",)},
}
# down_proj has 128 in two axes, from where on adafactor factors the second moment.
SIZES = {"vocab": 16, "embed": 132, "heads": 2, "head_dim": 6, "ffn": 128}
SIZES |= {"blocks": 3, "conv": 4, None: 6}


def tree(seed, scale=1.0):
    """A tree of normal numbers in the shapes of AXES; layers differ in size by ten."""
    rng = np.random.default_rng(seed)
    grow = 10.0 ** np.arange(NUM_LAYERS)

    def draw(names):
        stacked = names[0] == "layers"
        shape = tuple(SIZES[name] for name in names[stacked:])
        if not stacked:
            return scale * rng.standard_normal(shape)
        layers = rng.standard_normal((NUM_LAYERS, *shape))
        return scale * layers * grow.reshape(-1, *[1] * len(shape))

    return optimizer.map_axes(lambda names: jnp.asarray(draw(names)), AXES)


def unstacked(values):
    """The same tree with the stack as separate segments of one layer."""
    return {
        **values,
        "segments": {
            i: jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], values["segments"][0])
            for i in range(NUM_LAYERS)
        },
    }


def run(config, axes, take):
    transform = optimizer.make_optimizer(config, NUM_STEPS, axes)
    params = take(tree(0))
    state = jax.jit(transform.init)(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(2):
        params, state = step(params, state, take(tree(i + 1, 0.1)))
    return params


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_stack_moves_as_its_layers_would_one_by_one(x64, name):
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup_fraction=0.0, clip_norm=1e9)
    stacked = run(config, AXES, lambda values: values)
    loop_axes = {**AXES, "segments": dict.fromkeys(range(NUM_LAYERS), AXES["segments"][0])}
    single = run(config, loop_axes, unstacked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
        unstacked(stacked),
        single,
    )


def test_adafactor_of_a_whole_stack_would_differ(x64):
    """The planted mistake of the test above: statistics over the stack are others."""
    config = OptimizerConfig(name="adafactor", learning_rate=0.1, warmup_fraction=0.0)
    stacked = run(config, AXES, lambda values: values)
    unnamed = jax.tree.map(
        lambda names: (None, *names[1:]), AXES, is_leaf=lambda x: type(x) is tuple
    )
    mixed = run(config, unnamed, lambda values: values)
    one, other = (t["segments"][0]["down_proj"] for t in (stacked, mixed))
    assert np.abs(one - other).max() > 1e-3


def test_adafactor_sees_each_expert_alone(x64):
    config = OptimizerConfig(name="adafactor", learning_rate=0.1, warmup_fraction=0.0, clip_norm=0)
    names = {"kernel": ("layers", "experts", "embed", "ffn")}
    grow = np.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)

    def moved(take):
        transform = optimizer.make_optimizer(config, NUM_STEPS, names)
        rng = np.random.default_rng(0)
        params, gradient = (
            {"kernel": jnp.asarray(take(grow * rng.standard_normal((2, 3, 130, 128))))}
            for _ in range(2)
        )
        return transform.update(gradient, transform.init(params), params)[0]["kernel"]

    together = moved(lambda leaf: leaf)
    for expert in range(3):
        alone = moved(lambda leaf, e=expert: leaf[:, e : e + 1])
        np.testing.assert_allclose(together[:, expert], alone[:, 0], rtol=1e-9)


def test_muon_updates_have_orthogonal_layers_and_adams_size(x64):
    config = OptimizerConfig(
        name="muon", learning_rate=1.0, warmup_fraction=0.0, weight_decay=0.0, schedule="constant"
    )
    transform = optimizer.make_optimizer(config, NUM_STEPS, AXES)
    params = tree(0)
    updates, _ = jax.jit(transform.update)(tree(1), jax.jit(transform.init)(params), params)
    down = np.asarray(updates["segments"][0]["down_proj"])
    for layer in down:
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() / singular.min() < 40  # of a normal matrix this square: over 100
        assert 0.1 < np.sqrt(np.mean(layer**2)) < 0.3


def test_muon_takes_only_the_kernels_of_the_stack():
    dims = optimizer.muon_dimensions(AXES)
    layer = dims["segments"][0]
    assert dims["embedder"]["embedding"] is None
    assert layer["norm"] is layer["layer_scalar"] is dims["final_norm"]["scale"] is None
    assert layer["q_proj"] == ((1,), (2, 3))
    assert layer["o_proj"] == ((1, 2), (3,))
    assert layer["down_proj"] == ((1,), (2,))


def test_muon_takes_the_kernels_of_every_mixer_but_their_convolutions():
    keys = {"pattern": "".join(MIXERS), "num_layers": len(MIXERS), "last_layer": "any"}
    config = experiment.from_config({"model": keys}).model
    names = flat(model.logical_axes(config)["segments"])
    dims = flat(optimizer.muon_dimensions(model.logical_axes(config))["segments"])
    kernels = {path for path in names if path[-1] == "kernel"}
    convolutions = {path for path in kernels if path[-2].endswith("conv")}
    assert len(convolutions) == 9  # M: 2, R: 1, D and K: 3
    assert {path for path in kernels if dims[path] is None} == convolutions
    for path in kernels - convolutions:  # nothing but layers and blocks is left out
        rest = {0, 1} if path[-2] in ("input_gate", "recurrence_gate") else {0}
        assert {*range(len(names[path]))} - {*dims[path][0], *dims[path][1]} == rest, path


def test_muon_orthogonalises_each_block_by_itself(x64):
    config = OptimizerConfig(name="muon", warmup_fraction=0.0, clip_norm=0)
    axes = {"kernel": ("layers", "blocks", "head_dim", None)}
    params, gradient = np.random.default_rng(0).normal(size=(2, 2, 3, 6, 6))

    def moved(take):
        transform = optimizer.make_optimizer(config, NUM_STEPS, axes)
        here, slope = ({"kernel": jnp.asarray(take(leaf))} for leaf in (params, gradient))
        return transform.update(slope, transform.init(here), here)[0]["kernel"]

    together = moved(lambda leaf: leaf)
    for block in range(3):
        alone = moved(lambda leaf, n=block: leaf[:, n : n + 1])
        np.testing.assert_allclose(together[:, block], alone[:, 0], rtol=1e-9)


def test_muon_moves_a_convolution_as_a_vector_of_the_same_numbers(x64):
    config = OptimizerConfig(name="muon", warmup_fraction=0.0, clip_norm=0, weight_decay=0)
    params, gradient = np.random.default_rng(0).normal(size=(2, NUM_LAYERS, 4, 6))

    def moved(names, shape):
        transform = optimizer.make_optimizer(config, NUM_STEPS, {"kernel": names})
        here, slope = ({"kernel": jnp.asarray(x.reshape(shape))} for x in (params, gradient))
        return transform.update(slope, transform.init(here), here)[0]["kernel"].ravel()

    convolution, vector, matrix = (
        moved(("layers", *names), shape)
        for names, shape in (
            (("conv", "heads"), params.shape),
            (("embed",), (NUM_LAYERS, -1)),
            (("embed", "heads"), params.shape),
        )
    )
    np.testing.assert_array_equal(convolution, vector)
    assert np.abs(convolution - matrix).max() > 1e-3


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_decay_pulls_on_matrices_and_spares_vectors(name):
    config = OptimizerConfig(name=name, learning_rate=0.5, weight_decay=0.1, warmup_fraction=0.0)
    transform = optimizer.make_optimizer(config, NUM_STEPS, AXES)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree(0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(transform.update)(zeros, jax.jit(transform.init)(params), params)
    ratio = jax.tree.map(lambda u, p: float(jnp.abs(u).max() / jnp.abs(p).max()), updates, params)
    for name in ("q_proj", "o_proj", "down_proj"):
        assert ratio["segments"][0][name] == pytest.approx(0.05, rel=1e-4)
    assert ratio["embedder"]["embedding"] == pytest.approx(0.05, rel=1e-4)
    for value in (
        *map(ratio["segments"][0].get, ("norm", "layer_scalar")),
        ratio["final_norm"]["scale"],
    ):
        assert value == 0


def test_the_gradient_is_clipped_by_its_global_norm():
    config = OptimizerConfig(clip_norm=1e-3)
    transform = optimizer.make_optimizer(config, NUM_STEPS, AXES)
    params = tree(0)
    # Adam's first moment after one step is (1 - beta1) times what it was given.
    _, state = jax.jit(transform.update)(tree(1), jax.jit(transform.init)(params), params)
    mu = optax.tree.get(state, "mu")
    assert float(optax.tree.norm(mu)) == pytest.approx(0.1 * 1e-3, rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.05, 1.0])
def test_the_last_rate_is_the_final_share_for_any_fractions(schedule, num_steps, warmup, decay):
    decay = min(decay, 1 - warmup) if schedule == "wsd" else decay
    fractions = {"warmup_fraction": warmup, "decay_fraction": decay, "final_fraction": 0.25}
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, **fractions)
    rates = optimizer.make_schedule(config, num_steps)(jnp.arange(num_steps))
    assert float(rates[-1]) == 0.5
    assert float(rates[0]) > 0


def test_a_constant_rate_of_one_step_is_the_peak():
    config = OptimizerConfig(learning_rate=2.0, schedule="constant", warmup_fraction=1.0)
    assert float(optimizer.make_schedule(config, 1)(0)) == 2.0


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_rates_rise_to_the_peak_and_end_at_the_final_share(schedule, num_steps):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_fraction=0.2)
    rates = np.asarray(optimizer.make_schedule(config, num_steps)(jnp.arange(num_steps)))
    assert (rates > 0).all()
    assert (rates <= 2.0 + 1e-6).all()
    if num_steps == 100:
        np.testing.assert_allclose(rates[[0, 9, 19]], [0.1, 1.0, 2.0], rtol=1e-6)
        final = {"cosine": 0.2, "wsd": 0.2, "constant": 2.0}[schedule]
        assert rates[-1] == pytest.approx(final, rel=1e-5)
    if schedule == "wsd" and num_steps == 100:
        np.testing.assert_allclose(rates[20:79], 2.0, rtol=1e-6)
        np.testing.assert_allclose(np.diff(rates[80:]), -1.8 / 20, rtol=1e-3)


def test_every_key_of_the_section_changes_something():
    names = {field.name for field in dataclasses.fields(OptimizerConfig)}
    source = __import__("inspect").getsource(optimizer)
    # `trained.py` reads which parameters are trained.
    assert {name for name in names if f"config.{name}" not in source} == {"freeze"}

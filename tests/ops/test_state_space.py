"""State-space duality by chunks equals the recurrence one token after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.costs.flops import count_flops
from hybrid.ops.state_space import Inputs, state_space, step_by_step

BATCH, HEADS, HEAD_DIM, GROUPS, STATE_DIM = 2, 4, 3, 2, 5
CHUNK = 4
# Tokens that begin a document, a tuple a row: inside chunks, at their edges, the first and last.
FIRSTS = {
    "none": ((), ()),
    "inside": ((2, 5), (6,)),
    "at edges": ((4,), (3, 8)),
    "ends": ((0,), (12,)),
    "twice in a chunk": ((5, 6), (0, 1, 2, 3)),
}


def case(time=13, firsts=((), ()), strongest=1.0, dtype=jnp.float64):
    """Inputs and a state; log decays between −strongest and 0."""
    rng = np.random.default_rng(time)
    is_first = np.zeros((BATCH, time), bool)
    for row, tokens in enumerate(firsts):
        is_first[row, [token for token in tokens if token < time]] = True
    arrays = (
        rng.normal(size=(BATCH, time, HEADS, HEAD_DIM)),
        -strongest * rng.uniform(size=(BATCH, time, HEADS)),
        rng.normal(size=(BATCH, time, GROUPS, STATE_DIM)),
        rng.normal(size=(BATCH, time, GROUPS, STATE_DIM)),
    )
    inputs = Inputs(*(jnp.asarray(each, dtype) for each in arrays), jnp.asarray(is_first))
    return inputs, jnp.asarray(rng.normal(size=(BATCH, HEADS, HEAD_DIM, STATE_DIM)), dtype)


def loss(function, floats, is_first):
    """A number on which every y and every entry of the last state has an effect of its own."""
    *arrays, state = floats
    results = function(Inputs(*arrays, is_first), state)
    weights = (jnp.cos(jnp.arange(each.size, dtype=each.dtype)) for each in results)
    return sum(
        jnp.sum(each * weight.reshape(each.shape))
        for each, weight in zip(results, weights, strict=True)
    )


@functools.partial(jax.jit, static_argnums=0)
def everything(function, inputs, state):
    """y, the last state, and every gradient."""
    gradients = jax.grad(functools.partial(loss, function))((*inputs[:4], state), inputs.is_first)
    return function(inputs, state), gradients


chunked = functools.partial(state_space, chunk_size=CHUNK)


def compare(inputs, state, tolerance=1e-9):
    """Chunks against steps."""
    ours, wanted = everything(chunked, inputs, state), everything(step_by_step, inputs, state)
    for each, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(each, other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("firsts", FIRSTS)
@pytest.mark.usefixtures("x64")
def test_chunks_equal_steps(firsts):
    compare(*case(firsts=FIRSTS[firsts]))


@pytest.mark.parametrize("time", [1, 3, 4, 5, 8])
@pytest.mark.usefixtures("x64")
def test_chunks_equal_steps_at_any_length(time):
    compare(*case(time, FIRSTS["inside"]))


def test_float32_is_close():
    compare(*case(firsts=FIRSTS["inside"], dtype=jnp.float32), 1e-4)


@pytest.mark.parametrize("strongest", [30.0, 1e4])
def test_strong_decays_stay_finite_and_close(strongest):
    inputs, state = case(firsts=FIRSTS["inside"], strongest=strongest, dtype=jnp.float32)
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything(chunked, inputs, state))
    )
    compare(inputs, state, 1e-4)


@pytest.mark.parametrize("cut", [1, 4, 6, 12])
@pytest.mark.usefixtures("x64")
def test_two_calls_with_the_state_between_equal_one(cut):
    inputs, state = case(firsts=FIRSTS["inside"])
    first, between = chunked(Inputs(*(each[:, :cut] for each in inputs)), state)
    rest, last = chunked(Inputs(*(each[:, cut:] for each in inputs)), between)
    y, whole = chunked(inputs, state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), y, atol=1e-12)
    np.testing.assert_allclose(last, whole, atol=1e-12)


def test_padding_leaves_the_state_as_it_is():
    inputs, state = case(dtype=jnp.float32)
    still = inputs._replace(x=0 * inputs.x, log_decay=0 * inputs.log_decay)
    np.testing.assert_array_equal(chunked(still, state)[1], state)


@pytest.mark.parametrize("first", [4, 6])
def test_a_document_is_independent_of_what_stands_before_it(first):
    inputs, state = case(firsts=((first,), (first,)), dtype=jnp.float32)
    other = inputs._replace(x=inputs.x.at[:, :first].set(1e30))
    ours, theirs = chunked(inputs, state), chunked(other, state + 1e30)
    np.testing.assert_array_equal(ours[0][:, first:], theirs[0][:, first:])
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_work_and_memory_are_linear_in_length():
    def compiled(time):
        inputs, state = jax.eval_shape(lambda: case(time, dtype=jnp.float32))
        run = functools.partial(everything, functools.partial(state_space, chunk_size=32))
        return jax.jit(run).lower(inputs, state).compile()

    sizes = [compiled(time) for time in (256, 512, 1024)]
    flops = [count_flops(each.as_text()) for each in sizes]
    assert flops[2] - flops[1] == 2 * (flops[1] - flops[0]) > 0
    memory = [each.memory_analysis().temp_size_in_bytes for each in sizes]
    assert memory[2] <= 2.1 * memory[1]

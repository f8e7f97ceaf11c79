"""The linear recurrence by chunks, and its backward, equal one token after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.costs.flops import count_flops
from hybrid.ops.linear_recurrence import linear_recurrence

BATCH, WIDTH = 2, 3


def inputs(time, dtype=jnp.float64, strongest=1.0):
    """Decays a in (0, strongest], some of them 0 as where a document begins, x and a state."""
    rng = np.random.default_rng(time)
    a = strongest * rng.uniform(size=(BATCH, time, WIDTH))
    a[0, [0, time // 2]] = 0
    a[1, time // 3] = 0
    x, state = rng.normal(size=a.shape), rng.normal(size=(BATCH, WIDTH))
    return tuple(jnp.asarray(each, dtype) for each in (a, x, state))


def one_by_one(a, x, state):
    """h_t = a_t·h_{t−1} + x_t as a loop, which jax derives."""
    rows = []
    for t in range(x.shape[1]):
        state = a[:, t] * state + x[:, t]
        rows.append(state)
    return jnp.stack(rows, axis=1)


def loss(function, *arrays):
    """A number on which every h has an effect of its own."""
    h = function(*arrays)
    return jnp.sum(h * jnp.cos(jnp.arange(h.size, dtype=h.dtype)).reshape(h.shape))


def everything(function, *arrays):
    """h, and the gradients of a, x and the state."""
    return function(*arrays), jax.grad(functools.partial(loss, function), (0, 1, 2))(*arrays)


@pytest.mark.parametrize("size", [None, 1, 4, 64])
@pytest.mark.parametrize("time", [1, 8, 13])
@pytest.mark.usefixtures("x64")
def test_values_and_gradients_equal_one_by_one(time, size):
    arrays = inputs(time)
    ours = functools.partial(linear_recurrence, chunk_size=size)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12),
        jax.jit(functools.partial(everything, ours))(*arrays),
        jax.jit(functools.partial(everything, one_by_one))(*arrays),
    )


@pytest.mark.parametrize("size", [1, 4])
def test_float32_is_close(size):
    arrays = inputs(13, jnp.float32)
    np.testing.assert_allclose(
        linear_recurrence(*arrays, chunk_size=size), one_by_one(*arrays), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("cut", [1, 4, 6, 12])
@pytest.mark.usefixtures("x64")
def test_two_calls_with_the_state_between_equal_one(cut, size):
    a, x, state = inputs(13)
    first = linear_recurrence(a[:, :cut], x[:, :cut], state, chunk_size=size)
    rest = linear_recurrence(a[:, cut:], x[:, cut:], first[:, -1], chunk_size=size)
    whole = linear_recurrence(a, x, state, chunk_size=size)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), whole, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_a_row_is_independent_of_what_stands_before_a_reset(size):
    a, x, state = inputs(12, jnp.float32)
    a = a.at[:, 6].set(0)
    other = linear_recurrence(a, x.at[:, :6].set(1e30), state + 1, chunk_size=size)
    ours = linear_recurrence(a, x, state, chunk_size=size)
    np.testing.assert_array_equal(ours[:, 6:], other[:, 6:])


@pytest.mark.parametrize("size", [1, 32])
def test_work_and_memory_are_linear_in_length(size):
    def compiled(time):
        arrays = [jax.ShapeDtypeStruct((1, time, 8), jnp.float32)] * 2
        arrays.append(jax.ShapeDtypeStruct((1, 8), jnp.float32))
        run = functools.partial(linear_recurrence, chunk_size=size)
        return jax.jit(jax.grad(functools.partial(loss, run), (0, 1, 2))).lower(*arrays).compile()

    short, long = compiled(512), compiled(1024)
    assert count_flops(long.as_text()) == 0  # no product of matrices
    memory = [each.memory_analysis().temp_size_in_bytes for each in (short, long)]
    assert memory[1] <= 2.1 * memory[0]

"""The delta rule in chunks: values, states and gradients are those of (1), step by step."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.costs.flops import count_flops
from hybrid.ops import delta_rule as ops

BATCH, HEADS, HEAD, VALUE = 2, 3, 8, 4
CHUNK = 16  # of the tests; lengths below are its edges and what is beside them
FASTEST = 0.6
RULES = ("scalar", "channel", "general")


def inputs(rule, time, *, decay=1.0, dtype="float64", resets=()):
    """Arguments by name, with decays of up to e^−decay a token."""
    rng = np.random.default_rng(time)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def share(*shape):
        return jnp.asarray(rng.uniform(size=shape), dtype)

    row = (BATCH, time, HEADS)
    q, k, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in normal(3, *row, HEAD))
    given = {"q": q, "k": k, "v": normal(*row, VALUE), "state": normal(BATCH, HEADS, HEAD, VALUE)}
    if rule == "general":
        given |= {"log_decay": -FASTEST * share(*row, HEAD), "a": -b * share(*row, HEAD), "b": b}
    else:
        given |= {"log_decay": -decay * share(*row, 1 if rule == "scalar" else HEAD)}
        given |= {"beta": share(*row)}
    is_first = np.zeros((BATCH, time), bool)
    is_first[0, [at for at in resets if at < time]] = True
    return given, jnp.asarray(is_first)


def in_chunks(rule, given, is_first, size=CHUNK):
    """By the op."""
    if rule == "general":
        run = functools.partial(ops.general_delta_rule, fastest=FASTEST)
    else:
        run = ops.delta_rule
    return run(**given, is_first=is_first, chunk_size=size)


def by_steps(rule, given, is_first):
    """By equation (1)."""
    given = dict(given)
    if rule != "general":
        beta = given.pop("beta")[..., None]
        given |= {"a": given["k"], "b": -beta * jnp.exp(given["log_decay"]) * given["k"]}
        given["v"] = beta * given["v"]
    return ops.step_by_step(**given, is_first=is_first)


def gradients(run, rule, given, is_first):
    """Of a sum with fixed weights over values and state, by argument."""

    def total(given):
        result = run(rule, given, is_first)
        return sum(jnp.vdot(jnp.cos(jnp.arange(x.size)).reshape(x.shape), x) for x in result)

    return jax.jit(jax.grad(total))(given)


def assert_equal(rule, given, is_first, tolerance):
    for got, wanted in zip(
        jax.jit(functools.partial(in_chunks, rule))(given, is_first),
        jax.jit(functools.partial(by_steps, rule))(given, is_first),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=tolerance)
    got, wanted = (gradients(run, rule, given, is_first) for run in (in_chunks, by_steps))
    for name in given:
        np.testing.assert_allclose(
            got[name], wanted[name], atol=tolerance, rtol=tolerance, err_msg=name
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("time", [1, 7, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_chunks_equal_steps(rule, time):
    assert_equal(rule, *inputs(rule, time), 1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "resets", [(0,), (CHUNK,), (CHUNK - 1,), (3, 4, CHUNK + 5)], ids=lambda at: str(at)
)
def test_documents_begin_with_a_state_of_zeros(rule, resets):
    given, is_first = inputs(rule, 2 * CHUNK + 3, resets=resets)
    assert_equal(rule, given, is_first, 1e-9)
    start = resets[-1]
    alone = {name: x[:, start:] for name, x in given.items() if name != "state"}
    alone |= {"state": jnp.zeros_like(given["state"])}
    none = jnp.zeros_like(is_first[:, start:])
    values, wanted = in_chunks(rule, given, is_first), in_chunks(rule, alone, none)
    np.testing.assert_allclose(values.values[0, start:], wanted.values[0], atol=1e-9)
    np.testing.assert_allclose(values.state[0], wanted.state[0], atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_float32_is_near(rule):
    given, is_first = inputs(rule, 2 * CHUNK + 3, dtype="float32", resets=(5,))
    assert_equal(rule, given, is_first, 1e-4)


@pytest.mark.parametrize("rule", ["scalar", "channel"])
@pytest.mark.parametrize("decay", [20.0, 300.0])
def test_strong_decays_are_finite_and_right_in_float32(rule, decay):
    given, is_first = inputs(rule, 5 * CHUNK, decay=decay, dtype="float32")
    given["log_decay"] = given["log_decay"].at[:, ::3].multiply(1e-3)  # weak ones between
    assert_equal(rule, given, is_first, 1e-3)
    for name, gradient in gradients(in_chunks, rule, given, is_first).items():
        assert np.isfinite(gradient).all(), name


@pytest.mark.usefixtures("x64")
def test_a_repeated_key_without_decay_loses_no_digits():
    """L of −1 below the diagonal, whose powers grow to binomials."""
    given, is_first = inputs("scalar", 64)
    given |= {"k": jnp.broadcast_to(given["k"][:, :1], given["k"].shape)}
    given |= {"beta": jnp.ones_like(given["beta"]), "log_decay": 0 * given["log_decay"]}
    got, wanted = in_chunks("scalar", given, is_first, 64), by_steps("scalar", given, is_first)
    np.testing.assert_allclose(got.values, wanted.values, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1, 5, CHUNK, CHUNK + 1])
def test_a_row_may_be_cut_anywhere(rule, size):
    given, is_first = inputs(rule, 2 * CHUNK + 3, resets=(4,))
    wanted = in_chunks(rule, given, is_first)
    state, values = given["state"], []
    run = jax.jit(functools.partial(in_chunks, rule))
    for start in range(0, 2 * CHUNK + 3, size):
        part = {name: x[:, start : start + size] for name, x in given.items() if name != "state"}
        result = run(part | {"state": state}, is_first[:, start : start + size])
        state, values = result.state, [*values, result.values]
    np.testing.assert_allclose(jnp.concatenate(values, axis=1), wanted.values, atol=1e-9)
    np.testing.assert_allclose(state, wanted.state, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_work_and_memory_are_linear_and_as_counted(rule):
    def compiled(time):
        given, is_first = inputs(rule, time, dtype="float32")
        run = jax.jit(functools.partial(in_chunks, rule, size=ops.CHUNK))
        return run.lower(given, is_first).compile()

    short, long = (compiled(time) for time in (256, 512))
    flops = [count_flops(each.as_text()) for each in (short, long)]
    assert flops[1] == pytest.approx(2 * flops[0], rel=0.01)
    memory = [each.memory_analysis().temp_size_in_bytes for each in (short, long)]
    assert memory[1] <= 2.1 * memory[0]
    kind = {"has_channels": rule == "channel", "is_general": rule == "general"}
    planned = BATCH * HEADS * 256 * ops.flops_per_token(256, HEAD, VALUE, **kind)
    assert flops[0] == pytest.approx(planned, rel=0.02)


def test_chunks_are_no_longer_than_rows():
    assert [ops.chunk_length(time) for time in (1, 2, 3, 63, 64, 10_000)] == [1, 2, 4, 64, 64, 64]
    assert math.log2(ops.CHUNK).is_integer()

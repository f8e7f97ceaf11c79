"""The HLO walk counts what was multiplied, in loops and branches, and refuses what it can't see."""

import jax
import jax.numpy as jnp
import pytest

from hybrid.costs.hlo import UnknownCost, count_flops

MATRIX = jax.ShapeDtypeStruct((32, 32), jnp.float32)
ONE = 2 * 32**3


def flops(function, *shapes):
    return count_flops(jax.jit(function).lower(*shapes).compile().as_text())


def test_dots_with_batch_and_several_contracted_axes():
    a = jax.ShapeDtypeStruct((3, 8, 16, 4), jnp.float32)
    b = jax.ShapeDtypeStruct((3, 16, 4, 32), jnp.float32)
    assert flops(lambda a, b: jnp.einsum("bmkh,bkhn->bmn", a, b), a, b) == 2 * 3 * 8 * 64 * 32


def test_nested_loops_multiply():
    def run(x, w):
        def inner(x, _):
            return jnp.tanh(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=5)[0] @ w, None

        return jax.lax.scan(outer, x, length=7)[0]

    assert flops(run, MATRIX, MATRIX) == 7 * 6 * ONE


def test_the_compilers_own_figure_counts_a_body_once():
    def run(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=9)[0]

    compiled = jax.jit(run).lower(MATRIX, MATRIX).compile()
    assert compiled.cost_analysis()["flops"] < 2 * ONE
    assert count_flops(compiled.as_text()) == 9 * ONE


def test_gradients_of_a_loop_count():
    def loss(w, x):
        return jnp.sum(jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=4)[0])

    assert flops(jax.grad(loss, (0, 1)), MATRIX, MATRIX) == 4 * 3 * ONE


def test_a_conditional_counts_its_most_expensive_branch():
    def run(flag, x, w):
        return jax.lax.cond(flag, lambda: jnp.tanh(x @ w) @ w, lambda: x @ w)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert flops(run, flag, MATRIX, MATRIX) == 2 * ONE


def test_convolutions_count_the_kernel_that_an_output_meets():
    x = jax.ShapeDtypeStruct((1, 16, 20, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 5, 6, 8), jnp.float32)

    def run(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    assert flops(run, x, kernel) == 2 * (16 * 20 * 8) * (3 * 5 * 6)


def test_a_loop_without_the_compilers_count_is_read_from_its_condition():
    def run(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=9)[0]

    text = jax.jit(run).lower(MATRIX, MATRIX).compile().as_text()
    assert "known_trip_count" in text
    assert count_flops(text.replace("known_trip_count", "no_longer_known")) == 9 * ONE


def test_a_loop_whose_length_is_data_is_refused():
    def run(n, x, w):
        return jax.lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ w), x)

    with pytest.raises(UnknownCost, match="depends on data"):
        flops(run, jax.ShapeDtypeStruct((), jnp.int32), MATRIX, MATRIX)


def test_a_kernel_that_hides_its_products_is_refused():
    text = """HloModule m
ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %c = f32[8,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_call"
}
"""
    with pytest.raises(UnknownCost, match="tpu_custom_call"):
        count_flops(text)

"""The HLO walk counts what was multiplied, in loops and branches, and refuses what it can't see."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.costs.flops import count_flops
from hybrid.costs.hlo import UnknownCost

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


def test_convolutions_count_the_taps_that_meet_an_input():
    x = jax.ShapeDtypeStruct((1, 16, 20, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 5, 6, 8), jnp.float32)

    def run(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    # On a padded edge of 16 rows 3 taps meet 3 · 16 - 2 inputs, of 20 columns 5 meet 5 · 20 - 6.
    assert flops(run, x, kernel) == 2 * 8 * 6 * (3 * 16 - 2) * (5 * 20 - 6)


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


def test_a_pallas_kernel_says_what_it_costs():
    text = """HloModule m
ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %k = f32[8,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"4096","transcendentals":"0"}}}
}
"""  # noqa: E501
    assert count_flops(text) == 4096


def test_rows_of_a_ragged_dot_meet_one_matrix_each():
    text = """HloModule m
ENTRY %main (s: s32[8], x: bf16[64,16], w: bf16[8,16,32]) -> bf16[64,32] {
  %s = s32[8]{0} parameter(0)
  %x = bf16[64,16]{1,0} parameter(1)
  %w = bf16[8,16,32]{2,1,0} parameter(2)
  %ragged-dot-metadata.2 = (s32[9]{0}, s32[1]{0}) custom-call(%s), custom_call_target="tpu_custom_call"
  %ends = s32[9]{0} get-tuple-element(%ragged-dot-metadata.2), index=0
  ROOT %ragged-dot-none.1 = bf16[64,32]{1,0} custom-call(%ends, %x, %w), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501
    assert count_flops(text) == 2 * 64 * 32 * 16


# --- Convolutions: pairs of a result and a tap that meet an input ------------------------------

AXIS = st.fixed_dictionaries(
    {
        "inputs": st.integers(1, 6),
        "taps": st.integers(1, 5),
        "stride": st.integers(1, 3),
        "low": st.integers(-2, 5),
        "high": st.integers(-2, 5),
        "hole": st.integers(1, 4),
        "spread": st.integers(1, 4),
    }
)


def results(axis):
    """Length of the result along an axis, and the places of the dilated input."""
    places = (axis["inputs"] - 1) * axis["hole"] + 1
    width = (axis["taps"] - 1) * axis["spread"] + 1
    padded = places + axis["low"] + axis["high"]
    return (padded - width) // axis["stride"] + 1 if padded >= width else 0, places


def pairs(axis):
    """Counted one by one."""
    count, places = results(axis)
    looks = [
        i * axis["stride"] + k * axis["spread"] - axis["low"]
        for i in range(count)
        for k in range(axis["taps"])
    ]
    return sum(0 <= place < places and place % axis["hole"] == 0 for place in looks)


def convolution(axes, inputs, kernel, result):
    """A program of one convolution over `axes`, its batch and features given."""
    lengths = [results(axis)[0] for axis in axes]
    digits = "".join(str(number) for number in range(len(axes)))
    join = lambda form: "x".join(form.format(**axis) for axis in axes)  # noqa: E731
    sizes = lambda *items: ",".join(map(str, items))  # noqa: E731
    window = (
        f"size={join('{taps}')} stride={join('{stride}')} pad={join('{low}_{high}')} "
        f"lhs_dilate={join('{hole}')} rhs_dilate={join('{spread}')} rhs_reversal={join('1')}"
    )
    return f"""HloModule m
ENTRY %main (x: f32[1], k: f32[1]) -> f32[1] {{
  %x = f32[{sizes(inputs[0], *(axis["inputs"] for axis in axes), inputs[1])}]{{0}} parameter(0)
  %k = f32[{sizes(*(axis["taps"] for axis in axes), *kernel)}]{{0}} parameter(1)
  ROOT %c = f32[{sizes(result[0], *lengths, result[1])}]{{0}} convolution(%x, %k), \
window={{{window}}}, dim_labels=b{digits}f_{digits}io->b{digits}f, feature_group_count=2
}}
"""


@given(st.lists(AXIS, min_size=1, max_size=2))
def test_taps_on_padding_and_on_holes_are_no_work(axes):
    """Two groups of features: the kernel holds the input features of one."""
    met = math.prod(pairs(axis) for axis in axes)
    assert count_flops(convolution(axes, (3, 4), (2, 6), (3, 6))) == 2 * 3 * 6 * 2 * met


def test_a_product_over_heads_that_is_written_as_a_convolution_costs_as_its_einsum():
    """[8, 32, 64]·[32, 64, 16] over heads and widths: with the heads as an axis of one output."""
    heads = {"inputs": 32, "taps": 32, "stride": 1, "low": 0, "high": 0, "hole": 1, "spread": 1}
    assert count_flops(convolution([heads], (8, 64), (64, 16), (8, 16))) == 2 * 8 * 32 * 64 * 16


def test_a_product_a_head_at_a_time_meets_one_tap_a_result():
    """32 heads, each with a kernel of its own: `pad=31_31 rhs_reversal=1`, as a TPU writes it."""
    heads = {"inputs": 1, "taps": 32, "stride": 1, "low": 31, "high": 31, "hole": 1, "spread": 1}
    assert count_flops(convolution([heads], (8, 64), (64, 16), (8, 16))) == 2 * 8 * 32 * 64 * 16


def test_a_compiled_convolution_counts_as_its_taps_do():
    x = jax.ShapeDtypeStruct((2, 9, 8, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 5, 3, 8), jnp.float32)
    rows = {"inputs": 9, "taps": 3, "stride": 2, "low": 2, "high": 1, "hole": 1, "spread": 2}
    columns = {"inputs": 8, "taps": 5, "stride": 1, "low": 4, "high": 3, "hole": 3, "spread": 1}

    def run(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 1),
            ((2, 1), (4, 3)),
            lhs_dilation=(1, 3),
            rhs_dilation=(2, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    assert flops(run, x, kernel) == 2 * (2 * 8) * 3 * pairs(rows) * pairs(columns)

"""All CPU implementations keep the contract; the door chooses, explains and refuses."""

import functools
import logging

import attention_contract as contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.costs.flops import count_flops
from hybrid.ops import dispatch
from hybrid.ops.attention import ATTENTION, AttentionRequest, attend
from hybrid.ops.band import Band
from hybrid.ops.dispatch import Implementation, Operation, Unsupported

SERVED = {"local": ["chunked", "banded"], "global": ["chunked"]}


class TestReference(contract.AttentionBehaviour):
    implementation = "reference"


class TestChunked(contract.AttentionContract):
    implementation = "chunked"


class TestBanded(contract.AttentionContract):
    implementation = "banded"

    def serves(self, case):
        return case.window_size is not None

    def serves_positions(self):
        return False


@st.composite
def cases(draw):
    """Sizes that meet no multiple of a block, windows from 1 to beyond the row."""
    time = draw(st.sampled_from([1, 17, 63, 130, 300]))
    window_size = draw(st.sampled_from([None, 1, 5, 32, 129, 400]))
    heads, kv_heads = draw(st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]))
    return Case(
        "random",
        draw(st.sampled_from([1, 2])),
        time,
        heads,
        kv_heads,
        draw(st.sampled_from([4, 10])),
        window_size=window_size,
        documents=draw(st.sampled_from([0, 1, 5])),
        softcap=draw(st.sampled_from([None, 4.0])),
        scale=draw(st.sampled_from([1.0, 0.3])),
        sinks=draw(st.booleans()),
        offset=draw(st.sampled_from([0, 1, 40, 300])),
        extra_keys=draw(st.sampled_from([0, 13])),
    )


@settings(max_examples=10, deadline=None, derandomize=True)
@given(case=cases(), seed=st.integers(0, 99))
def test_random_shapes_equal_the_oracle(case, seed):
    with jax.enable_x64(True):
        wanted = contract.run_case(case, "reference", jnp.float64, seed)
        for name in SERVED["global" if case.window_size is None else "local"]:
            got = contract.run_case(case, name, jnp.float64, seed)
            contract.assert_equal_to_the_oracle(got, wanted, contract.FLOAT64)


def test_keys_may_be_the_values(x64):
    arrays = Case("shared", 1, 300, 2, 1, 8).arrays(jnp.float64)

    def loss(x, name):
        out = attend(arrays["q"], x, x, Band.of_row(40), implementation=name)
        return jnp.sum(out * arrays["dout"])

    got, wanted = (jax.grad(loss)(arrays["k"], name) for name in ("chunked", "reference"))
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_softmax_of_bfloat16_is_summed_in_float32_over_long_rows():
    # 40 000 equal weights: summed in bfloat16 they would stop at 256, giving values near 156.
    time = 40_000
    zeros, ones = jnp.zeros((1, time, 1, 2), jnp.bfloat16), jnp.ones((1, time, 1, 2), jnp.bfloat16)
    band = Band(
        q_positions=jnp.full((1, 8), time, jnp.int32),
        kv_positions=jnp.arange(time, dtype=jnp.int32)[None],
    )
    for name in ("chunked", "reference"):
        out = attend(zeros[:, :8], zeros, ones, band, implementation=name)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(out, np.float32), 1)


def test_bfloat16_is_about_as_close_to_float64_as_the_oracle_is():
    case = Case("bfloat16", 1, 300, 4, 1, 16, window_size=40, documents=2)
    # 3: δ of the backward comes from the rounded output, as in every flash attention.
    contract.assert_as_close_in_bfloat16(case, "chunked", 3)


@pytest.mark.parametrize("name", ["chunked", "banded"])
def test_scan_checkpoint_and_sharded_jit_change_nothing(name, x64):
    case = Case("transforms", 2, 100, 2, 1, 8, window_size=20, documents=3)
    arrays, band = case.arrays(jnp.float64), case.band()
    call = functools.partial(attend, implementation=name)

    def twice(q, k, v):
        layer = jax.checkpoint(lambda x: call(x, k, v, band))
        return jnp.sum(jax.lax.scan(lambda x, _: (layer(x), None), q, None, length=2)[0] ** 2)

    def plain(q, k, v):
        return jnp.sum(call(call(q, k, v, band), k, v, band) ** 2)

    qkv = [arrays[letter] for letter in "qkv"]
    got = jax.jit(jax.grad(twice, (0, 1, 2)))(*qkv)
    for a, b in zip(got, jax.grad(plain, (0, 1, 2))(*qkv), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("window_size", [128, 600])
@pytest.mark.parametrize("offset", [127, 4096])
def test_a_local_layer_costs_no_more_for_the_keys_that_its_window_does_not_reach(
    window_size, offset
):
    """Counted in compiled programs, forward and backward."""

    def flops(band, num_keys):
        q, k = (jnp.zeros((1, length, 1, 16)) for length in (512, num_keys))

        def loss(q, k, v):
            return jnp.sum(attend(q, k, v, band, implementation="chunked") ** 2)

        return count_flops(jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k).compile().as_text())

    # Each query and the keys that it can reach: two products of 16 forward, five backward.
    num_keys = 512 + offset
    reach = min(offset, window_size - 1)
    pairs = sum(min(window_size, reach + i + 1) for i in range(512))
    got = flops(Band(window_size, offset=offset), num_keys)
    assert pairs * 7 * 2 * 16 < got
    # Tiles of 128 queries reach over at most one more tile of keys; wide windows have tiles of 512.
    over = 2.5 if window_size == 128 else 2.0
    assert got < over * pairs * 7 * 2 * 16
    if offset > window_size:
        near = Band(window_size, offset=window_size)
        assert got == flops(near, 512 + window_size)


def test_an_offset_is_refused_below_zero_and_beside_positions():
    with pytest.raises(ValueError, match="offset: must be at least 0, got -1"):
        Band(offset=-1)
    places = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="offset: positions are given"):
        Band(q_positions=places, kv_positions=places, offset=2)


# --- The door ---------------------------------------------------------------------------------


def test_auto_takes_the_first_that_serves_and_says_why_others_do_not(caplog):
    def refuse(request):
        raise Unsupported(f"head_dim {request.head_dim} > 32")

    caplog.set_level(logging.INFO, logger="hybrid")
    small = Implementation("small", attend, refuse)
    operation = Operation("attention", (small, Implementation("any", attend)))
    request = contract.request(head_dim=33)
    assert operation.choose(request).name == "any"
    assert operation.explain(request) == {"small": "head_dim 33 > 32", "any": None}
    with pytest.raises(Unsupported, match=r"^small: head_dim 33 > 32$"):
        operation.choose(request, "small")
    with pytest.raises(Unsupported, match=r"^small: head_dim 33 > 32$"):
        Operation("attention", (small,)).choose(request)
    line = "attention of local layers [t=1024, s=1024, h=33, float32, cpu]: any"
    assert caplog.messages == [f"{line} (small: head_dim 33 > 32)"]


def test_a_named_implementation_never_falls_back():
    request = contract.request(window_size=None)
    with pytest.raises(Unsupported, match="banded: needs a window"):
        ATTENTION.choose(request, "banded")
    with pytest.raises(Unsupported, match="banded: the band gives explicit positions"):
        ATTENTION.choose(contract.request(is_regular=False), "banded")
    with pytest.raises(ValueError, match="no implementation 'flash'; known: auto, pallas, cudnn"):
        ATTENTION.choose(request, "flash")


def test_choices_are_those_of_the_backend_that_is_used():
    def check(request):
        if request.backend != "tpu":
            raise Unsupported("a kernel for TPUs")

    kernel = Implementation("kernel", attend, check)
    operation = Operation("attention", (kernel, *ATTENTION.implementations))
    q, band = jnp.zeros((1, 4, 1, 2)), Band.of_row()
    with dispatch.use_backend("tpu"):
        there = AttentionRequest.of(q, q, band, None)
    here = AttentionRequest.of(q, q, band, None)
    assert [operation.choose(request).name for request in (there, here)] == ["kernel", "chunked"]


def test_every_backend_gives_the_same(x64):
    """What CPUs are given for their compiler's sake changes no number."""
    case = Case("backends", 1, 100, 4, 2, 8, window_size=20, documents=2)
    arrays = case.arrays(jnp.float64)

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, case.band(), implementation="chunked") * arrays["dout"])

    qkv = [arrays[name] for name in "qkv"]
    wanted = jax.grad(loss, (0, 1, 2))(*qkv)
    with dispatch.use_backend("tpu"):
        got = jax.grad(loss, (0, 1, 2))(*qkv)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_choice_is_logged_once_a_shape(caplog):
    caplog.set_level(logging.INFO, logger="hybrid")
    for length in (1031, 1031, 1033):
        ATTENTION.choose(contract.request(query_length=length, key_length=length))
    assert [record.getMessage() for record in caplog.records] == [
        f"attention of local layers [t={t}, s={t}, h=64, float32, cpu]: chunked "
        "(pallas: its kernels are compiled for TPUs; cudnn: its kernels are for NVIDIA's GPUs)"
        for t in (1031, 1033)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": (3, 8, 2, 4)}, r"k: batch is 3, q has 2 \(q is \[b, t, n, h\]\)"),
        ({"v": (2, 8, 2, 5)}, "v: head_dim is 5, q has 4"),
        (
            {"k": (2, 7, 2, 4), "v": (2, 7, 2, 4)},
            "k: length is 7, q's 8 tokens from key 0 on need 8",
        ),
        ({"v": (2, 7, 2, 4)}, "v: length is 7, k has 8"),
        ({"v": (2, 8, 1, 4)}, "v: number of heads is 1, k has 2"),
        ({"k": (2, 8, 3, 4), "v": (2, 8, 3, 4)}, "k: 3 heads do not divide q's 4"),
        ({"q": (2, 8, 4)}, "q: has 3 axes, needs 4"),
        ({"segments": (2, 7)}, r"band.q_segments: shape is \(2, 7\), needs \[b, t\] = \(2, 8\)"),
    ],
)
def test_shapes_that_disagree_are_refused_in_letters(changes, message):
    shapes = {"q": (2, 8, 4, 4), "k": (2, 8, 2, 4), "v": (2, 8, 2, 4), "segments": (2, 8)} | changes
    q, k, v = (jnp.zeros(shapes[name]) for name in "qkv")
    band = Band.of_row(4, jnp.zeros(shapes["segments"], jnp.int32))
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, band)

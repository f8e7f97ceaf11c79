"""The kernels keep the attention contract, interpreted on a CPU, and skip what the band hides."""

import dataclasses
import functools

import attention_contract as contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case

from hybrid.model.mixers.attention import mean_visible_keys
from hybrid.ops import dispatch
from hybrid.ops.attention import ATTENTION, attend
from hybrid.ops.attention.pallas import differentiable, whole, window
from hybrid.ops.attention.pallas.tile import Scoring
from hybrid.ops.band import Band


@pytest.fixture(autouse=True)
def on_tpu():
    with dispatch.use_backend("tpu"):
        yield


class TestPallas(contract.AttentionContract):
    implementation = "pallas"

    def serves_positions(self):
        return False


# Several blocks of every kind: windows below and above a block, a window wider than a halo may be.
LONG = (
    Case("pieces", 1, 700, 4, 2, 8, window_size=300, documents=3, sinks=True),
    Case("a group of three", 1, 300, 6, 2, 8, window_size=130, softcap=3.0, scale=0.5),
    Case("wide", 1, 1100, 2, 1, 8, window_size=500, offset=77, documents=2),
    Case("global", 1, 1700, 2, 1, 8, documents=3, offset=130),
)


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
@pytest.mark.parametrize("most_bytes", [window.MOST_BYTES, 0])
def test_long_rows_equal_the_oracle_by_either_walk(case, most_bytes, monkeypatch, x64):
    monkeypatch.setattr(window, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(whole, "_MOST_ROWS", 256)
    monkeypatch.setattr(whole, "_MOST_KEYS", 256)
    got, wanted = (fresh(case, name, jnp.float64) for name in ("pallas", "reference"))
    contract.assert_equal_to_the_oracle(got, wanted, contract.FLOAT64)


def fresh(case, implementation, dtype=jnp.float32):
    """`contract.run_case`, traced anew: what is patched is not in the key of jax's caches."""
    jax.clear_caches()
    return contract.run_case(case, implementation, dtype)


def test_bfloat16_is_about_as_close_to_float64_as_the_oracle_is():
    for case in (
        Case("local", 1, 300, 4, 1, 16, window_size=40, documents=2),
        Case("global", 1, 300, 4, 1, 16, documents=2),
    ):
        # 4: weights too are rounded to bfloat16 for their products.
        contract.assert_as_close_in_bfloat16(case, "pallas", 4)


def test_a_softmax_over_long_rows_is_summed_in_float32():
    # 40 000 equal weights: summed in bfloat16 they would stop at 256, giving values near 156.
    length = 40_000
    q = jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
    k, v = jnp.zeros((1, length, 1, 8), jnp.bfloat16), jnp.ones((1, length, 1, 8), jnp.bfloat16)
    out = attend(q, k, v, Band(offset=length - 8), implementation="pallas")
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1)


# --- What is visited --------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("window_size", [512, 1024, 8192, None])
def test_tiles_hold_few_pairs_that_the_band_hides(window_size, group):
    length = 131_072
    scoring = Scoring(group, window_size, 0, 1.0, None)
    seen = length * group * mean_visible_keys(window_size, length)
    q = jax.ShapeDtypeStruct((1, length, group, 256), jnp.bfloat16)
    over = differentiable.layout_of(scoring, q).pairs() / seen
    # One query head a KV head: a piece of 128 rows is 128 queries.
    most = {512: 1.13, 1024: 1.1, 8192: 1.13, None: 1.01}[window_size]
    most += 0.13 * (group == 1 and window_size in (512, 1024))
    assert 1 <= over < most


@pytest.mark.parametrize("window_size", [1024, None])
def test_a_million_tokens_need_no_table(window_size):
    """All that a traced call holds besides its operands is single numbers."""
    length = 1 << 20
    q = jax.ShapeDtypeStruct((1, length, 8, 256), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, length, 1, 256), jnp.bfloat16)

    def loss(q, k, v):
        out = attend(q, k, v, Band.of_row(window_size), implementation="pallas")
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, k)
    assert sum(np.size(const) for const in traced.consts) < 100
    largest = max(
        np.prod(variable.aval.shape)
        for equation in traced.eqns
        for variable in equation.outvars
        if hasattr(variable.aval, "shape")
    )
    assert largest <= 2 * length * 8 * 256


# --- Planted mistakes -------------------------------------------------------------------------


def _seen(change):
    """`Scoring.seen` after a change of the scoring that it is of."""
    right = Scoring.seen

    def wrong(self, *places):
        changed = change(self)
        # A mask has as many rows as a piece, whatever the group is said to be.
        queries = places[1] * self.group // changed.group
        return right(changed, places[0], queries, *places[2:])

    return lambda patch: patch.setattr(Scoring, "seen", wrong)


def _without_segments(patch):
    right = Scoring.seen
    patch.setattr(Scoring, "seen", lambda self, *places: right(self, *places[:4]))


def _without_the_first_tile(patch):
    patch.setattr(window, "_MOST_KEYS", 128)
    right = window.Layout.tiles
    patch.setattr(window.Layout, "tiles", lambda self: right(self)[1:])


def _with_masked_scores_as_they_are(patch):
    right = whole.Layout.is_inner
    patch.setattr(whole.Layout, "is_inner", lambda self, *blocks: right(self, *blocks) | True)


def _without_a_block_of_queries(patch):
    right = whole.Layout.queries_of

    def wrong(self, block, part, xp=jnp):
        first, last = right(self, block, part, xp)
        return first, xp.minimum(last, self.num_blocks - 2)

    patch.setattr(whole.Layout, "queries_of", wrong)


def _with_a_cap_that_has_no_slope(patch):
    right = Scoring.backward
    patch.setattr(
        Scoring,
        "backward",
        lambda self, *rest: right(dataclasses.replace(self, softcap=None), *rest),
    )


MISTAKES = {
    "a window one wider": _seen(lambda s: dataclasses.replace(s, window_size=s.window_size + 1)),
    "a window one narrower": _seen(lambda s: dataclasses.replace(s, window_size=s.window_size - 1)),
    "no window": _seen(lambda s: dataclasses.replace(s, window_size=None)),
    "heads of another group": _seen(lambda s: dataclasses.replace(s, group=1)),
    "documents ignored": _without_segments,
    "a tile left out": _without_the_first_tile,
    "the diagonal unmasked": _with_masked_scores_as_they_are,
    "queries left out of dk": _without_a_block_of_queries,
    "a softcap without its slope": _with_a_cap_that_has_no_slope,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(mistake, monkeypatch):
    is_global = mistake in ("the diagonal unmasked", "queries left out of dk")
    documents = 3 if mistake == "documents ignored" else 0
    case = Case("planted", 1, 300, 4, 2, 8, documents=documents, softcap=3.0)
    case = case if is_global else dataclasses.replace(case, window_size=150)
    monkeypatch.setattr(whole, "_MOST_ROWS", 256)
    wanted = fresh(case, "reference")
    contract.assert_equal_to_the_oracle(fresh(case, "pallas"), wanted, contract.FLOAT32)
    MISTAKES[mistake](monkeypatch)
    with pytest.raises(AssertionError, match="off by"):
        contract.assert_equal_to_the_oracle(fresh(case, "pallas"), wanted, contract.FLOAT32)


# --- The door ---------------------------------------------------------------------------------


def test_it_serves_tpus_alone_and_comes_first_there():
    request = contract.request(backend="tpu")
    assert ATTENTION.choose(request).name == "pallas"
    assert ATTENTION.choose(contract.request(backend="tpu", is_regular=False)).name == "chunked"
    v4 = {"backend": "tpu", "device_kind": "TPU v4", "dtype": "bfloat16"}
    small = contract.request(**v4, head_dim=256, window_size=1024)
    assert ATTENTION.choose(small).name == "pallas"
    for wide in ({"head_dim": 512}, {"head_dim": 256, "window_size": 4096}):
        assert ATTENTION.choose(contract.request(**v4, **wide)).name == "chunked"
    refusals = ATTENTION.explain(contract.request(backend="gpu"))
    assert refusals["pallas"] == "its kernels are compiled for TPUs"
    assert refusals["chunked"] is None


def test_scan_checkpoint_and_vmap_change_nothing(x64):
    case = Case("transforms", 2, 100, 2, 1, 8, window_size=20, documents=3)
    arrays, band = case.arrays(jnp.float64), case.band()
    call = functools.partial(attend, implementation="pallas")

    def twice(q, k, v):
        layer = jax.checkpoint(lambda x: call(x, k, v, band))
        return jnp.sum(jax.lax.scan(lambda x, _: (layer(x), None), q, None, length=2)[0] ** 2)

    def plain(q, k, v):
        return jnp.sum(call(call(q, k, v, band), k, v, band) ** 2)

    qkv = [arrays[letter] for letter in "qkv"]
    got, wanted = (jax.jit(jax.grad(f, (0, 1, 2)))(*qkv) for f in (twice, plain))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    rows = Band.of_row(20)
    stacked = jax.vmap(lambda q, k, v: call(q, k, v, rows))(*(array[None] for array in qkv))
    np.testing.assert_allclose(stacked[0], call(*qkv, rows), atol=1e-12)

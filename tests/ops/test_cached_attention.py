"""Attention to a cache against the oracle: whole or in tiles, empty slots, parts, scales, sinks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case
from inference.small_models import config_of, params_of

from hybrid import model
from hybrid.inference.session import Session
from hybrid.ops import rope
from hybrid.ops.attention import CACHED_ATTENTION, attend_cached, cached, reference
from hybrid.ops.attention.request import CachedAttentionRequest
from hybrid.ops.attention.slots import Slots, Stored
from hybrid.ops.band import Band

CASES = (
    Case("one new token, global", 2, 1, 4, 2, 8),
    Case("one new token, window", 2, 1, 4, 1, 8, window_size=5),
    Case("a chunk, global", 2, 9, 4, 2, 8, softcap=3.0, scale=0.5),
    Case("a chunk, window", 2, 9, 4, 4, 8, window_size=5),
    Case("a chunk of many rows, sinks", 1, 40, 6, 3, 8, window_size=7, sinks=True),
)
SLOTS = 50
TILES = (None, 7, 16, 50)


def slots_of(case: Case, seed: int = 0):
    """Shuffled positions with empty slots among them, and queries somewhere behind the first."""
    rng = np.random.default_rng(seed)
    kv = np.stack([rng.permutation(SLOTS) for _ in range(case.batch)])
    kv = np.where(rng.random(kv.shape) < 0.2, -1, kv)
    q = rng.integers(0, SLOTS, (case.batch, case.time))
    return jnp.asarray(q, jnp.int32), jnp.asarray(kv, jnp.int32)


def inputs(case: Case, seed: int = 0):
    wide = dataclasses.replace(case, time=SLOTS).arrays(jnp.float64, seed)
    arrays = case.arrays(jnp.float64, seed)
    return arrays["q"], wide["k"], wide["v"], arrays.get("sinks")


def whole(k, v):
    """Keys and values [b, s, k, h] as a stack of one layer."""
    keys, values = (Stored(array.swapaxes(1, 2)[None]) for array in (k, v))
    return Slots(values, keys=keys)


def oracle(case, q, k, v, sinks, q_positions, kv_positions):
    band = Band(case.window_size, q_positions=q_positions, kv_positions=kv_positions)
    return reference.attend(q, k, v, band, scale=case.scale, softcap=case.softcap, sinks=sinks)


def options(case, sinks):
    keys = {"window_size": case.window_size, "scale": case.scale, "softcap": case.softcap}
    return keys | {"sinks": sinks}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tile_size", TILES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_tile_size_equals_the_oracle(case, tile_size):
    q, k, v, sinks = inputs(case)
    places = slots_of(case)
    out = cached.attend(q, whole(k, v), *places, tile_size=tile_size, **options(case, sinks))
    np.testing.assert_allclose(out, oracle(case, q, k, v, sinks, *places), atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_door_gives_what_its_implementation_gives(case):
    q, k, v, sinks = inputs(case)
    places = slots_of(case)
    for name in ("auto", "tiled"):
        out = attend_cached(q, whole(k, v), *places, implementation=name, **options(case, sinks))
        np.testing.assert_allclose(out, oracle(case, q, k, v, sinks, *places), atol=1e-12)
    with pytest.raises(ValueError, match="cached attention: no implementation 'paged'"):
        attend_cached(q, whole(k, v), *places, implementation="paged")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tile_size", TILES)
def test_slots_that_are_not_in_use_are_not_read(tile_size):
    case = CASES[2]
    q, k, v, sinks = inputs(case)
    q_positions = jnp.broadcast_to(11 + jnp.arange(9), (2, 9))
    kv_positions = jnp.broadcast_to(
        jnp.where(jnp.arange(SLOTS) < 20, jnp.arange(SLOTS), -1), (2, SLOTS)
    )
    wanted = oracle(case, q, k, v, sinks, q_positions, kv_positions)
    last_tile = SLOTS if tile_size in (None, SLOTS) else -(-20 // tile_size) * tile_size
    k = k.at[:, last_tile:].set(jnp.nan)
    out = cached.attend(
        q,
        whole(k, v),
        q_positions,
        kv_positions,
        in_use=jnp.array([20, 15]),
        tile_size=tile_size,
        **options(case, sinks),
    )
    np.testing.assert_allclose(out, wanted, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tile_size", [None, 16])
def test_scores_of_unified_slots_are_sums_of_parts(tile_size):
    case = CASES[2]
    q, k, v, sinks = inputs(case)
    places = slots_of(case)
    frequencies = rope.frequencies(8, 100.0, 0.5)
    turn = rope.rotation(jnp.arange(SLOTS)[None], 8, theta=100.0, fraction=0.5, dtype=jnp.float64)
    k_scale = 1 + k[0, 0, 0]
    k = rope.apply(v * k_scale[None, None, None], turn)
    values, part = Stored(v.swapaxes(1, 2)[None]), rope.turned_part(k, len(frequencies))
    stored = Slots(values, rotated=Stored(part.swapaxes(1, 2)[None]), k_scale=k_scale)
    made = Slots(values, k_scale=k_scale, turn=turn, frequencies=jnp.asarray(frequencies))
    for slots in (stored, made):
        out = cached.attend(q, slots, *places, tile_size=tile_size, **options(case, sinks))
        np.testing.assert_allclose(out, oracle(case, q, k, v, sinks, *places), atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tile_size", [None, 16])
def test_scales_multiply_what_is_stored(tile_size):
    case = CASES[0]
    q, k, v, sinks = inputs(case)
    places = slots_of(case)
    rng = np.random.default_rng(1)
    scale_k, scale_v = (jnp.asarray(rng.uniform(0.5, 2, (2, 2, SLOTS))) for _ in range(2))
    keys, values = (
        Stored(array.swapaxes(1, 2)[None], scales[None])
        for array, scales in ((k, scale_k), (v, scale_v))
    )
    out = cached.attend(
        q,
        Slots(values, keys=keys),
        *places,
        tile_size=tile_size,
        **options(case, sinks),
    )
    k, v = (a * s.swapaxes(1, 2)[..., None] for a, s in ((k, scale_k), (v, scale_v)))
    np.testing.assert_allclose(out, oracle(case, q, k, v, sinks, *places), atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tile_size", [None, 16])
def test_a_query_that_sees_nothing_gives_zeros(tile_size):
    case = CASES[2]
    q, k, v = (array.astype(jnp.float32) for array in inputs(case)[:3])
    nowhere = jnp.full((2, SLOTS), -1)
    out = cached.attend(q, whole(k, v), jnp.zeros((2, 9), int), nowhere, tile_size=tile_size)
    assert not np.any(out)


def test_float32_sums_stay_float32_past_32k_slots_of_bfloat16():
    """In bfloat16 a sum of 40 000 equal weights stops at 256."""
    slots = 40_000
    q, k = jnp.zeros((1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, slots, 1, 8), jnp.bfloat16)
    v = jnp.broadcast_to(
        jnp.where(jnp.arange(slots) % 2, 2, 0).astype(jnp.bfloat16)[None, :, None, None], k.shape
    )
    places = jnp.full((1, 1), slots), jnp.arange(slots)[None]
    for tile_size in (None, 512):
        out = cached.attend(q, whole(k, v), *places, tile_size=tile_size)
        np.testing.assert_allclose(out.astype(np.float32), 1, atol=1e-3)


def test_a_step_of_a_local_layer_costs_the_same_whatever_came_before():
    """Counted in the compiled program: the ring is all that is read."""
    config = config_of("all local", "float32")
    session = Session(config, params_of(config))
    costs = []
    for length in (2048, 16_384):
        cache = session.empty(1, length)
        costs.append((cache.num_bytes()["total"], step_flops(session, cache)))
    assert costs[0] == costs[1]


def step_flops(session, cache):
    """FLOPs and bytes of one decoding step, as the compiler counts them."""

    def step(params, cache):
        tokens, num_new = jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
        return model.extend(session.config, params, tokens, num_new, cache, {})

    compiled = jax.jit(step).lower(session.params, cache).compile()
    cost = compiled.cost_analysis()
    return cost["flops"], cost["bytes accessed"]


# --- The door ---------------------------------------------------------------------------------


def request(**keys):
    base = CachedAttentionRequest(
        backend="tpu",
        dtype="bfloat16",
        stored_dtype="bfloat16",
        head_dim=512,
        query_length=1,
        num_slots=4096,
        num_heads=32,
        num_kv_heads=4,
        window_size=None,
    )
    return dataclasses.replace(base, **keys)


def test_it_serves_few_tokens_on_tpus_and_comes_first_there():
    assert CACHED_ATTENTION.choose(request()).name == "fused"
    assert CACHED_ATTENTION.choose(request(query_length=16)).name == "fused"
    assert CACHED_ATTENTION.explain(request(query_length=17)) == {
        "fused": "17 new tokens, it takes 16 at most",
        "tiled": None,
    }
    for backend in ("cpu", "gpu"):
        refusals = CACHED_ATTENTION.explain(request(backend=backend))
        assert refusals == {"fused": "its kernel is compiled for TPUs", "tiled": None}

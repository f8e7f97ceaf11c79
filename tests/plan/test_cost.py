"""The accounting holds against compiled programs; cost and memory of a local layer are linear."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid import model
from hybrid.costs import model_costs as cost
from hybrid.costs.flops import count_flops
from hybrid.data.batch import Batch
from hybrid.model import stack
from hybrid.model.blocks.block import LayerInputs
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.attention import mean_visible_keys
from hybrid.model.mixers.protocol import CacheFormat, Placement, shared_arrays
from hybrid.ops.band import Band

LOCAL_LAYER = ModelConfig(
    pattern="L",
    num_layers=1,
    last_layer="any",
    window_size=512,
    d_model=256,
    head_dim=64,
    ffn_dim=1024,
)
GEMMA4_31B = ModelConfig(
    num_layers=60,
    window_size=1024,
    d_model=5376,
    num_heads=32,
    num_kv_heads=16,
    num_global_kv_heads=4,
    head_dim=256,
    global_head_dim=512,
    unified_kv=True,
    ffn_dim=21504,
    vocab_size=262_144,
    dtype="bfloat16",
)
GIB = 2**30


def int32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@functools.cache
def layer_cost(attention: str, time: int) -> tuple[int, int]:
    """FLOPs and temporary bytes of one local layer, forward and backward, on packed rows."""
    config = dataclasses.replace(LOCAL_LAYER, attention=attention)
    plan = model.layer_plan(config)

    def loss(params, x, positions, segments):
        shared = shared_arrays(plan.mixers(), positions, x.dtype)
        placement = Placement(positions, segments, shared)
        return jnp.sum(jnp.square(stack.apply(plan, config, params, x, LayerInputs(placement)).x))

    x = jax.ShapeDtypeStruct((1, time, config.d_model), jnp.float32)
    params = model.abstract(config)["segments"]
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(params, x, int32(1, time), int32(1, time))
    compiled = lowered.compile()
    return count_flops(compiled.as_text()), compiled.memory_analysis().temp_size_in_bytes


def growth(attention: str, time: int) -> list[float]:
    """By how much FLOPs and bytes grow from `time` to twice as much."""
    once, twice = layer_cost(attention, time), layer_cost(attention, 2 * time)
    return [b / a for a, b in zip(once, twice, strict=True)]


def is_linear(attention: str, time: int) -> bool:
    return all(1.9 <= ratio <= 2.1 for ratio in growth(attention, time))


@pytest.mark.parametrize("time", [4096, 8192, 16_384, 32_768])
def test_twice_the_tokens_cost_a_local_layer_twice_the_flops_and_bytes(time):
    assert is_linear("auto", time), growth("auto", time)


@pytest.mark.parametrize("time", [1024, 2048])
def test_the_dense_oracle_in_its_place_is_caught(time):
    flops, size = growth("reference", time)
    assert flops > 2.1
    assert size > 2.1


def test_loss_of_64k_tokens_compiles_to_under_4_gib_of_temporaries():
    config = ModelConfig(global_head_dim=64, unified_kv=True)

    def loss(params, row, mask):
        return model.loss_sums(config, params, Batch(row, row, row, row, mask))

    row, mask = int32(1, 65_536), jax.ShapeDtypeStruct((1, 65_536), jnp.bool_)
    compiled = jax.jit(loss).lower(model.abstract(config), row, mask).compile()
    assert 0 < compiled.memory_analysis().temp_size_in_bytes < 4 * GIB


# --- The plan's FLOPs against the compiled forward --------------------------------------------


def forward_flops(config: ModelConfig, time: int) -> int:
    forward = jax.jit(lambda params, tokens: model.logits(config, params, tokens))
    compiled = forward.lower(model.abstract(config), int32(1, time)).compile()
    return count_flops(compiled.as_text())


SMALL = ModelConfig(
    num_layers=14,
    last_layer="force_global",
    window_size=24,
    d_model=64,
    num_kv_heads=2,
    num_global_kv_heads=1,
    head_dim=16,
    global_head_dim=32,
    ffn_dim=96,
    vocab_size=128,
    attention="reference",
)
VARIANTS = {
    "scanned": {},
    "unrolled": {"unroll": True},
    "unified": {"unified_kv": True},
    "all global": {"pattern": "G"},
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_flops_equal_those_of_the_compiled_forward(change):
    """Exact: the oracle forms all t × t pairs, so its pairs replace the visible ones."""
    config, time = dataclasses.replace(SMALL, **change), 64
    specs = list(model.layer_plan(config).layers())
    planned = cost.forward_flops_per_token(config, time)
    visible = [spec.mixer.flops_per_token(config, time)[1] for spec in specs]
    keys = [mean_visible_keys(spec.mixer.reach, time) for spec in specs]
    dense = sum(flops * time / count for flops, count in zip(visible, keys, strict=True))
    assert forward_flops(config, time) == pytest.approx(
        time * (planned - sum(visible) + dense), rel=1e-12
    )


@pytest.mark.parametrize("window", [1, 5, 24, None])
@pytest.mark.parametrize("context", [1, 24, 40])
def test_mean_visible_keys_is_the_mean_over_the_mask(window, context):
    seen = Band.of_row(window).visible(0, context, 0, context)
    mean = np.asarray(seen).sum() / context
    assert mean_visible_keys(window, context) == pytest.approx(mean, rel=1e-12)


def test_flops_of_a_31b_shape_are_within_2_percent_of_its_compiled_forward():
    """As it runs: tiles at the band's edge also multiply pairs that the mask then hides."""
    time = 4096
    planned = time * cost.forward_flops_per_token(GEMMA4_31B, time)
    assert planned <= forward_flops(GEMMA4_31B, time) <= 1.02 * planned


# --- Parameters and caches --------------------------------------------------------------------


def test_params_equal_the_built_models():
    config = dataclasses.replace(SMALL, pattern="LG", num_layers=3, unified_kv=True)
    params = jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))
    built = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost.num_params(config) == sum(cost.num_params_by_part(config).values()) == built


def test_params_of_published_shapes():
    twelve = dataclasses.replace(
        GEMMA4_31B,
        num_layers=48,
        d_model=3840,
        num_heads=16,
        num_kv_heads=8,
        num_global_kv_heads=1,
        ffn_dim=15_360,
    )
    assert cost.num_params(GEMMA4_31B) == 30_697_345_340
    assert cost.num_params(twelve) == 11_907_350_320


def cache(config, context, batch=1, dtype="bfloat16"):
    return cost.cache_bytes(model.layer_plan(config), CacheFormat(context, dtype), batch)


def test_cache_of_the_31b_shape_is_the_published_arithmetic():
    context = 262_144
    sizes = cache(GEMMA4_31B, context)
    assert sizes["global"] == 10 * context * 4 * 512 * 2  # one tensor for keys and values
    assert sizes["local"] == 50 * 1024 * 2 * 16 * 256 * 2
    assert sizes["total"] == sizes["global"] + sizes["local"] + sizes["state"]
    assert sizes["total"] / GIB == pytest.approx(10.78, abs=0.005)
    separate = cache(dataclasses.replace(GEMMA4_31B, unified_kv=False), context)
    assert separate["total"] / GIB == pytest.approx(20.78, abs=0.005)


def test_equal_heads_half_global_halves_the_cache():
    config = dataclasses.replace(
        GEMMA4_31B,
        pattern="LG",
        num_global_kv_heads=0,
        global_head_dim=0,
        unified_kv=False,
    )
    plan = model.layer_plan(config)
    form = CacheFormat(262_144, "bfloat16")
    total = cost.cache_bytes(plan, form, 1)["total"]
    whole = cost.cache_bytes_all_global(plan, form, 1)
    assert whole / total == pytest.approx(1.992, abs=5e-4)


def test_a_window_beyond_the_context_keeps_the_context_only():
    short = cache(GEMMA4_31B, 100)
    assert short["local"] == 50 * 100 * 2 * 16 * 256 * 2
    assert cache(GEMMA4_31B, 100, batch=3)["total"] == 3 * short["total"]


def test_int8_counts_a_bfloat16_scale_for_each_head_and_token():
    sizes = cache(GEMMA4_31B, 100, dtype="int8")
    assert sizes["global"] == 10 * 100 * 4 * (512 + 2)
    assert sizes["local"] == 50 * 100 * 2 * 16 * (256 + 2)


def test_a_layer_that_reuses_keys_and_values_caches_and_projects_none():
    spec = next(model.layer_plan(SMALL).layers())
    owner, reusing = spec.mixer, dataclasses.replace(spec.mixer, donor=0)
    kept = 2 * SMALL.d_model * 2 * owner.num_kv_heads * owner.head_dim
    projections = owner.flops_per_token(SMALL, 64)[0]
    assert reusing.flops_per_token(SMALL, 64)[0] == projections - kept
    assert reusing.state_bytes(CacheFormat(64)) == 0

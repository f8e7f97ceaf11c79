"""A cache is a value: extended, kept, rewound, grown; and it is as large as the plan says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.small_models import BATCH, CASES, TIME, WINDOW, config_of, params_of, tokens_of

from hybrid import experiment, model, plan
from hybrid.costs import model_costs as cost
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session, bucket
from hybrid.model import cache as state
from hybrid.model import layer_plan
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.model.pattern import LayerPlan

SLACK = 3


@pytest.fixture(scope="module")
def session():
    """A float32 model with a ring that can be rewound by SLACK tokens."""
    config = config_of("unified", "float32")
    return Session(config, params_of(config), InferenceConfig(slack=SLACK))


@pytest.fixture(scope="module")
def tokens(session):
    return tokens_of(session.config)


def read(session, *parts, lengths=None):
    """The cache and logits after the parts, one behind the other."""
    cache = session.empty(BATCH, TIME)
    for part in parts:
        cache, logits = session.prefill(cache, part, lengths)
    return cache, logits


def assert_close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_a_snapshot_goes_on_as_the_cache_would_have(session, tokens):
    """Two questions behind one document."""
    cache, _ = read(session, tokens[:, :9])
    kept = cache.copy()
    _, first = session.prefill(cache, tokens[:, 9:11])
    other = (tokens[:, 9:13] + 1) % session.config.vocab_size
    _, second = session.prefill(kept, other)
    assert_close(first, read(session, tokens[:, :11])[1])
    assert_close(second, read(session, np.concatenate([tokens[:, :9], other], axis=1))[1])


def test_a_used_cache_is_used_up_and_its_copy_is_not(session, tokens):
    cache, logits = read(session, tokens[:, :5])
    kept = cache.copy()
    session.decode(cache, logits, 2)
    assert cache.length.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("before", [2, WINDOW, 2 * WINDOW + 1, TIME - SLACK])
@pytest.mark.parametrize("back", [1, SLACK])
def test_rewound_and_read_on_equals_cold(session, tokens, before, back):
    """Before the ring is full, when it is, and after it has wrapped; tokens that differ."""
    cache, _ = read(session, tokens[:, :before])
    back = min(back, before - 1)
    cache = cache.rewind(back)
    other = (tokens[:, : SLACK + 4] + 7) % session.config.vocab_size
    wanted = read(session, np.concatenate([tokens[:, : before - back], other], axis=1))[1]
    kept = cache.copy()
    assert_close(session.prefill(cache, other)[1], wanted)
    for token in other.T:  # a token at a time, written before it is read
        kept, logits = session.prefill(kept, token[:, None], chunk=1)
    assert_close(logits, wanted)


def test_rows_are_rewound_by_different_numbers(session, tokens):
    cache, _ = read(session, tokens[:, :12])
    cache, logits = session.prefill(cache.rewind([0, 3]), tokens[:, :2])
    assert cache.length.tolist() == [14, 11]
    for row, start in enumerate((12, 9)):
        alone = np.concatenate([tokens[row, :start], tokens[row, :2]])[None].repeat(2, axis=0)
        assert_close(logits[row], read(session, alone)[1][row])


def test_speculation_may_rewind_again_and_again_within_the_slack(session, tokens):
    """Drafts of SLACK tokens, none accepted but one."""
    cache, _ = read(session, tokens[:, :6])
    for at in range(6, 12):
        draft = np.stack([tokens[:, at], *(tokens[:, :2] + at).T % 40], axis=1)
        cache, _ = session.prefill(cache, draft.astype(np.int32))
        cache = cache.rewind(2)
    assert_close(session.prefill(cache, tokens[:, 12:14])[1], read(session, tokens)[1])


@pytest.mark.parametrize("back", [SLACK + 1, 8])
def test_a_rewind_past_the_ring_is_refused(session, tokens, back):
    cache, _ = read(session, tokens)
    with pytest.raises(ValueError, match="further back than local layers keep"):
        cache.rewind(back)
    assert_close(session.prefill(cache, tokens[:, :1])[1].shape, (BATCH, 40))


def test_rewinds_add_up(session, tokens):
    cache, _ = read(session, tokens)
    with pytest.raises(ValueError, match=r"rows can go back \[1, 1\]"):
        cache.rewind(2).rewind(2)


@pytest.mark.parametrize("back", [-1, 15])
def test_a_rewind_beyond_the_beginning_is_refused(session, tokens, back):
    cache, _ = read(session, tokens)
    with pytest.raises(ValueError, match="must be from 0"):
        cache.rewind(back)


def test_a_ring_that_has_not_wrapped_and_global_layers_forget_nothing(session, tokens):
    cache, _ = read(session, tokens[:, : WINDOW + SLACK])
    assert_close(
        session.prefill(cache.rewind(6), tokens[:, 1:3])[1], read(session, tokens[:, :3])[1]
    )
    config = dataclasses.replace(config_of("unified", "float32"), pattern="G")
    alone = Session(config, params_of(config))
    cache, _ = read(alone, tokens)
    assert_close(alone.prefill(cache.rewind(13), tokens[:, 1:])[1], read(alone, tokens)[1])


def test_a_cache_grows_with_what_is_read(tokens):
    config = config_of("unified", "float32")
    wide = dataclasses.replace(config, window_size=200)  # a ring that the first size cuts short
    for of in (config, wide):
        session = Session(of, params_of(of))
        long = np.tile(tokens, (1, 16))
        small = session.empty(BATCH, 1)
        cache, _ = session.prefill(small, long[:, :100])
        assert cache.form.capacity == bucket(100) == 128
        cache, logits = session.prefill(cache, long[:, 100:])
        assert cache.form.capacity == bucket(224)
        assert_close(logits, session.prefill(session.empty(BATCH, 224), long)[1])


def test_decoding_doubles_a_full_cache_and_changes_no_token(tokens, monkeypatch):
    """Few capacities, so few programs; the same tokens as from a cache allocated at once."""
    config = config_of("unified", "float32")
    session = Session(config, params_of(config))
    whole = session.empty(BATCH, TIME, 600)
    monkeypatch.setattr("hybrid.inference.session.MOST_AHEAD", 50)
    small = session.empty(BATCH, TIME, 2_000_000_000)
    assert (whole.form.capacity, small.form.capacity) == (640, 128)

    def decoded(cache):
        cache, logits = session.prefill(cache, tokens)
        steps = list(session.stream(cache, logits, 600))
        capacities = [step.cache.form.capacity for step in steps]
        return np.concatenate([step.tokens for step in steps], axis=1), capacities, steps[-1]

    wanted, capacities, last = decoded(whole)
    assert set(capacities) == {640}
    found, capacities, grown = decoded(small)
    assert sorted(set(capacities)) == [128, 256, 512, 1024]
    np.testing.assert_array_equal(found, wanted)
    assert_close(grown.logits, last.logits)


@pytest.mark.parametrize(
    ("tokens", "lengths", "problem"),
    [
        (np.zeros((2, 0)), None, "both above 0"),
        (np.zeros(3), None, "batch, time"),
        (np.zeros((2, 3)), [3], "tokens have 2 rows"),
        (np.zeros((2, 3)), [0, 3], "must be from 1 to 3"),
        (np.zeros((2, 3)), [3, 4], "must be from 1 to 3"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(session, tokens, lengths, problem):
    with pytest.raises(ValueError, match=problem):
        session.prefill(session.empty(BATCH, 8), tokens, lengths)


# --- Bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("name", "layout"), CASES)
@pytest.mark.parametrize("context", [3, 50])
def test_the_plan_says_what_is_allocated(name, layout, dtype, context):
    layers = layer_plan(config_of(name, "float32"))
    for of in (layers, layers.unrolled()):
        cache = state.allocate(of, CacheFormat(context, dtype, unified=layout), BATCH)
        form = CacheFormat(context, dtype, unified=layout)
        assert cache.num_bytes() == cost.cache_bytes(layers, form, BATCH)


def test_slack_and_buckets_come_on_top():
    config = config_of("separate keys and values", "float32")
    session = Session(config, params_of(config), InferenceConfig(slack=2))
    cache, layers = session.empty(1, 1000), layer_plan(config)
    assert cache.form.capacity == 1024
    exact = cost.cache_bytes(layers, CacheFormat(1024), 1)
    assert cache.num_bytes()["global"] == exact["global"]
    assert cache.num_bytes()["local"] == exact["local"] * (WINDOW + 2) // WINDOW


@pytest.mark.parametrize(("layout", "saved"), [("value", 0.5), ("value_and_rotated", 0.375)])
def test_what_unified_layers_save(layout, saved):
    layers = layer_plan(config_of("unified", "float32"))
    both = cost.cache_bytes(layers, CacheFormat(100, unified="keys_and_values"), 1)["global"]
    form = CacheFormat(100, unified=layout)
    assert cost.cache_bytes(layers, form, 1)["global"] == (1 - saved) * both


def test_31b_at_256k_scaled_down_by_32():
    """10.8 GiB against 220 GiB, by arrays of the same layers with heads 1/32 as wide."""
    page = experiment.load("configs/gemma4.py:31b")
    context, whole = 256 * 1024, plan("configs/gemma4.py:31b", context=256 * 1024)
    assert whole.cache_dtype == "bfloat16"
    assert whole.kv_cache_bytes["total"] / 2**30 == pytest.approx(10.8, abs=0.05)
    assert whole.kv_cache_bytes_all_global / 2**30 == pytest.approx(220, abs=0.5)
    heads = {name: getattr(page.model, name) // 32 for name in ("head_dim", "global_head_dim")}
    small = layer_plan(dataclasses.replace(page.model, **heads))
    cache = state.allocate(small, CacheFormat(context, "bfloat16"), 1)
    assert 32 * cache.num_bytes()["total"] == whole.kv_cache_bytes["total"]
    kept_apart = state.allocate(all_global(small), CacheFormat(context // 256, "bfloat16"), 1)
    assert 256 * 32 * kept_apart.num_bytes()["total"] == whole.kv_cache_bytes_all_global


def all_global(layers: LayerPlan) -> LayerPlan:
    """The same layers, each with separate keys and values of the whole context."""
    whole = {"window_size": None, "unified_kv": False}

    def apart(spec):
        return dataclasses.replace(spec, mixer=dataclasses.replace(spec.mixer, **whole))

    segments = (
        dataclasses.replace(segment, specs=tuple(map(apart, segment.specs)))
        for segment in layers.segments
    )
    return LayerPlan(tuple(segments))


@pytest.mark.parametrize("layers", ["scan", "loop"])
def test_reading_a_chunk_takes_the_same_memory_whatever_the_context(layers):
    """Counted in the compiled program: no copy of a layer's cache, no scores of all slots."""
    config = dataclasses.replace(config_of("unified", "float32"), num_layers=8)
    session = Session(config, params_of(config), InferenceConfig(layers=layers))
    chunk = jnp.zeros((1, 256), jnp.int32), jnp.full(1, 256)

    def temporaries(capacity: int) -> int:
        cache = session.empty(1, capacity)
        step = jax.jit(
            lambda params, cache: model.extend(
                session.config, params, *chunk, cache, session.slot_arrays(cache.form)
            ),
            donate_argnums=1,
        )
        compiled = step.lower(session.params, cache).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(2048), temporaries(32_768)
    one_layer = cost.cache_bytes(layer_plan(config), CacheFormat(32_768), 1)["global"] // 4
    assert large - small < 0.2 * one_layer


def test_int8_costs_a_bfloat16_scale_a_head_and_token():
    config = config_of("unified", "float32")
    layers = layer_plan(config)
    sizes = {d: cost.cache_bytes(layers, CacheFormat(64, d), 1) for d in ("bfloat16", "int8")}
    for kind, width in (("local", config.head_dim), ("global", config.global_head_dim)):
        assert sizes["int8"][kind] * 2 * width == sizes["bfloat16"][kind] * (width + 2)

"""Longformer as a letter: the contract of mixers, and what its global tokens see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.small_models import params_of, tokens_of
from model.mixer_contract import AttentionMixer, packed

from hybrid import model
from hybrid.config import ConfigError
from hybrid.costs.flops import count_flops
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.ops.attention import attend, sparse
from hybrid.ops.band import Band

WINDOW, GLOBALS = 4, 2


class TestLongformer(AttentionMixer):
    letter, keys = "S", {"longformer": {"num_global_tokens": GLOBALS}}
    refused = "num_global_tokens", 0

    def mixing_flops(self, config, time):
        (spec,) = model.layer_plan(config).mixers()
        heads = (1, time, spec.num_heads, 8), (1, time, spec.num_kv_heads, 8)
        q, kv = (jax.ShapeDtypeStruct(shape, "float32") for shape in heads)
        first = [jax.ShapeDtypeStruct((1, GLOBALS, *x.shape[2:]), x.dtype) for x in (q, kv)]
        calls = (
            (lambda q, kv: sparse.attend(q, kv, kv, spec.band), (q, kv)),
            (lambda q, kv: attend(q, kv, kv, Band.of_row(GLOBALS)), first),
        )
        return sum(
            count_flops(jax.jit(call).lower(*shapes).compile().as_text()) for call, shapes in calls
        )

    def one(self, **keys):
        """A model of one layer."""
        return self.config(pattern="S", last_layer="any", num_layers=1, **keys)

    def test_a_layer_sees_its_window_and_the_first_tokens(self):
        """By gradients: which inputs change which results."""
        seen = influence(self.one(), time=12)
        for query in range(12):
            window = set(range(max(0, query - WINDOW + 1), query + 1))
            assert set(np.flatnonzero(seen[query])) == window | set(range(min(GLOBALS, query + 1)))

    def test_the_plan_counts_the_keys_that_are_seen(self):
        config = self.one()
        (spec,) = model.layer_plan(config).mixers()
        seen = influence(config, time=12).sum()
        assert spec.flops_per_token(config, 12)[1] == pytest.approx(4 * 2 * 8 * seen / 12)

    def test_bytes_are_those_of_the_window_and_twice_the_first_tokens(self):
        (spec,) = model.layer_plan(
            self.config(pattern="S", num_layers=1, last_layer="any")
        ).mixers()
        slot = 2 * 8 * 4  # a key and a value of one head
        assert spec.state_bytes(CacheFormat(100)) == (WINDOW + 2 * GLOBALS) * slot
        assert spec.state_bytes(CacheFormat(100, slack=3)) == (WINDOW + 3 + 2 * GLOBALS) * slot
        assert spec.state_bytes_all_global(CacheFormat(100)) == 100 * slot

    def test_global_tokens_have_projections_of_their_own(self):
        """Without them the first tokens' results change, of later ones only through these."""
        config = self.one()
        params, tokens = params_of(config), tokens_of(config)
        names = params["segments"][0][0]["mixer"]["global_tokens"]
        assert set(names) == {"q_proj", "k_proj", "v_proj", "q_norm", "k_norm"}
        run = jax.jit(functools.partial(model.logits, config))
        zeroed = jax.tree.map(lambda leaf: leaf, params)
        zeroed["segments"][0][0]["mixer"]["global_tokens"]["v_proj"]["kernel"] *= 0
        changed = np.abs(run(params, tokens) - run(zeroed, tokens)).max(axis=(0, 2)) > 1e-5
        np.testing.assert_array_equal(changed, np.arange(14) < GLOBALS)

    def test_documents_shorter_than_the_global_tokens_stand_alone(self):
        config = self.config(longformer={"num_global_tokens": 5}, pattern="S", last_layer="any")
        lengths = np.array([1, 2, 9, 3, 3])
        batch = packed(batch=1, time=lengths.sum())
        segments = jnp.asarray(np.repeat(np.arange(5), lengths), jnp.int32)[None]
        positions = jnp.asarray(np.concatenate([np.arange(n) for n in lengths]), jnp.int32)[None]
        run = jax.jit(functools.partial(model.logits, config))
        whole = run(params_of(config), batch.tokens, positions, segments)
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            part = slice(end - length, end)
            alone = run(params_of(config), batch.tokens[:, part])
            np.testing.assert_allclose(whole[:, part], alone, atol=1e-3)

    def test_windows_are_given_for_each_letter(self):
        config = self.config(pattern="SG", window_sizes=(3, 0), num_layers=4)
        assert next(model.layer_plan(config).mixers()).band.window_blocks == 3
        with pytest.raises(ConfigError, match="window_sizes: must be at least 1 at an S"):
            self.config(pattern="SG", window_sizes=(0, 0), num_layers=4)

    def test_the_picture_is_the_pattern(self):
        (spec,) = model.layer_plan(
            self.config(pattern="S", num_layers=1, last_layer="any")
        ).mixers()
        picture = spec.picture(12, 6)
        assert list(np.flatnonzero(picture[11])) == [0, 1, 8, 9, 10, 11]
        assert list(np.flatnonzero(picture[1])) == [0, 1]


def influence(config, time):
    """bool [time, time]: whether a layer's result at a token depends on the input at another."""
    params = params_of(config)
    table = params["embedder"]["embedding"][:time]

    def stream(rows):
        embedded = params | {"embedder": {"embedding": rows}}
        tokens = jnp.arange(time, dtype=jnp.int32)[None]
        return model.hidden_states(config, embedded, tokens)[0]

    jacobian = jax.jit(jax.jacrev(stream))(table)
    return np.abs(jacobian).max(axis=(1, 3)) > 0

"""BigBird as a letter: the contract of mixers, its keys and its costs."""

import dataclasses

import jax
import numpy as np
import pytest
from inference.small_models import params_of, tokens_of
from model.mixer_contract import TIME, AttentionMixer
from model.mixers.test_longformer import influence

from hybrid import model
from hybrid.config import ConfigError
from hybrid.costs.flops import count_flops
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.ops.attention import sparse

KEYS = {"block_size": 2, "window_blocks": 2, "num_global_blocks": 1, "num_random_blocks": 1}


class TestBigBird(AttentionMixer):
    letter, keys = "B", {"bigbird": KEYS}
    refused = "num_random_blocks", -1

    def mixing_flops(self, config, time):
        (spec,) = model.layer_plan(config).mixers()
        heads = (1, time, spec.num_heads, 8), (1, time, spec.num_kv_heads, 8)
        q, kv = (jax.ShapeDtypeStruct(shape, "float32") for shape in heads)
        call = jax.jit(lambda q, kv: sparse.attend(q, kv, kv, spec.band))
        return count_flops(call.lower(q, kv).compile().as_text())

    def one(self, **keys):
        """A model of one layer."""
        return self.config(pattern="B", last_layer="any", num_layers=1, **keys)

    def test_a_layer_sees_its_blocks_and_the_plan_counts_them(self):
        """By gradients: which inputs change which results."""
        config = self.one()
        (spec,) = model.layer_plan(config).mixers()
        seen = influence(config, time=16)
        for query in range(16):
            block = query // 2
            drawn = set(np.asarray(spec.band.drawn(block)).tolist()) - {-1}
            assert len(drawn) == (block >= 3)
            blocks = {max(0, block - 1), block, 0} | drawn
            keys = {key for each in blocks for key in (2 * each, 2 * each + 1) if key <= query}
            assert set(np.flatnonzero(seen[query])) == keys
        assert spec.flops_per_token(config, 16)[1] == pytest.approx(4 * 2 * 8 * seen.sum() / 16)

    def test_it_keeps_what_a_global_layer_keeps(self):
        (spec,) = model.layer_plan(self.one()).mixers()
        assert spec.state_bytes(CacheFormat(100)) == 100 * 2 * 8 * 4
        assert spec.state_bytes_all_global(CacheFormat(100)) == 100 * 2 * 8 * 4

    def test_a_seed_decides_what_is_drawn(self):
        first, second = (self.one(bigbird=KEYS | {"seed": seed}) for seed in (0, 1))
        tokens = jax.numpy.asarray(tokens_of(first, time=40))
        logits = [model.logits(each, params_of(first), tokens) for each in (first, second)]
        differs = np.abs(logits[0] - logits[1]).max(axis=(0, 2)) > 1e-4
        assert not differs[:6].any()
        assert differs[8:].any()

    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    def test_a_step_of_decoding_reads_only_the_blocks_that_it_sees(self, dtype):
        """Slots of other blocks may hold anything."""
        config = self.one()
        session = Session(config, params_of(config), InferenceConfig(cache_dtype=dtype))
        tokens = tokens_of(config, batch=1, time=TIME + 1)
        cache, _ = session.prefill(session.empty(1, 20), tokens[:, :TIME])
        (spec,) = model.layer_plan(config).mixers()
        read = np.asarray(spec.band.blocks_read(TIME // 2))
        is_read = np.isin(np.arange(cache.form.capacity) // 2, read)

        def spoiled(array):
            if array.dtype == "int8":
                return array
            is_kept = is_read.reshape(1, 1, 1, -1, *[1] * (array.ndim - 4))
            return np.where(is_kept, array, np.nan).astype(array.dtype)

        other = cache.copy()
        other = dataclasses.replace(other, layers=jax.tree.map(spoiled, other.layers))
        wanted, got = (session.prefill(c, tokens[:, TIME:], chunk=1)[1] for c in (cache, other))
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got, wanted)

    def test_windows_of_its_own_are_refused(self):
        with pytest.raises(ConfigError, match="window_sizes: must be 0 at a B"):
            self.config(pattern="BG", window_sizes=(3, 0), num_layers=4)

    def test_the_picture_is_the_pattern(self):
        (spec,) = model.layer_plan(self.one()).mixers()
        picture = spec.picture(12, 4)
        assert list(np.flatnonzero(picture[3])) == [0, 1, 2, 3]
        assert picture[11].sum() == 4 + 2 + 2

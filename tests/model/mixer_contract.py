"""What every state mixer must do as a letter of the pattern: subclass `StateMixer` with `letter`.

    class TestMamba2(StateMixer):
        letter, keys = "M", {"mamba2": {"state_dim": 8}}

Values against the mixer's own step-by-step recurrence, and against an independent implementation,
are tests of the mixer's own file.
"""

import dataclasses
import functools
import json
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.small_models import params_of, tokens_of
from training.tiny_run import experiment_of, rows

import hybrid
from hybrid import experiment, model
from hybrid.config import ConfigError
from hybrid.costs import model_costs
from hybrid.costs.flops import count_flops
from hybrid.data.batch import Batch
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model import cache as caches
from hybrid.model.config import ModelConfig
from hybrid.model.mixers import MIXERS
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.origin import Origin
from hybrid.training import loop

TIME = 14
MODEL = {
    "num_layers": 5,
    "last_layer": "force_global",
    "window_size": 4,
    "d_model": 16,
    "num_heads": 2,
    "head_dim": 8,
    "ffn_dim": 24,
    "vocab_size": 40,
}


class StateMixer:
    """The checks.

    Attributes:
      letter: of the mixer.
      keys: keys of `model.` besides `MODEL`.
      refused: a key of the mixer's section and a value that it refuses.
    """

    letter: str
    keys: ClassVar[dict[str, Any]] = {}
    refused: tuple[str, Any]

    def config(self, **keys) -> ModelConfig:
        """A model with the letter between local and global attention."""
        whole = MODEL | {"pattern": f"L{self.letter}"} | self.keys | keys
        return experiment.from_config({"model": whole}).model

    # --- Keys ----------------------------------------------------------------------------------

    def test_a_wrong_key_is_refused_by_name(self):
        section, _ = MIXERS[self.letter].section
        name, value = self.refused
        keys = {section: self.keys.get(section, {}) | {name: value}}
        with pytest.raises(ConfigError, match=f"model.{section}.{name}: "):
            self.config(**keys)
        with pytest.raises(ConfigError, match=f"model.{section}.no_such_key: unknown key"):
            self.config(**{section: {"no_such_key": 1}})

    # --- Training ------------------------------------------------------------------------------

    @pytest.mark.usefixtures("x64")
    def test_scan_equals_loop(self):
        config = self.config(dtype="float64", num_layers=4, last_layer="any")
        losses = [
            jax.jit(jax.value_and_grad(functools.partial(_loss, each)))(params_of(config), packed())
            for each in (config, dataclasses.replace(config, unroll=True))
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *losses)

    @pytest.mark.usefixtures("x64")
    def test_documents_of_a_row_do_not_see_each_other(self):
        config, batch = self.config(dtype="float64"), packed()
        run = jax.jit(functools.partial(model.logits, config))
        whole = run(params_of(config), batch.tokens, batch.positions, batch.segment_ids)
        alone = run(params_of(config), batch.tokens[:, FIRST:])
        np.testing.assert_allclose(whole[:, FIRST:], alone, atol=1e-9)

    def test_gradients_are_finite_and_reach_every_parameter(self):
        keys = {"layer_scalar": "trained", "last_layer": "any", "num_layers": 2}
        config = self.config(pattern=self.letter, **keys)
        gradients = jax.jit(jax.grad(functools.partial(_loss, config)))(params_of(config), packed())
        for path, leaf in jax.tree.leaves_with_path(gradients):
            assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
            assert np.any(leaf), jax.tree_util.keystr(path)

    def test_bfloat16_is_close_to_float32(self):
        configs = [self.config(dtype=dtype) for dtype in ("bfloat16", "float32")]
        tokens = tokens_of(configs[0])
        rough, exact = (
            jax.jit(functools.partial(model.logits, config))(params_of(configs[1]), tokens)
            for config in configs
        )
        assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()

    def test_it_trains_and_resumes_to_the_same_bits(self, tmp_path):
        keys = {f"model__{name}": value for name, value in self.keys.items()}
        keys |= {"model__pattern": f"{self.letter}G", "optimizer__schedule": "constant"}
        whole = experiment_of(tmp_path, **keys)
        losses = _losses(whole, tmp_path / "whole")
        assert losses[-1] < losses[0]
        half = dataclasses.replace(whole, training=dataclasses.replace(whole.training, num_steps=4))
        _losses(half, tmp_path / "resumed")
        assert _losses(whole, tmp_path / "resumed") == losses
        saved = json.loads((tmp_path / "whole" / "config.json").read_text())
        assert self.letter in saved["model"]["pattern"]

    # --- Inference -----------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [1, 3, TIME])
    @pytest.mark.usefixtures("x64")
    def test_chunks_of_any_size_equal_the_forward(self, size):
        config = self.config(dtype="float64")
        tokens = tokens_of(config, time=TIME)
        parts = [tokens[:, start : start + size] for start in range(0, TIME, size)]
        wanted = jax.jit(functools.partial(model.logits, config))(params_of(config), tokens)
        session = _session(config)
        np.testing.assert_allclose(_read(session, *parts)[1], wanted[:, -1], atol=1e-9)

    @pytest.mark.usefixtures("x64")
    def test_rows_of_different_lengths_equal_each_alone(self):
        config, lengths = self.config(dtype="float64"), np.array([TIME, 5])
        tokens = tokens_of(config, batch=2, time=TIME)
        session = _session(config)
        cache, logits = session.prefill(session.empty(2, TIME + 4), tokens, lengths)
        wanted = np.asarray(logits)  # decoding uses cache and logits up
        together = session.decode(cache, logits, 4)
        for row, length in enumerate(lengths):
            cache, logits = _read(session, tokens[row : row + 1, :length])
            np.testing.assert_allclose(logits[0], wanted[row], atol=1e-9)
            decoded = session.decode(cache, logits, 4)
            np.testing.assert_array_equal(together.tokens[row, :4], decoded.tokens[0, :4])

    def test_decoding_equals_the_forward(self):
        config = self.config()
        prompt, session = tokens_of(config, time=9), _session(config)
        decoded = session.decode(*_read(session, prompt), 4)
        tokens = np.concatenate([prompt, np.asarray(decoded.tokens)[:, :4]], axis=1)
        logits = jax.jit(functools.partial(model.logits, config))(params_of(config), tokens)
        np.testing.assert_array_equal(np.argmax(logits[:, 8:12], axis=-1), tokens[:, 9:])

    def test_a_rewind_is_refused_with_a_reason(self):
        config = self.config()
        cache, _ = _read(_session(config), tokens_of(config, time=5))
        with pytest.raises(ValueError, match=rf"{MIXERS[self.letter].title} layers can't: \w+"):
            cache.rewind(1)

    # --- Costs, export -------------------------------------------------------------------------

    def test_the_plan_counts_what_is_allocated_and_compiled(self):
        config = self.config()
        plan, form = model.layer_plan(config), CacheFormat(20)
        sizes = model_costs.cache_bytes(plan, form, 3)
        assert caches.allocate(plan, form, 3).num_bytes() == sizes
        assert sizes["state"] == model_costs.cache_bytes(plan, CacheFormat(4000), 3)["state"] > 0
        counted, planned = self._flops(256)
        assert counted == pytest.approx(planned, rel=0.02)

    def test_work_and_memory_are_linear_in_length(self):
        sizes = [self._compiled(time) for time in (256, 512, 1024)]
        flops = [count_flops(each.as_text()) for each in sizes]
        assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0]), rel=0.02)
        memory = [each.memory_analysis().temp_size_in_bytes for each in sizes]
        assert memory[2] <= 2.2 * memory[1]

    def _compiled(self, time):
        config = self.config(pattern=self.letter, last_layer="any", num_layers=1)
        tokens = jax.ShapeDtypeStruct((1, time), jnp.int32)
        forward = jax.jit(functools.partial(model.logits, config))
        return forward.lower(model.abstract(config), tokens).compile()

    def _flops(self, time):
        config = self.config(pattern=self.letter, last_layer="any", num_layers=1)
        planned = time * model_costs.forward_flops_per_token(config, time)
        return count_flops(self._compiled(time).as_text()), planned

    def test_export_is_refused_by_name(self, tmp_path):
        config = self.config()
        whole = hybrid.Model(config, params_of(config), Origin(tmp_path, {}, "byte", "auto"))
        reason = rf"{MIXERS[self.letter].title} \({self.letter}\) has no counterpart"
        with pytest.raises(ConfigError, match=reason):
            hybrid.save_pretrained(whole, tmp_path / "out")
        assert not (tmp_path / "out").exists()


FIRST = 7  # tokens of the first document of `packed`


def packed(batch=2, time=18):
    """Two documents a row, the first of `FIRST` tokens."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 40, (batch, time)), jnp.int32)
    segments = jnp.where(jnp.arange(time) < FIRST, 1, 2).astype(jnp.int32)
    positions = jnp.arange(time, dtype=jnp.int32) - jnp.where(segments == 2, FIRST, 0)
    rows_of = functools.partial(jnp.tile, reps=(batch, 1))
    is_target = jnp.ones((batch, time), bool)
    return Batch(tokens, tokens, rows_of(segments), rows_of(positions), is_target)


def _loss(config, params, batch):
    return model.loss_sums(config, params, batch).nll


def _losses(whole, folder):
    loop.run(whole, folder)
    return [row["loss"] for row in rows(folder) if "loss" in row]


def _session(config):
    return Session(config, params_of(config), InferenceConfig())


def _read(session, *parts):
    """The cache and logits after the parts, one behind the other."""
    cache = session.empty(len(parts[0]), TIME + 8)
    for part in parts:
        cache, logits = session.prefill(cache, part)
    return cache, logits

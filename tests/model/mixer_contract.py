"""What every mixer must do as a letter of the pattern: subclass one of the classes with `letter`.

    class TestMamba2(StateMixer):
        letter, keys = "M", {"mamba2": {"state_dim": 8}}

`MixerBehaviour` has what all letters do; `FixedState` and `Rewinds` what those do besides that have
a state of fixed size, or can be rewound; `StateMixer` and `AttentionMixer` what those that keep one
state alone, or keys and values. Values against the mixer's own step-by-step form, and against an
independent implementation, are tests of the mixer's own file.
"""

import abc
import dataclasses
import functools
import json
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.small_models import params_of, tokens_of
from jax.sharding import AbstractMesh
from training.tiny_run import experiment_of, rows

import hybrid
from hybrid import experiment, model
from hybrid.config import ConfigError
from hybrid.costs import hlo, model_costs
from hybrid.costs.flops import count_flops, flops_by_part
from hybrid.data.batch import Batch
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model import cache as caches
from hybrid.model.config import ModelConfig
from hybrid.model.mixers import MIXERS
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.origin import Origin
from hybrid.sharding import MESH_AXES
from hybrid.training import loop
from hybrid.workdir import checkpoint

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


class MixerBehaviour:
    """The checks of all letters.

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
        return self.experiment(**keys).model

    def experiment(self, **keys) -> experiment.Experiment:
        """An experiment with it."""
        whole = MODEL | {"pattern": f"L{self.letter}"} | self.keys | keys
        return experiment.from_config({"model": whole})

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
        # Weights as training begins: under `params_of`'s, local attention alone is off by 0.28.
        params, tokens = model.init(configs[1], jax.random.key(0)), tokens_of(configs[0])
        rough, exact = (
            jax.jit(functools.partial(model.logits, config))(params, tokens) for config in configs
        )
        assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()

    def test_it_trains_and_resumes_to_the_same_bits(self, tmp_path):
        check_resume(tmp_path, pattern=f"{self.letter}G", **self.keys)
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

    # --- Costs, export -------------------------------------------------------------------------

    def test_the_plan_counts_what_is_allocated(self):
        plan, form = model.layer_plan(self.config()), CacheFormat(20, slack=1)
        assert caches.allocate(plan, form, 3).num_bytes() == model_costs.cache_bytes(plan, form, 3)

    def test_work_and_memory_are_linear_in_length(self):
        sizes = [self._compiled(time) for time in (256, 512, 1024)]
        flops = [count_flops(each.as_text()) for each in sizes]
        assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0]), rel=0.02)
        memory = [each.memory_analysis().temp_size_in_bytes for each in sizes]
        assert memory[2] <= 2.2 * memory[1]

    def test_export_is_refused_by_name(self, tmp_path):
        config = self.config()
        whole = hybrid.Model(config, params_of(config), Origin(tmp_path, {}, "byte", "auto"))
        reason = rf"{MIXERS[self.letter].title} \({self.letter}\) has no counterpart"
        with pytest.raises(ConfigError, match=reason):
            hybrid.save_pretrained(whole, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_split_of_time_is_refused_by_name(self):
        about = rf"{MIXERS[self.letter].title} \({self.letter}\)"
        with pytest.raises(ConfigError, match=rf"^mesh.context: splits time, which {about}"):
            self.experiment().check_context(AbstractMesh((1, 1, 1, 2, 1), MESH_AXES))

    def test_keys_and_values_are_not_shared(self):
        with pytest.raises(ConfigError, match=rf"reaches a layer {self.letter}, which \w+"):
            self.config(pattern=self.letter, last_layer="any", num_kv_shared_layers=2)

    def _compiled(self, time):
        config = self.config(pattern=self.letter, last_layer="any", num_layers=1)
        tokens = jax.ShapeDtypeStruct((1, time), jnp.int32)
        forward = jax.jit(functools.partial(model.logits, config))
        return forward.lower(model.abstract(config), tokens).compile()

    def _flops(self, time):
        """FLOPs of the forward pass, as compiled under the letter's kind, and as planned.

        The head has no scope of its own, so it counts for the layer that it is made from.
        """
        config = self.config(pattern=self.letter, last_layer="any", num_layers=1)
        planned = time * model_costs.forward_flops_per_token(config, time)
        counted = flops_by_part(hlo.parse(self._compiled(time).as_text()))
        return counted[MIXERS[self.letter].kind], planned


class FixedState(MixerBehaviour):
    """The checks of mixers with a state of fixed size."""

    def test_the_plan_counts_what_is_compiled(self):
        counted, planned = self._flops(256)
        assert counted == pytest.approx(planned, rel=0.02)

    def test_the_state_does_not_grow_with_the_capacity(self):
        plan = model.layer_plan(self.config())
        short, long = (model_costs.cache_bytes(plan, CacheFormat(n), 3) for n in (20, 4000))
        assert short["state"] == long["state"] > 0


class StateMixer(FixedState):
    """The checks of mixers with one state, which can't be rewound."""

    def test_a_rewind_is_refused_with_a_reason(self):
        config = self.config()
        cache, _ = _read(_session(config), tokens_of(config, time=5))
        with pytest.raises(ValueError, match=rf"{MIXERS[self.letter].title} layers can't: \w+"):
            cache.rewind(1)


class Rewinds(MixerBehaviour):
    """The checks of mixers that can be rewound."""

    @pytest.mark.parametrize("before", [3, 9, TIME])
    @pytest.mark.usefixtures("x64")
    def test_rewound_and_read_on_equals_cold(self, before):
        config = self.config(dtype="float64")
        session = _session(config, slack=2)
        tokens = tokens_of(config, time=TIME)
        other = (tokens[:, :4] + 7) % config.vocab_size
        cache, _ = _read(session, tokens[:, :before])
        logits = session.prefill(cache.rewind(2), other)[1]
        cold = _read(session, np.concatenate([tokens[:, : before - 2], other], axis=1))[1]
        np.testing.assert_allclose(logits, cold, atol=1e-9)


class AttentionMixer(Rewinds, abc.ABC):
    """The checks of mixers that keep keys and values."""

    @pytest.mark.usefixtures("x64")
    def test_a_grown_cache_goes_on_as_before(self):
        config = self.config(dtype="float64")
        tokens, plan = jnp.asarray(tokens_of(config, time=TIME)), model.layer_plan(config)
        params = params_of(config)
        extend, hidden_states = (
            jax.jit(functools.partial(f, config)) for f in (model.extend, model.hidden_states)
        )
        cache = caches.allocate(plan, CacheFormat(3, "float64"), len(tokens))
        for part in (tokens[:, :3], tokens[:, 3:]):
            slots = model.slot_arrays(plan, cache.form, "float64")
            num_new = jnp.full(len(tokens), part.shape[1])
            x, cache = extend(params, jnp.asarray(part), num_new, cache, slots)
            cache = cache.grown(TIME)
        wanted = hidden_states(params, tokens)
        np.testing.assert_allclose(x[:, -1], wanted[:, -1], atol=1e-9)

    def test_the_plan_counts_the_weight_products_that_are_compiled(self):
        """Tiles hold pairs that nobody sees, and their products: those are left out."""
        counted, planned = self._flops(256)
        config = self.config(pattern=self.letter, last_layer="any", num_layers=1)
        (mixer,) = model.layer_plan(config).mixers()
        weights = planned - 256 * mixer.flops_per_token(config, 256)[1]
        assert counted - self.mixing_flops(config, 256) == pytest.approx(weights, rel=0.02)

    @abc.abstractmethod
    def mixing_flops(self, config, time) -> int:
        """FLOPs of the products of queries, keys and values as they are compiled."""


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


def check_resume(folder, **keys):
    """A model of these keys learns, and a run that was stopped goes on to the same bits."""
    keys = {f"model__{name}": value for name, value in keys.items()}
    whole = experiment_of(folder, optimizer__schedule="constant", **keys)
    losses = _losses(whole, folder / "whole")
    assert losses[-1] < losses[0]
    half = dataclasses.replace(whole, training=dataclasses.replace(whole.training, num_steps=4))
    _losses(half, folder / "resumed")
    assert _losses(whole, folder / "resumed") == losses
    saved = [_saved_params(whole, folder / name) for name in ("whole", "resumed")]
    jax.tree.map(np.testing.assert_array_equal, *saved)


def _saved_params(whole, folder):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        model.abstract(whole.model),
    )
    return checkpoint.restore_params(folder, "latest", shapes)[0]


def _losses(whole, folder):
    loop.run(whole, folder)
    return [row["loss"] for row in rows(folder) if "loss" in row]


def _session(config, **keys):
    return Session(config, params_of(config), InferenceConfig(**keys))


def _read(session, *parts):
    """The cache and logits after the parts, one behind the other."""
    cache = session.empty(len(parts[0]), TIME + 8)
    for part in parts:
        cache, logits = session.prefill(cache, part)
    return cache, logits

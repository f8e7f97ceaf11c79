"""Switches of attention that `hybrid` compares: gates, learned positions, chunks, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inference.small_models import BASE, logits_of, params_of, tokens_of

from hybrid import experiment, model
from hybrid.config import ConfigError
from hybrid.costs import model_costs
from hybrid.costs.flops import count_flops
from hybrid.generate import generate
from hybrid.loading.api import Model, save_pretrained
from hybrid.model.mixers.protocol import Placement
from hybrid.origin import Origin

SWITCHES = {
    "attention_gate": "head",
    "local_attention": "chunk",
    "learned_positions": 64,
    "rope_fraction": 0.5,
}


# --- Gates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["head", "element"])
def test_a_gate_multiplies_what_each_head_gives(gate):
    """With o_proj the identity, a layer's result is that of its heads."""
    config = dataclasses.replace(BASE, attention_gate=gate, d_model=32, head_dim=8)
    spec = next(model.layer_plan(config).layers()).mixer
    gated = spec.build(config, nnx.Rngs(0))
    plain = dataclasses.replace(spec, gate="none").build(config, nnx.Rngs(0))
    weights = nnx.to_pure_dict(nnx.state(gated))
    del weights["output_gate"]
    nnx.update(plain, weights)
    identity = jnp.eye(32).reshape(4, 8, 32)
    gated.o_proj.kernel[...], plain.o_proj.kernel[...] = identity, identity
    x = jax.random.normal(jax.random.key(1), (2, 6, 32))
    positions = jnp.tile(jnp.arange(6), (2, 1))
    shared = {spec.shared_key: spec.shared(positions, x.dtype)}
    placement = Placement(positions, None, shared)
    of_heads, result = plain(x, placement)[0], gated(x, placement)[0]
    kernel = np.asarray(gated.output_gate.kernel[...]).reshape(32, -1)
    share = 1 / (1 + np.exp(-np.asarray(x) @ kernel))
    share = np.repeat(share, 32 // share.shape[-1], axis=-1)
    np.testing.assert_allclose(result, of_heads * share, rtol=1e-5, atol=1e-6)


# --- Learned positions -----------------------------------------------------------------------


def test_a_position_has_its_vector_added():
    config = dataclasses.replace(BASE, learned_positions=20)
    tokens, params = jnp.asarray(tokens_of(config)), params_of(config)
    table = params["embedder"]["positions"]
    assert table.shape == (20, config.d_model)

    def logits(table):
        embedder = params["embedder"] | {"positions": table}
        return np.asarray(model.logits(config, params | {"embedder": embedder}, tokens))

    none = dataclasses.replace(config, learned_positions=0)
    plain = params | {"embedder": {"embedding": params["embedder"]["embedding"]}}
    np.testing.assert_array_equal(
        logits(jnp.zeros_like(table)), np.asarray(model.logits(none, plain, tokens))
    )
    moved = np.abs(logits(table.at[5].add(1.0)) - logits(table)).max(axis=(0, 2))
    np.testing.assert_array_equal(moved > 0, np.arange(len(moved)) >= 5)


def test_rows_longer_than_the_table_are_refused():
    keys = {"model": {"learned_positions": 100}, "training": {"context_length": 128}}
    with pytest.raises(ConfigError, match=r"at most model.learned_positions \(100\)") as error:
        experiment.from_config(keys)
    assert error.value.key == "training.context_length"
    keys = {"model": {"learned_positions": 300}, "eval": {"context_length": (64, 400)}}
    with pytest.raises(ConfigError) as error:
        experiment.from_config(keys)
    assert error.value.key == "eval.context_length"
    keys = {"model": {"learned_positions": 300}, "eval": {"retrieval": {"tasks": ("vt",)}}}
    with pytest.raises(ConfigError) as error:
        experiment.from_config(keys)
    assert error.value.key == "eval.retrieval.lengths"


def test_texts_longer_than_the_table_are_refused(tmp_path):
    config = dataclasses.replace(BASE, learned_positions=20)
    whole = Model(config, params_of(config), Origin(tmp_path, {}, "byte", "auto"))
    assert generate(whole, np.arange(10), 10).shape == (1, 20)
    with pytest.raises(ConfigError, match=r"model.learned_positions \(20\)"):
        generate(whole, np.arange(10), 11)


# --- Chunks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "windows", "reach"),
    [
        ("window", (4,), 4),
        ("window", (4, 4, 4), 10),
        ("chunk", (4,), 4),
        ("chunk", (4, 4, 4), 4),
        ("chunk", (2, 4), 4),
    ],
)
def test_a_change_is_seen_as_far_as_the_plan_says(kind, windows, reach):
    layers = {"pattern": "L" * len(windows), "num_layers": len(windows), "window_sizes": windows}
    config = dataclasses.replace(BASE, last_layer="any", local_attention=kind, **layers)
    tokens = tokens_of(config)
    other = tokens.copy()
    other[:, 4] = (other[:, 4] + 1) % config.vocab_size
    moved = np.abs(logits_of(config, tokens) - logits_of(config, other)).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), range(4, 4 + reach))
    assert model.layer_plan(config).reach == reach


def test_a_token_of_another_chunk_changes_nothing():
    config = dataclasses.replace(
        BASE, pattern="L", last_layer="any", num_layers=1, local_attention="chunk"
    )
    tokens = tokens_of(config)
    other = tokens.copy()
    other[:, 5] = (other[:, 5] + 1) % config.vocab_size
    moved = np.abs(logits_of(config, tokens) - logits_of(config, other)).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), [5, 6, 7])  # chunks of 4


# --- Costs and export ------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["head", "element"])
def test_a_gates_products_are_counted(gate):
    config = dataclasses.replace(BASE, attention_gate=gate, attention="reference", num_layers=2)
    config = dataclasses.replace(config, pattern="G")
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    program = jax.jit(lambda p, x: model.logits(config, p, x)).lower(model.abstract(config), tokens)
    plain = dataclasses.replace(config, attention_gate="none")
    more = count_flops(program.compile().as_text()) - count_flops(
        jax.jit(lambda p, x: model.logits(plain, p, x))
        .lower(model.abstract(plain), tokens)
        .compile()
        .as_text()
    )
    planned = [model_costs.forward_flops_per_token(each, 16) for each in (config, plain)]
    assert more == 16 * (planned[0] - planned[1]) > 0


@pytest.mark.parametrize("name", SWITCHES)
def test_what_transformers_cannot_express_is_refused_by_key(tmp_path, name):
    config = dataclasses.replace(BASE, **{name: SWITCHES[name]})
    whole = Model(config, params_of(config), Origin(tmp_path, {}, "byte", "auto"))
    with pytest.raises(ConfigError) as error:
        save_pretrained(whole, tmp_path / "out")
    assert error.value.key == f"model.{name}"

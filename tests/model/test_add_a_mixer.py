"""A mixer is one file and one row of the table: everything else takes it from there."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
from ablate import example_results
from ablate.from_json import sweep_results
from inference.small_models import params_of, tokens_of
from model.running_average import LETTER
from training.tiny_run import experiment_of, rows

import hybrid
from hybrid import experiment, model
from hybrid.ablate.report import figures, view
from hybrid.config import ConfigError
from hybrid.costs import model_costs
from hybrid.costs.flops import count_flops
from hybrid.data.batch import Batch
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model import cache as caches
from hybrid.model.config import ModelConfig
from hybrid.model.mixers import MIXERS, register
from hybrid.model.mixers.protocol import CacheFormat, MixerSpec
from hybrid.origin import Origin
from hybrid.plan import report
from hybrid.plan.table import render
from hybrid.training import loop

TIME, SLACK = 14, 3
MODEL = {
    "pattern": "LAG",
    "num_layers": 7,
    "last_layer": "force_global",
    "window_size": 4,
    "d_model": 16,
    "num_heads": 2,
    "head_dim": 8,
    "ffn_dim": 24,
    "vocab_size": 40,
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The letter in the table, for this file."""
    register(LETTER)
    yield
    del MIXERS[LETTER.letter], ModelConfig.SECTIONS[LETTER.section[0]]


def experiment_with(**model_keys):
    return experiment.from_config({"model": {**MODEL, **model_keys}})


def config_with(**model_keys) -> ModelConfig:
    return experiment_with(**model_keys).model


@functools.cache
def session():
    config = config_with()
    return Session(config, params_of(config), InferenceConfig(slack=SLACK))


def read(*parts):
    """The cache and logits after the parts, one behind the other."""
    cache = session().empty(len(parts[0]), TIME)
    for part in parts:
        cache, logits = session().prefill(cache, part)
    return cache, logits


# --- Plan and keys ---------------------------------------------------------------------------


def test_its_layers_are_planned_and_scanned():
    plan = model.layer_plan(config_with())
    assert plan.letters == "LAGLAGG"
    assert [(segment.letters, segment.repetitions) for segment in plan.segments] == [
        ("LAG", 2),
        ("G", 1),
    ]


def test_its_keys_are_a_section_of_the_model():
    config = config_with(average={"decay": 0.5})
    assert config.section("average").decay == 0.5
    assert config_with().section("average").decay == 0.9
    assert experiment.to_dict(experiment_with())["model"]["average"] == {"decay": 0.9}
    decays = {getattr(mixer, "decay", None) for mixer in model.layer_plan(config).mixers()}
    assert decays == {None, 0.5}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"average": {"decay": 2.0}}, "model.average.decay: must be at most 1, got 2.0"),
        ({"average": {"deca": 0.5}}, "model.average.deca: unknown key"),
        ({"num_kv_shared_layers": 3}, "has no keys and values to share"),
    ],
)
def test_wrong_keys_are_refused_by_name(keys, message):
    with pytest.raises(ConfigError, match=message):
        experiment_with(**keys)


# --- Training --------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_scan_equals_loop():
    config = config_with(dtype="float64", num_layers=6, last_layer="any")
    losses = [
        jax.jit(jax.value_and_grad(functools.partial(loss, each)))(params_of(config), packed())
        for each in (config, dataclasses.replace(config, unroll=True))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *losses)


def loss(config, params, batch):
    return model.loss_sums(config, params, batch).nll


def packed(rows=2, time=12):
    """Two documents a row."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 40, (rows, time)), jnp.int32)
    segments = jnp.tile(jnp.repeat(jnp.array([1, 2], jnp.int32), time // 2), (rows, 1))
    positions = jnp.tile(jnp.arange(time // 2, dtype=jnp.int32), (rows, 2))
    return Batch(tokens, tokens, segments, positions, jnp.ones((rows, time), bool))


def test_documents_of_a_row_do_not_see_each_other():
    config, batch = config_with(), packed()
    run = jax.jit(functools.partial(model.logits, config))
    whole = run(params_of(config), batch.tokens, batch.positions, batch.segment_ids)
    alone = run(params_of(config), batch.tokens[:, 6:])
    np.testing.assert_allclose(whole[:, 6:], alone, atol=1e-4)


def test_it_trains_and_resumes_to_the_same_bits(tmp_path):
    keys = {"model__pattern": "AG", "model__average": {"decay": 0.7}}
    keys |= {"optimizer__schedule": "constant"}
    whole = experiment_of(tmp_path, **keys)
    loop.run(whole, tmp_path / "whole")
    losses = [row["loss"] for row in rows(tmp_path / "whole") if "loss" in row]
    assert losses[-1] < losses[0]
    half = dataclasses.replace(whole, training=dataclasses.replace(whole.training, num_steps=4))
    loop.run(half, tmp_path / "resumed")
    loop.run(whole, tmp_path / "resumed")
    assert [row["loss"] for row in rows(tmp_path / "resumed") if "loss" in row] == losses
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert saved["model"]["average"] == {"decay": 0.7}
    assert hybrid.load(tmp_path / "whole")(np.arange(10)[None]).shape == (1, 10, 264)


# --- Inference -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5, TIME])
def test_chunks_of_any_size_equal_the_forward(size):
    config = session().config
    tokens = tokens_of(config, time=TIME)
    parts = [tokens[:, start : start + size] for start in range(0, TIME, size)]
    wanted = jax.jit(functools.partial(model.logits, config))(params_of(config), tokens)
    np.testing.assert_allclose(read(*parts)[1], wanted[:, -1], atol=1e-4)


def test_decoding_equals_the_forward():
    config = session().config
    prompt = tokens_of(config, time=9)
    decoded = session().decode(*read(prompt), 4)
    tokens = np.concatenate([prompt, np.asarray(decoded.tokens)[:, :4]], axis=1)
    logits = jax.jit(functools.partial(model.logits, config))(params_of(config), tokens)
    np.testing.assert_array_equal(np.argmax(logits[:, 8:12], axis=-1), tokens[:, 9:])


@pytest.mark.parametrize("before", [2, 5, TIME - SLACK])
def test_rewound_and_read_on_equals_cold(before):
    tokens = tokens_of(session().config, time=TIME)
    back = min(SLACK, before - 1)
    cache, _ = read(tokens[:, :before])
    other = (tokens[:, :4] + 7) % 40
    _, logits = session().prefill(cache.rewind(back), other)
    cold = read(np.concatenate([tokens[:, : before - back], other], axis=1))[1]
    np.testing.assert_allclose(logits, cold, atol=1e-4)


def test_a_mixer_without_rewind_says_why(monkeypatch):
    spec = type(next(m for m in session().plan.mixers() if hasattr(m, "decay")))
    monkeypatch.setattr(spec, "LACKS", {"rewind": "they keep one state"})
    cache, _ = read(tokens_of(session().config, time=5))
    with pytest.raises(ValueError, match="running average layers can't: they keep one state"):
        cache.rewind(1)


# --- Costs, tables, export -------------------------------------------------------------------


def test_the_plan_counts_what_is_allocated_and_compiled():
    config = config_with(attention="reference")
    plan, form = model.layer_plan(config), CacheFormat(20, slack=2)
    sizes = model_costs.cache_bytes(plan, form, 3)
    assert caches.allocate(plan, form, 3).num_bytes() == sizes
    assert sizes["state"] == 3 * 2 * 3 * 16 * 4
    only = dataclasses.replace(config, pattern="A", last_layer="any")
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    forward = jax.jit(functools.partial(model.logits, only)).lower(model.abstract(only), tokens)
    counted = count_flops(forward.compile().as_text())
    assert counted == 16 * model_costs.forward_flops_per_token(only, 16)


def test_tables_and_figures_show_it():
    whole = experiment_with()
    text = render(report(whole), whole, "page")
    assert "running average of 16, decay 0.9" in text
    assert "state" in text
    pattern = scripts.load("figures/pattern")
    assert LETTER.look.colour in pattern.render(model.layer_plan(whole.model), "page")


def test_cells_of_a_sweep_have_its_look():
    results = example_results.ratio()
    cells = results["summary"]["arms"][0]["cells"]
    cells[0]["letters"] = "AAAA"
    arm = view.arms(sweep_results(results))[0]
    style = figures.cell_styles(arm)[cells[0]["name"]]
    assert style["color"] == LETTER.look.colour


def test_a_mixer_that_forgets_what_it_must_say_is_refused():
    class Forgetful(type(LETTER.spec(config_with(), 0))):
        summary = MixerSpec.summary

    with pytest.raises(TypeError, match=r"abstract method '?summary"):
        Forgetful(width=1, decay=0.5, dtype="float32")
    with pytest.raises(TypeError, match="AverageSpec has a shared_key, so it must override shared"):
        LETTER.spec(config_with(), 0).shared(jnp.zeros((1, 1), int), "float32")


def test_export_is_refused_by_name(tmp_path):
    config = config_with()
    origin = Origin(tmp_path, {}, "byte", "auto")
    whole = hybrid.Model(config, params_of(config), origin)
    with pytest.raises(
        ConfigError, match=r"running average \(A\) has no counterpart in transformers"
    ):
        hybrid.save_pretrained(whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()

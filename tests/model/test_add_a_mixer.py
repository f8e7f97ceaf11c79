"""A mixer is one file and one row of the table: everything else takes it from there."""

import jax.numpy as jnp
import pytest
import scripts
from ablate import example_results
from ablate.from_json import sweep_results
from inference.small_models import params_of, tokens_of
from model.mixer_contract import MODEL, FixedState, Rewinds
from model.running_average import LETTER

from hybrid import experiment, model
from hybrid.ablate.report import figures, view
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model.config import ModelConfig
from hybrid.model.mixers import MIXERS, register
from hybrid.model.mixers.protocol import MixerSpec
from hybrid.plan import report
from hybrid.plan.table import render


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The letter in the table, for this file."""
    register(LETTER)
    yield
    del MIXERS[LETTER.letter], ModelConfig.SECTIONS[LETTER.section[0]]


def experiment_with(**keys):
    whole = MODEL | {"pattern": "LAG", "num_layers": 7} | keys
    return experiment.from_config({"model": whole})


def config_with(**keys) -> ModelConfig:
    return experiment_with(**keys).model


class TestRunningAverage(FixedState, Rewinds):
    letter = "A"
    refused = ("decay", 2.0)


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


def test_a_mixer_without_rewind_says_why(monkeypatch):
    config = config_with()
    session = Session(config, params_of(config), InferenceConfig(slack=3))
    spec = type(next(m for m in session.plan.mixers() if hasattr(m, "decay")))
    monkeypatch.setattr(spec, "LACKS", {"rewind": "they keep one state"})
    tokens = tokens_of(config, time=5)
    cache, _ = session.prefill(session.empty(len(tokens), 14), tokens)
    with pytest.raises(ValueError, match="running average layers can't: they keep one state"):
        cache.rewind(1)


# --- Tables and figures ----------------------------------------------------------------------


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

"""A schedule of windows trains stage by stage and ends at the model's own window."""

import json
import math

import jax
import numpy as np
import pytest
from training.tiny_run import experiment_of

from hybrid import experiment, model, origin
from hybrid.config import ConfigError
from hybrid.evaluation.target import evaluate_target, of_run
from hybrid.model.config import ModelConfig
from hybrid.training import loop
from hybrid.training.config import TrainingConfig
from hybrid.training.window_schedule import stage_at, stages
from hybrid.workdir import checkpoint, metrics

SCHEDULE = ((0.5, 2), (0.5, 8))


MODEL = ModelConfig(window_size=8)


def stages_of(num_steps):
    return stages(MODEL, TrainingConfig(num_steps=num_steps, window_schedule=SCHEDULE))


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(8, [(0, 2), (4, 8)]), (2, [(0, 2), (1, 8)]), (1, [(0, 8)])],
)
def test_stages_share_the_steps_and_the_last_window_is_always_trained(num_steps, expected):
    found = stages_of(num_steps)
    assert [(stage.first_step, stage.model.window_size) for stage in found] == expected


def test_a_step_belongs_to_the_stage_that_began_last():
    windows = [stage_at(stages_of(8), step).model.window_size for step in range(8)]
    assert windows == [2] * 4 + [8] * 4


@pytest.mark.parametrize(
    "schedule",
    [((0.5, 2), (0.6, 8)), ((0.5, 0), (0.5, 8)), ((0.0, 2), (1.0, 8)), ((0.5, 2, 3),), (2,)],
)
def test_a_schedule_that_makes_no_sense_is_refused(schedule):
    with pytest.raises(ConfigError) as error:
        experiment.from_config({"training": {"window_schedule": schedule}})
    assert error.value.key == "training.window_schedule"


@pytest.mark.parametrize("keys", [{"window_size": 64}, {"window_size": 8, "window_sizes": (8, 0)}])
def test_training_refuses_a_schedule_that_contradicts_the_model(tmp_path, keys):
    keys = {f"model__{name}": value for name, value in keys.items()}
    config = experiment_of(tmp_path, training__window_schedule=SCHEDULE, **keys)
    with pytest.raises(ConfigError, match=r"model\.window_size") as error:
        loop.run(config, tmp_path / "run")
    assert (error.value.key, error.value.got) == ("training.window_schedule", SCHEDULE)
    assert not (tmp_path / "run").exists()


CHOICES = ((0.25, 2), (0.75, 4))


def drawn(num_steps, **keys):
    training = TrainingConfig(num_steps=num_steps, window_choices=CHOICES, **keys)
    found = stages(MODEL, training)
    return [stage_at(found, step).model.window_size for step in range(num_steps)]


def test_drawn_windows_come_in_their_proportions_and_the_end_has_the_models():
    windows = drawn(4000)
    assert set(windows[3600:]) == {8}
    assert windows[:3600].count(2) / 3600 == pytest.approx(0.25, abs=0.03)
    assert windows[:3600].count(4) / 3600 == pytest.approx(0.75, abs=0.03)
    assert drawn(1) == [8]


def test_a_drawn_window_follows_from_seed_and_step_alone():
    assert drawn(50)[:45] == drawn(500)[:45]
    assert drawn(50)[:45] != drawn(50, seed=1)[:45]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"window_choices": ((0.5, 2),)}, "training.window_choices"),
        ({"window_choices": ((1.0, 0),)}, "training.window_choices"),
        ({"window_choices": CHOICES, "window_schedule": SCHEDULE}, "training.window_choices"),
        ({"window_choices": CHOICES, "window_choices_share": 0.0}, "training.window_choices_share"),
    ],
)
def test_choices_that_make_no_sense_are_refused(keys, named):
    with pytest.raises(ConfigError) as error:
        experiment.from_config({"training": keys})
    assert error.value.key == named


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schedule")
    config = experiment_of(folder, training__window_schedule=SCHEDULE, training__num_steps=6)
    loop.run(config, folder / "run")
    return config, folder / "run"


def parameters(config, workdir, step):
    return checkpoint.restore_params(workdir, str(step), model.abstract(config.model))[0]


def test_each_stage_trains_under_its_own_window(trained, tmp_path):
    """A run of the first window alone has the same rows up to the change, and others after it."""
    _, workdir = trained
    rows = [row for row in metrics.read_rows(workdir / "metrics.jsonl") if "loss" in row]
    losses = {}
    for window in (2, 8):
        fixed = experiment_of(tmp_path / str(window), model__window_size=window)
        loop.run(fixed, tmp_path / str(window) / "run")
        found = metrics.read_rows(tmp_path / str(window) / "run" / "metrics.jsonl")
        losses[window] = [row["loss"] for row in found if "loss" in row]
    scheduled = [row["loss"] for row in rows]
    assert scheduled[:3] == losses[2][:3]
    assert scheduled[3] != losses[2][3]
    assert scheduled[0] != losses[8][0]


def test_evaluation_is_at_the_final_window(trained):
    config, workdir = trained
    params = parameters(config, workdir, 6)
    tokens = jax.numpy.arange(1, 33, dtype=jax.numpy.int32)[None]

    def logits(window):
        fixed = ModelConfig(**{**vars(config.model), "window_size": window})
        return jax.jit(lambda p: model.logits(fixed, p, tokens))(params)

    scheduled = jax.jit(lambda p: model.logits(config.model, p, tokens))(params)
    np.testing.assert_array_equal(scheduled, logits(8))
    assert np.abs(scheduled - logits(2)).max() > 1e-4


def run_killed_at(step, config, workdir):
    """A run that ends without a word after `step` steps, and the same command once more."""
    flush_metrics = loop.Run.flush_metrics

    class Killed(Exception):
        pass

    def killed(self, newest=None):
        if self.step == step:
            raise Killed
        flush_metrics(self, newest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "flush_metrics", killed)
        with pytest.raises(Killed):
            loop.run(config, workdir)
    loop.run(config, workdir)


def test_a_resumed_run_enters_the_stage_it_was_in(trained, tmp_path):
    config, workdir = trained
    run_killed_at(5, config, tmp_path / "run")
    whole, resumed = (parameters(config, folder, 6) for folder in (workdir, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_a_resumed_run_draws_the_windows_it_would_have_drawn(tmp_path):
    choices = {"training__window_choices": ((0.5, 2), (0.5, 4)), "training__num_steps": 8}
    choices["training__seed"] = 2  # draws both
    config = experiment_of(tmp_path, **choices)
    windows = [stage.model.window_size for stage in stages(config.model, config.training)]
    assert set(windows) == {2, 4, 8}
    loop.run(config, tmp_path / "whole")
    run_killed_at(5, config, tmp_path / "resumed")
    losses = [
        [
            row["loss"]
            for row in metrics.read_rows(tmp_path / run / "metrics.jsonl")
            if "loss" in row
        ]
        for run in ("whole", "resumed")
    ]
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]


def test_the_former_key_is_refused_by_its_new_name():
    with pytest.raises(ConfigError, match=r"is now training\.window_schedule") as error:
        experiment.from_config({"model": {"window_schedule": SCHEDULE}})
    assert error.value.key == "model.window_schedule"


@pytest.mark.parametrize("schedule", [(), SCHEDULE])
def test_a_workdir_of_the_former_key_resumes_and_is_evaluated(tmp_path, schedule):
    keys = {"training__num_steps": 6, "training__window_schedule": schedule}
    config, workdir = experiment_of(tmp_path, **keys), tmp_path / "run"
    loop.run(config, workdir)
    values = json.loads((workdir / "config.json").read_text())
    values["model"]["window_schedule"] = values["training"].pop("window_schedule")
    if schedule:
        values["model"]["window_size"] = 64  # the schedule's last window counted
    (workdir / "config.json").write_text(json.dumps(values))

    loop.run(config, workdir)
    loop.run(experiment_of(tmp_path, **{**keys, "training__num_steps": 8}), workdir)
    assert checkpoint.checkpoint_steps(workdir)[-1] == 8
    (workdir / "config.json").write_text(json.dumps(values))
    assert origin.find(workdir).model["window_size"] == 8
    target = of_run(str(workdir), "latest", None, {"model.window_size": "4"})
    assert target.experiment.model.window_size == 4
    assert math.isfinite(evaluate_target(target).loss)

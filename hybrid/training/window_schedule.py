"""Windows that change in training: one after the other, or drawn; the model's own at the end.

A stage is a stretch of steps under one window. The step of a window is compiled when it is first
met; parameters and optimizer state pass from stage to stage unchanged, since their shapes do not
depend on the window. Evaluations in training use the model's own window, which is that of the last
stage.

    training.window_schedule    short windows first. Source: modded-nanogpt's window warm-up
                                (github.com/KellerJordan/modded-nanogpt).
    training.window_choices     each step's window is drawn, by seed and step alone, so that a
                                layer learns to do with less. Source: SWAX (2509.24552), sec. 4.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from hybrid.config import ConfigError
from hybrid.data.tasks.example import Draws
from hybrid.model.config import ModelConfig
from hybrid.training.config import TrainingConfig


class Stage(NamedTuple):
    """The steps after `first_step` finished ones are trained as `model`."""

    first_step: int
    model: ModelConfig


def stages(model: ModelConfig, training: TrainingConfig) -> tuple[Stage, ...]:
    """The stages of a run, those without a step left out; without a schedule there is one.

    Raises: ConfigError for a schedule that contradicts the model's window.

    >>> model = ModelConfig(window_size=64)
    >>> training = TrainingConfig(num_steps=100, window_schedule=((0.25, 16), (0.75, 64)))
    >>> [(stage.first_step, stage.model.window_size) for stage in stages(model, training)]
    [(0, 16), (25, 64)]
    """
    schedule, num_steps = training.window_schedule, training.num_steps
    name = "window_schedule" if schedule else "window_choices"
    if not getattr(training, name):
        return (Stage(0, model),)
    if model.window_sizes:
        problem = "can't be combined with model.window_sizes"
        raise ConfigError(f"training.{name}", problem, getattr(training, name))
    if not schedule:
        return _drawn(model, training)
    if schedule[-1][1] != model.window_size:
        problem = f"must end with model.window_size ({model.window_size})"
        raise ConfigError("training.window_schedule", problem, schedule)
    begun, passed = {}, 0.0
    for share, window in schedule:
        first_step = min(round(passed * num_steps), num_steps - 1)
        begun[first_step] = dataclasses.replace(model, window_size=window)
        passed += share
    return tuple(Stage(*begin) for begin in begun.items())


def _drawn(model: ModelConfig, training: TrainingConfig) -> tuple[Stage, ...]:
    """A stage for each run of steps that drew the same window; the last step has the model's."""
    shares, windows = zip(*training.window_choices, strict=True)
    sums = list(itertools.accumulate(shares[:-1]))
    models = [dataclasses.replace(model, window_size=window) for window in windows]
    drawn_share, num_steps = training.window_choices_share, training.num_steps
    num_drawn = min(round(drawn_share * num_steps), num_steps - 1)
    found: list[Stage] = []
    for step, u in enumerate(Draws("training windows", training.seed).uniform(num_drawn)):
        drawn = models[bisect.bisect(sums, u)]
        if not found or found[-1].model is not drawn:
            found.append(Stage(step, drawn))
    return (*found, Stage(num_drawn, model))


def stage_at(schedule: Sequence[Stage], step: int) -> Stage:
    """The stage of the step that follows `step` finished ones."""
    return schedule[bisect.bisect(schedule, step, key=lambda stage: stage.first_step) - 1]

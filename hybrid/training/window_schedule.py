"""`training.window_schedule`: short windows first, the model's own at the end.

A stage is a stretch of steps under one window. Its step is compiled when it begins; parameters and
optimizer state pass from stage to stage unchanged, since their shapes do not depend on the window.
Evaluations in training use the model's own window, which is that of the last stage.
Source: modded-nanogpt's window warm-up (github.com/KellerJordan/modded-nanogpt).
"""

import dataclasses
from typing import NamedTuple

from hybrid.config import ConfigError
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
    if not schedule:
        return (Stage(0, model),)
    if model.window_sizes:
        problem = "can't be combined with model.window_sizes"
        raise ConfigError("training.window_schedule", problem, schedule)
    if schedule[-1][1] != model.window_size:
        problem = f"must end with model.window_size ({model.window_size})"
        raise ConfigError("training.window_schedule", problem, schedule)
    begun, passed = {}, 0.0
    for share, window in schedule:
        first_step = min(round(passed * num_steps), num_steps - 1)
        begun[first_step] = dataclasses.replace(model, window_size=window)
        passed += share
    return tuple(Stage(*begin) for begin in begun.items())


def stage_at(schedule: tuple[Stage, ...], step: int) -> Stage:
    """The stage of the step that follows `step` finished ones."""
    return max(stage for stage in schedule if stage.first_step <= step)

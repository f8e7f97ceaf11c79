"""`model.window_schedule`: short windows first, the model's own at the end.

A stage is a stretch of steps under one window. Its step is compiled when it begins; parameters and
optimizer state pass from stage to stage unchanged, since no parameter knows the window. Whatever
is evaluated is evaluated under the model's own window, which is that of the last stage.
Source: modded-nanogpt's window warm-up (github.com/KellerJordan/modded-nanogpt).
"""

import dataclasses
from typing import NamedTuple

from hybrid.model.config import ModelConfig


class Stage(NamedTuple):
    """The steps after `first_step` finished ones are trained as `model`."""

    first_step: int
    model: ModelConfig


def stages(model: ModelConfig, num_steps: int) -> tuple[Stage, ...]:
    """The stages of a run, those without a step left out; without a schedule there is one.

    >>> model = ModelConfig(window_schedule=((0.25, 16), (0.75, 64)))
    >>> [(stage.first_step, stage.model.window_size) for stage in stages(model, 100)]
    [(0, 16), (25, 64)]
    """
    begun, passed = {}, 0.0
    for share, window in model.window_schedule or ((1.0, model.window_size),):
        at_window = dataclasses.replace(model, window_size=window, window_schedule=())
        begun[min(round(passed * num_steps), num_steps - 1)] = at_window
        passed += share
    return tuple(Stage(*begin) for begin in begun.items())


def stage_at(schedule: tuple[Stage, ...], step: int) -> Stage:
    """The stage of the step that follows `step` finished ones."""
    return max(stage for stage in schedule if stage.first_step <= step)

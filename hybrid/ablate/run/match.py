"""What cells have in common, so that a comparison compares one thing.

    tokens   steps, batch and context are the base's: nothing is changed
    flops    training.num_steps such that the whole training costs what the baseline's does
    params   model.ffn_dim such that the cell has as many parameters as the baseline

FLOPs are the matrix products of forward and backward (`costs/training_flops.py`), each step under
its own window of the schedule.
"""

import dataclasses

from hybrid.costs import model_costs as cost
from hybrid.costs.training_flops import trained_share, training_flops
from hybrid.experiment import Experiment
from hybrid.training.window_schedule import stages


def matched(
    experiment: Experiment, baseline: Experiment, match: str
) -> tuple[Experiment, dict[str, tuple]]:
    """The experiment fitted to the baseline, and what was changed: {key: (from, to)}."""
    if match == "tokens":
        return experiment, {}
    if match == "flops":
        section, name, steps = "training", "num_steps", experiment.training.num_steps
        value = max(1, round(steps * train_flops(baseline) / train_flops(experiment)))
    else:
        section, name, value = "model", "ffn_dim", _fitting_width(experiment, baseline)
    before = getattr(experiment, section)
    old, changed = getattr(before, name), dataclasses.replace(before, **{name: value})
    fitted = dataclasses.replace(experiment, **{section: changed})
    return fitted, {f"{section}.{name}": (old, value)} if old != value else {}


def train_flops(experiment: Experiment, num_steps: int | None = None) -> float:
    """FLOPs of the first `num_steps` steps (None: all).

    Raises: ConfigError for a schedule of windows, adapters or frozen parameters that don't fit.
    """
    schedule = stages(experiment.model, experiment.training)
    freeze = experiment.optimizer.freeze
    share = trained_share(experiment.model, experiment.lora, freeze)
    return training_flops(schedule, experiment.training.step, share, num_steps)


def _fitting_width(experiment: Experiment, baseline: Experiment) -> int:
    """Parameters are linear in ffn_dim, so two of their values determine the width."""
    model = experiment.model
    here = cost.num_params(model)
    slope = cost.num_params(dataclasses.replace(model, ffn_dim=model.ffn_dim + 1)) - here
    return max(1, round(model.ffn_dim + (cost.num_params(baseline.model) - here) / slope))

"""FLOPs of training: forward and backward, each step under its own window.

A backward pass costs one forward for the gradient of the stream and another for the gradients of
the kernels, the latter only for the share of the parameters that is trained. Recomputation
(`model.remat`) counts as nothing.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence

import jax

from hybrid.costs.model_costs import forward_flops_per_token, head_flops_per_token
from hybrid.model import layer_plan
from hybrid.model.config import LoraConfig, ModelConfig
from hybrid.model.trained import abstract_trained, split
from hybrid.training.config import StepConfig


def training_flops(
    stages: Sequence[tuple[int, ModelConfig]],
    training: StepConfig,
    trained_share: float = 1.0,
    num_steps: int | None = None,
) -> float:
    """FLOPs of the first `num_steps` steps (None: all) of a run.

    Args:
      stages: (first step, model) of each part of the run, in order, the first from step 0.
      trained_share: of all parameters, as `trained_share` gives it.
    """
    last = training.num_steps if num_steps is None else num_steps
    ends = [first_step for first_step, _ in stages[1:]] + [training.num_steps]
    steps: Counter[ModelConfig] = Counter()
    for (first_step, model), end in zip(stages, ends, strict=True):
        steps[model] += max(0, min(end, last) - first_step)
    tokens, context = training.batch_size * training.context_length, training.context_length
    forward = sum(count * forward_flops_per_token(model, context) for model, count in steps.items())
    return (2 + trained_share) * forward * tokens


def step_flops(model: ModelConfig, training: StepConfig, trained_share: float = 1.0) -> float:
    """FLOPs of one step with what is computed again: the work that a program should hold.

    Forward, backward, and once more: the logits (no loss keeps them) and a half of attention's
    products (its backward forms the scores again); under `model.remat` also a forward pass of the
    layers (full) or of attention alone (dots), less attention where its result is kept. A
    load-balancing loss over several micro-batches costs a forward pass of the layers before all
    others.
    """
    context = training.context_length
    specs = layer_plan(model).layers()
    forward = forward_flops_per_token(model, context)
    head = head_flops_per_token(model)
    mixing = sum(spec.mixer.flops_per_token(model, context)[1] for spec in specs)
    again = head + mixing / 2 + {"none": 0, "dots": mixing, "full": forward - head}[model.remat]
    if "attention_out" in (*model.remat_save, *model.remat_offload):
        again -= mixing
    if training.load_balance_loss and training.num_microbatches > 1:
        again += forward - head
    per_token = (2 + trained_share) * forward + again
    return per_token * training.batch_size * context


@functools.cache
def trained_share(model: ModelConfig, adapters: LoraConfig, freeze: tuple[str, ...]) -> float:
    """Trained parameters of all; 1 where none is frozen.

    Raises: ConfigError for a `freeze` or adapters that don't fit the model.
    """
    params, mask = abstract_trained(model, adapters, freeze)
    return _size(split(params, mask)[0]) / _size(params)


def _size(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

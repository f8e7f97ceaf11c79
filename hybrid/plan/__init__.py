"""What a config costs before anything runs: `plan(config)` and `python -m hybrid.plan`.

`costs/model_costs.py` has the folds over the layer plan, `table.py` prints them, `budget.py` has
what a train step compiled for a TPU topology costs a device, `__main__.py` is the command. Read
`costs/model_costs.py` first.
"""

import dataclasses
import sys
import types
from collections.abc import Mapping
from typing import Any

from hybrid.config import ConfigError

__all__ = ["PlanReport", "plan"]


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """The cost of a model at one context and batch.

    Attributes:
      context, batch: tokens a row and rows that the figures are for.
      num_params, num_active_params: all parameters, and those that one token meets.
      flops_per_token: forward, matrix products, averaged over positions 0 … context-1.
      kv_cache_bytes: total, local, global, state.
      kv_cache_bytes_all_global: of the same layers, each keeping K and V of the whole context.
      kv_cache_ratio: all-global bytes over the total.
      cache_dtype: what the caches are kept in.
      params_by_part: parameters of the embedding, attention by kind, feed-forwards and norms.
      segments: (letters, repetitions) of each segment, in order of depth.
      budget: of the train step on a topology (`budget.py`), where one was asked for.
    """

    context: int
    batch: int
    num_params: int
    num_active_params: int
    flops_per_token: float
    kv_cache_bytes: Mapping[str, int]
    kv_cache_bytes_all_global: int
    kv_cache_ratio: float
    cache_dtype: str
    params_by_part: Mapping[str, int]
    segments: tuple[tuple[str, int], ...]
    budget: Any = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, as `--json` prints it; a budget's beside its own."""
        values = dataclasses.asdict(self)
        return values | (values.pop("budget") or {})


def plan(config: Any, context: int | None = None, batch: int = 1, topology: str = "") -> PlanReport:
    """Parameters, FLOPs a token and cache bytes of a config; nothing is built.

    Args:
      config: a ConfigDict or mapping of sections, or a page as "file.py:arg".
      context: tokens a row; by default `training.context_length`.
      batch: rows, which multiply the cache bytes.
      topology: TPUs such as `v5p:4x4x4`, for which the train step is then compiled (minutes).
    Raises: ConfigError naming the key that is wrong.
    """
    # Late, so that `import hybrid` does not load optimizers and checkpoints.
    from hybrid import experiment

    load = experiment.load if isinstance(config, str) else experiment.from_config
    if not topology:
        return report(load(config), context, batch)
    from hybrid.plan import budget
    from hybrid.plan import topology as topologies

    slice_ = topologies.parse(topology)
    with topologies.in_use(slice_):
        loaded = with_context(load(config), context)
        result = report(loaded, context, batch)
        return dataclasses.replace(result, budget=budget.budget(loaded, slice_))


def with_context(experiment: Any, context: int | None) -> Any:
    """`experiment` trained on rows of `context` tokens; None: as it is.  Raises: ConfigError."""
    if context is None:
        return experiment
    if context < 1:
        raise ConfigError("--context", "must be at least 1", context)
    training = dataclasses.replace(experiment.training, context_length=context)
    return dataclasses.replace(experiment, training=training)


def report(experiment: Any, context: int | None = None, batch: int = 1) -> PlanReport:
    """The same of an `Experiment`."""
    from hybrid import model
    from hybrid.costs import model_costs as cost
    from hybrid.model.mixers.protocol import CacheFormat

    config = experiment.model
    context = experiment.training.context_length if context is None else context
    for name, value in (("context", context), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"--{name}", "must be at least 1", value)
    if 0 < config.learned_positions < context:
        accepted = f"at most model.learned_positions ({config.learned_positions})"
        raise ConfigError("--context", "is longer than the table of positions", context, accepted)
    layers = model.layer_plan(config)
    dtype = experiment.inference.cache_dtype or config.dtype
    form = CacheFormat(context, dtype, unified=experiment.inference.unified_cache)
    caches = cost.cache_bytes(layers, form, batch)
    all_global = cost.cache_bytes_all_global(layers, form, batch)
    params = cost.num_params(config)
    return PlanReport(
        context=context,
        batch=batch,
        num_params=params,
        num_active_params=cost.num_active_params(config),
        flops_per_token=cost.forward_flops_per_token(config, context),
        kv_cache_bytes=caches,
        kv_cache_bytes_all_global=all_global,
        kv_cache_ratio=all_global / caches["total"],
        cache_dtype=dtype,
        params_by_part=cost.num_params_by_part(config),
        segments=tuple((segment.letters, segment.repetitions) for segment in layers.segments),
    )


class _CallableModule(types.ModuleType):
    """Lets `hybrid.plan(...)` work whichever of the function and this module holds the name."""

    def __call__(self, *args, **kwargs):
        return plan(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

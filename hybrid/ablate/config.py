"""A sweep's config: a base run, what is varied, over which seeds, held against what.

A page starts from `defaults()` and fills in `base` (a run's config) and `axes` or `cells`:

    axes   [("model.window_size", (8, 16, 64)), ("model.unified_kv", (False, True))]    6 cells
    cells  [{"model.pattern": "L"}, {"model.pattern": "LLLLLG", "name": "5:1"}]         2 cells
    arms   [("text", {}), ("needle", {"data.source": "needle"})]        every cell in each arm
    evaluations  [("ruler", "configs/ruler.py:niah_single_1")]          asked of every run
                 [("few", {"page": "configs/needles.py:keys", "eval.retrieval.num_samples": 9})]

Overrides are a dict by dotted key. A ConfigDict takes one inside a list only, not as a value of
its own, so `baseline` may also be pairs, [("model.window_size", 64)], or a nested dict.

Read next: `run/cells.py`, which turns it into runs.
"""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

import ml_collections

from hybrid import config as config_lib
from hybrid import experiment as experiment_lib
from hybrid.config import MOST_SEED, ConfigError, key, section
from hybrid.experiment import Experiment
from hybrid.pages import load_page

MATCHES = ("tokens", "flops", "params")
NAME = "name"  # the one entry of a cell's dict that is no key of the base
PAGE = "page"  # that of an evaluation's
RETRIEVAL = "eval.retrieval."
Overrides = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Keys of a sweep; raises ConfigError for lists that make no sweep.

    `axes`, `cells`, `arms` and `baseline` are put into one form: pairs, and dicts by dotted key.
    """

    base: Experiment = section(Experiment)
    axes: Any = key(None, "pairs (key of base, values), crossed into cells")
    cells: Any = key(None, "dicts of overrides in place of axes; `name` in one names the cell")
    arms: Any = key(None, "pairs (name, overrides): every cell is run in each arm; empty: one arm")
    evaluations: Any = key(
        None,
        "pairs (name, page or overrides of eval.*) of retrieval benchmarks that every run is asked "
        "besides; `page` in overrides names a page whose eval.retrieval.* they change",
    )
    baseline: Any = key(
        None, "the overrides that other cells are paired with; empty: those of the first cell"
    )
    seeds: tuple[int, ...] = key(
        (0, 1, 2), "training seeds of every cell", at_least=0, at_most=MOST_SEED
    )
    learning_rates: tuple[float, ...] = key(
        (), "every cell is trained at each and the best is used; empty: the base's", more_than=0
    )
    match: str = key(
        "tokens",
        "held equal to the baseline: tokens; flops (by training.num_steps); params (by "
        "model.ffn_dim)",
        choices=MATCHES,
    )
    cache_context: int = key(
        0, "context of the KV-cache figures; 0: training.context_length", at_least=0
    )
    trained: str = key(
        "",
        "a workdir or Hugging Face folder to evaluate under the cells, in place of training",
        path=True,
    )

    def __post_init__(self):
        one_form = {
            "axes": _axes(self.axes),
            "cells": tuple(
                _overrides("cells", cell, {NAME}) for cell in _list("cells", self.cells)
            ),
            "arms": _arms(self.arms),
            "evaluations": _evaluations(self.evaluations),
            "baseline": _overrides("baseline", self.baseline),
        }
        for name, value in one_form.items():
            object.__setattr__(self, name, value)
        if bool(self.axes) == bool(self.cells):
            problem = "are both given" if self.axes else "or cells must be given"
            accepted = "axes for a grid, cells for a list"
            raise ConfigError("axes", problem, accepted=accepted)
        for name in ("seeds", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(name, "names one twice", values)
        if not self.seeds:
            raise ConfigError("seeds", "is empty", (), "at least one; three for intervals")
        for name, unset in {"learning_rates": (), "arms": (), "match": "tokens"}.items():
            if self.trained and getattr(self, name) != unset:
                problem = "has no use where nothing is trained"
                raise ConfigError(name, problem, getattr(self, name))


def defaults(page: str | None = None) -> ml_collections.ConfigDict:
    """A sweep's page whose base is a run's page, or all defaults; nothing is varied yet."""
    values = {field.name: field.default for field in dataclasses.fields(SweepConfig)}
    base = load_page(page) if page else config_lib.to_dict(Experiment())
    return ml_collections.ConfigDict({**values, "base": base}, type_safe=False)


# --- One form for what pages may write -------------------------------------------------------


def _axes(value: Any) -> tuple[tuple[str, tuple], ...]:
    pairs = _pairs("axes", value, "(key, values)")
    for name, values in pairs:
        _check_key("axes", name)
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError("axes", f"has no values for {name}", values, "a list of values")
    return tuple((name, tuple(values)) for name, values in pairs)


def _arms(value: Any) -> tuple[tuple[str, Overrides], ...]:
    pairs = _pairs("arms", value, "(name, overrides)")
    return tuple((name, _overrides("arms", overrides)) for name, overrides in pairs)


def _evaluations(value: Any) -> tuple[tuple[str, Overrides], ...]:
    """Names with overrides of `eval.*`, those of pages among them: a sweep needs no page later."""
    pairs = _pairs("evaluations", value, "(name, page or overrides)")
    return tuple((name, _evaluation(name, entry)) for name, entry in pairs)


def _evaluation(name: str, entry: Any) -> Overrides:
    given = {PAGE: entry} if isinstance(entry, str) else entry
    overrides = _overrides("evaluations", given, {PAGE})
    page = overrides.pop(PAGE, None)
    others = [each for each in overrides if not each.startswith("eval.")]
    if others:
        raise ConfigError("evaluations", f"{name} can't change {others[0]}", accepted="eval.*")
    if page is None:
        return overrides
    try:
        of_page = experiment_lib.from_config(load_page(page)).eval.retrieval
    except ConfigError as error:
        problem = f"{name}: {error.key}: {error.problem}"
        raise ConfigError("evaluations", problem, error.got, error.accepted) from None
    own = config_lib.to_dict(of_page)
    return {f"{RETRIEVAL}{leaf}": value for leaf, value in own.items()} | overrides


def _pairs(key: str, value: Any, form: str) -> list[tuple[str, Any]]:
    """Pairs with different names, from a mapping or a list of pairs."""
    entries = value.items() if isinstance(value, Mapping) else _list(key, value)
    for pair in entries:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ConfigError(key, f"must hold pairs {form}", pair)
    names = [name for name, _ in entries]
    if len(set(names)) < len(names):
        raise ConfigError(key, "name one twice", names)
    return [(name, entry) for name, entry in entries]


def _overrides(key: str, value: Any, besides: Set[str] = frozenset()) -> Overrides:
    """Overrides by dotted key, from a dict (dotted or nested) or a list of pairs."""
    if value is None:
        return {}
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    is_list = isinstance(value, list | tuple)
    if is_list and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        value = dict(value)
    if not isinstance(value, Mapping):
        raise ConfigError(key, "must hold overrides", value, "a dict of dotted keys")
    flat = config_lib.flatten(value)
    for name in flat.keys() - besides:
        _check_key(key, name)
    return flat


def _check_key(key: str, name: Any) -> None:
    known = [info.name for info in config_lib.walk(Experiment)]
    if name not in known:
        accepted = config_lib.unknown_key(str(name), Experiment).accepted
        raise ConfigError(key, f"unknown key {name}", accepted=accepted)
    if name == "training.seed":
        raise ConfigError(key, "can't vary it", name, "seeds lists the seeds")


def _list(key: str, value: Any) -> list | tuple:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise ConfigError(key, "must be a list", value)
    return value

"""Sweeps recorded by earlier versions, under the keys of this one."""

import itertools
from collections.abc import Mapping
from typing import Any

from hybrid import config as config_lib
from hybrid import origin
from hybrid.ablate.config import NAME, Overrides
from hybrid.ablate.run.cells import cell_name


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in a `sweep.json` of an earlier version; cells keep their names and folders.

    Overrides may need another key more than they had (see `origin.upgraded`), which values of an
    axis cannot have: crossed axes become the cells that they stand for.
    """
    axes, cells = config["axes"], config["cells"]
    if any(_is_old({key: values[0]}) for key, values in axes):
        keys, values = zip(*axes, strict=True)
        axes, cells = (
            [],
            [dict(zip(keys, each, strict=True)) for each in itertools.product(*values)],
        )
    return {
        **config,
        "base": origin.upgraded(config["base"]),
        "axes": axes,
        "cells": [_named(cell) for cell in cells],
        "arms": [[name, _overrides(overrides)] for name, overrides in config["arms"]],
        "baseline": _overrides(config["baseline"]),
    }


def _overrides(overrides: Overrides) -> Overrides:
    return config_lib.flatten(origin.upgraded(config_lib.updated({}, overrides)))


def _is_old(overrides: Overrides) -> bool:
    return _overrides(overrides) != overrides


def _named(cell: Overrides) -> Overrides:
    """A cell's overrides, with the name that it had where they change."""
    return {NAME: cell_name(cell), **_overrides(cell)} if _is_old(cell) else cell

"""Devices that are not there: `v5p:4x4x4` as a chip of the table and a number of them."""

import contextlib
import dataclasses
import math
import re

from hybrid.config import ConfigError
from hybrid.costs.chips import CHIPS, Chip
from hybrid.ops import dispatch

# How many lengths the torus of each chip has.
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
KEY = "--topology"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs.

    Attributes:
      name: as libtpu takes it, `v5p:4x4x4`.
      chip: what one of them can do.
      num_chips: of the slice.
    """

    name: str
    chip: Chip
    num_chips: int

    @property
    def num_devices(self) -> int:
        """As jax counts them."""
        return self.num_chips * self.chip.devices


def parse(name: str) -> Topology:
    """The topology called `name`.  Raises: ConfigError for a form or chip that does not exist.

    >>> parse("v5e:2x4").num_devices
    8
    """
    form = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    lengths = [int(length) for length in form.group(2).split("x")] if form else []
    if form is None or form.group(1) not in _DIMENSIONS or not all(lengths):
        accepted = ", ".join(f"{chip}:{'x'.join('4' * n)}" for chip, n in _DIMENSIONS.items())
        raise ConfigError(
            KEY, "is not a slice of TPUs", name, f"chip and lengths, as in {accepted}"
        )
    chip = form.group(1)
    if len(lengths) != _DIMENSIONS[chip]:
        problem = f"a slice of {chip} has {_DIMENSIONS[chip]} lengths"
        raise ConfigError(KEY, problem, name, f"{chip}:{'x'.join('4' * _DIMENSIONS[chip])}")
    return Topology(name, CHIPS[chip], math.prod(lengths))


def in_use(topology: Topology | None) -> contextlib.AbstractContextManager[None]:
    """Operations choose, and configs are checked, as on its chips; None: as on those at hand."""
    if topology is None:
        return contextlib.nullcontext()
    return dispatch.use_backend("tpu", topology.chip.kinds[0])

"""Who serves each kind of layer on a chip, and why others refuse: `hybrid.plan --attention`.

The doors' own answers to the requests that a train step would make there; nothing is compiled and
the chip need not be there.
"""

import dataclasses
from typing import Any

from hybrid import model
from hybrid.experiment import Experiment
from hybrid.ops.attention import ATTENTION
from hybrid.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class DoorRow:
    """One kind of layer.

    Attributes:
      kind: "local" or "global".
      request: sizes, dtype and backend.
      chosen: the implementation that serves.
      refusals: why each implementation refuses, None where it would serve; preferred ones first.
    """

    kind: str
    request: str
    chosen: str
    refusals: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)


def rows(experiment: Experiment) -> list[DoorRow]:
    """A row for each different request of attention, on the chips of `topology.in_use`."""
    found: dict[str, DoorRow] = {}
    name, length = experiment.model.attention, experiment.training.context_length
    for spec in model.layer_plan(experiment.model).layers():
        request = spec.mixer.request(experiment.model, length)
        if request is not None and str(request) not in found:
            refusals = ATTENTION.explain(request)
            chosen = ATTENTION.choose(request, name).name
            found[str(request)] = DoorRow(spec.kind, str(request), chosen, refusals)
    return list(found.values())


def render(found: list[DoorRow], topology: Topology) -> str:
    """The table for people."""
    lines = [f"attention on {topology.name}, backend tpu"]
    for row in found:
        lines += ["", f"{row.request}: {row.chosen}"]
        for name, refusal in row.refusals.items():
            lines.append(f"  {name:<12} {'serves' if refusal is None else refusal}")
    return "\n".join(lines)

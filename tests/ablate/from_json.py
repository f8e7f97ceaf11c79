"""The SweepResults of a results.json's dict: the inverse of `SweepResults.to_dict`."""

import dataclasses
import typing

from hybrid.ablate.report.results import KEYS, SweepResults
from hybrid.ablate.run.run_result import RunResult
from hybrid.ablate.statistics.cell_summary import ArmSummary


def sweep_results(values) -> SweepResults:
    return SweepResults(
        settings={key: values[key] for key in values if key not in ("cells", "summary")},
        runs=tuple(as_type(RunResult, run) for run in values["cells"]),
        arms=tuple(as_type(ArmSummary, arm) for arm in values["summary"]["arms"]),
    )


def as_type(kind, value):
    """A JSON value as a dataclass, a tuple of one, an optional one, or as it is."""
    arguments = typing.get_args(kind)
    if value is None:
        return None
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: field(hints[name], name, entry) for name, entry in value.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(as_type(arguments[0], entry) for entry in value)
    return as_type(arguments[0], value) if type(None) in arguments else value


def field(kind, name, value):
    if name not in KEYS:
        return as_type(kind, value)
    kind = typing.get_args(kind)[1]
    entries = [dict(entry) for entry in value]
    return {entry.pop(KEYS[name]): as_type(kind, entry) for entry in entries}

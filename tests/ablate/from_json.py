"""The SweepResults of a results.json's dict: the inverse of `SweepResults.to_dict`."""

import dataclasses
import typing

from hybrid.ablate.report.results import SweepResults
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
        fields = {field.name: field for field in dataclasses.fields(kind)}
        return kind(**{name: as_field(fields[name], hints[name], value[name]) for name in value})
    if typing.get_origin(kind) is tuple:
        return tuple(as_type(arguments[0], entry) for entry in value)
    return as_type(arguments[0], value) if type(None) in arguments else value


def as_field(field, kind, value):
    if "key" not in field.metadata:
        return as_type(kind, value)
    kind = typing.get_args(kind)[1]
    entries = [dict(entry) for entry in value]
    return {entry.pop(field.metadata["key"]): as_type(kind, entry) for entry in entries}

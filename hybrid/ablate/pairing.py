"""Whom a cell is compared with.

If a cell has exactly the baseline's overrides, it is everyone's partner. Else the baseline fixes
some keys only, and a cell's partner agrees with it on those and with the cell on all others: with
axes window × unified_kv and the baseline unified_kv=False, each window has a partner of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class HasOverrides(Protocol):
    """A cell, planned or run."""

    @property
    def overrides(self) -> Mapping[str, Any]: ...


AnyCell = TypeVar("AnyCell", bound=HasOverrides)


def find_partner(
    cells: Sequence[AnyCell], cell: AnyCell, baseline: Mapping[str, Any] | None
) -> AnyCell | None:
    """The partner of `cell` among the `cells` of its arm, itself if it is a baseline.

    Without a baseline it is the first cell; None where the arm has no such cell.
    """
    wanted = cells[0].overrides if baseline is None else baseline
    known = {frozen(other.overrides): other for other in cells}
    everyones = known.get(frozen(wanted))
    return everyones or known.get(frozen({**cell.overrides, **wanted}))


def frozen(value: Any) -> Any:
    """A hashable that is equal for overrides that mean the same, lists and tuples alike."""
    if isinstance(value, Mapping):
        return frozenset((key, frozen(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(frozen(entry) for entry in value)
    return value

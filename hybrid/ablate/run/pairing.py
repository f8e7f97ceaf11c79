"""The cell that a cell is compared with.

If a cell has exactly the baseline's overrides, all cells of its arm are paired with it. Otherwise
the baseline sets some keys only, and a cell's partner has those values and agrees with the cell on
all other keys: with axes window × unified_kv and the baseline unified_kv=False, each window has a
partner of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def partner_indices(
    overrides: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any] | None
) -> list[int | None]:
    """The index of each cell's partner in its arm, its own if it is a baseline.

    Args:
      overrides: those of each cell of an arm, at least one.
      baseline: by default the overrides of the first cell.
    Returns: None where the arm has no such cell.
    """
    baseline = overrides[0] if baseline is None else baseline
    indices = {hashable(each): index for index, each in enumerate(overrides)}
    common = indices.get(hashable(baseline))
    if common is not None:
        return [common] * len(overrides)
    return [indices.get(hashable({**each, **baseline})) for each in overrides]


def hashable(value: Any) -> Any:
    """A hashable that is equal for equal overrides, lists and tuples alike."""
    if isinstance(value, Mapping):
        return frozenset((key, hashable(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(hashable(entry) for entry in value)
    return value

"""The cell that a cell is compared with.

If a cell has exactly the baseline's overrides, all cells of its arm are paired with it. Otherwise
a cell's partner has the baseline's values and agrees with the cell on all other keys: with axes
window × unified_kv and the baseline unified_kv=False, each window has a partner of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Overrides = Mapping[str, Any]


def partner_indices(cells: Sequence[Overrides], baseline: Overrides | None) -> list[int | None]:
    """The index of each cell's partner in its arm, its own for a baseline; None without one.

    Args:
      cells: the overrides of each cell of an arm, at least one.
      baseline: by default the overrides of the first cell.
    """
    baseline = cells[0] if baseline is None else baseline
    indices = {hashable(overrides): index for index, overrides in enumerate(cells)}
    common = indices.get(hashable(baseline))
    if common is not None:
        return [common] * len(cells)
    return [indices.get(hashable({**overrides, **baseline})) for overrides in cells]


def hashable(value: Any) -> Any:
    """A hashable that is equal for equal overrides, lists and tuples alike."""
    if isinstance(value, Mapping):
        return frozenset((key, hashable(entry)) for key, entry in value.items())
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value

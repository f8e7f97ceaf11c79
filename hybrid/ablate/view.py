"""What words, figures and tables ask of results.json: the arms, their axis, order and labels.

An arm's cells differ along one number (`window_size`), along the share of local layers (cells
written as patterns), along two axes, or in whatever their names say. `Arm` finds out which from
the overrides and puts the cells in that order. Read next: `words.py`.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from hybrid.ablate import notation
from hybrid.model.mixers import MIXERS

KIND_NAMES = {letter: row.kind for letter, row in MIXERS.items()}

Cell = Mapping[str, Any]
NUMBER, SHARE, GRID, NAMES = "number", "share", "grid", "names"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm of a summary, its cells in the order of their axis.

    Attributes:
      name: "" where the sweep has a single arm.  task: text, mqar or needle.
      keys: the dotted keys along which its cells differ; a key of one cell alone doesn't count.
      cells: the summary's, sorted by the number or from most to least local.
      chance: accuracy of guessing, where the results say it.
      is_crossed: whether the cells are a grid of axes, not a list.
    """

    name: str
    task: str
    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    chance: float | None = None
    is_crossed: bool = False

    @cached_property
    def scale(self) -> str:
        """`number`: one numeric key; `share`: local layers; `grid`: two keys; else `names`."""
        if len(self.keys) == 1 and all(_is_number(self.value(cell)) for cell in self.cells):
            return NUMBER
        if self.is_crossed and len(self.keys) == 2:
            return GRID
        return SHARE if len({local_share(cell) for cell in self.cells}) > 1 else NAMES

    @property
    def baseline(self) -> Cell | None:
        """The one cell that all others are paired with; None without one, or with several."""
        found = [cell for cell in self.cells if cell["is_baseline"]]
        return found[0] if len(found) == 1 else None

    @property
    def is_paired(self) -> bool:
        """Whether any cell has a paired difference, to the one baseline or to one of several."""
        return any(cell["difference"] or cell["difference_documents"] for cell in self.cells)

    @property
    def others(self) -> list[Cell]:
        """All but the baselines."""
        return [cell for cell in self.cells if not cell["is_baseline"]]

    @property
    def axis(self) -> str:
        """What differs, for a label: the key without its section."""
        if self.scale == SHARE:
            return "share of local layers"
        return " × ".join(short(key) for key in self.keys) or "cell"

    def value(self, cell: Cell, axis: int = 0) -> Any:
        """The cell's value of its arm's axis; None where it has none."""
        return cell["overrides"].get(self.keys[axis]) if axis < len(self.keys) else None

    def label(self, cell: Cell) -> str:
        """The shortest name that tells the cell from the others of its arm."""
        if self.scale not in (NUMBER, GRID):
            return cell["name"]
        return " × ".join(notation.plain(self.value(cell, axis)) for axis in range(len(self.keys)))

    def values(self, axis: int) -> list[Any]:
        """The distinct values along an axis, in order."""
        return list(dict.fromkeys(self.value(cell, axis) for cell in self.cells))

    def ordered(self) -> "Arm":
        """The same arm with its cells in the order of their axis."""
        if self.scale == NUMBER:
            return dataclasses.replace(self, cells=tuple(sorted(self.cells, key=self.value)))
        if self.scale == SHARE:
            most_local = sorted(self.cells, key=lambda cell: -(local_share(cell) or 0.0))
            return dataclasses.replace(self, cells=tuple(most_local))
        return self


def arms(results: Mapping[str, Any]) -> list[Arm]:
    """The arms of a summary that hold any finished cell."""
    found = results["summary"].get("arms", [])
    return [_arm(results, entry) for entry in found if entry["cells"]]


def _arm(results: Mapping[str, Any], entry: Mapping[str, Any]) -> Arm:
    cells = tuple(entry["cells"])
    declared = [key for key, _ in (results.get("axes") or [])]
    known = declared or list(dict.fromkeys(key for cell in cells for key in cell["overrides"]))
    varying = [key for key in known if len({str(cell["overrides"].get(key)) for cell in cells}) > 1]
    name, task, chance = entry["arm"], entry["task"], entry.get("chance")
    return Arm(name, task, tuple(varying), cells, chance, is_crossed=bool(declared)).ordered()


def local_share(cell: Cell) -> float | None:
    """Part of the layers that are local, 0 to 1; None where the letters aren't known."""
    letters = cell["letters"]
    local = sum(KIND_NAMES.get(letter) == "local" for letter in letters)
    return local / len(letters) if letters else None


def family(cell: Cell) -> str:
    """`local` or `global` where all layers are of that kind, else `hybrid`."""
    kinds = {KIND_NAMES.get(letter, letter) for letter in cell["letters"]}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(KIND_NAMES.values()) else "hybrid"


def window(cell: Cell) -> int | None:
    """The window of an all-local stack, from its reach m·(w−1)+1; None for other stacks."""
    if cell["reach"] is None or not cell["letters"]:
        return None
    return (cell["reach"] - 1) // len(cell["letters"]) + 1


def short(key: str) -> str:
    """`window_size` of `model.window_size`."""
    return key.rsplit(".", 1)[-1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""The arms of a summary as the report shows them: their axis, and their cells in its order.

An arm's cells differ along one number (`window_size`), along the share of local layers (cells
written as patterns), along two axes, or in nothing but their names.
"""

import dataclasses
from typing import Any

from hybrid.ablate.report import notation
from hybrid.ablate.report.results import SweepResults
from hybrid.ablate.statistics.benchmarks import BenchmarkScore, GroupScore
from hybrid.ablate.statistics.cell_summary import ArmSummary, CellSummary
from hybrid.model.mixers import MIXERS
from hybrid.model.mixers.protocol import Look

NUMBER, SHARE, GRID, NAMES = "number", "share", "grid", "names"
HYBRID = Look("#12805c", "#e6f4ef", ("#8fae2c", "#0c4254"))  # cells of several mixers


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm of a sweep.

    Attributes:
      name, task, chance: as of its summary.
      keys: the dotted keys along which its cells differ.
      scale: `number`: one numeric key; `grid`: two keys; `share`: local layers; else `names`.
      cells: sorted by the number or from most to least local.
    """

    name: str
    task: str
    chance: float | None
    keys: tuple[str, ...]
    scale: str
    cells: tuple[CellSummary, ...]

    @property
    def baseline(self) -> CellSummary | None:
        """The one cell that all others are paired with; None without one, or with several."""
        baselines = [cell for cell in self.cells if cell.is_baseline]
        return baselines[0] if len(baselines) == 1 else None

    @property
    def others(self) -> list[CellSummary]:
        """All but the baselines."""
        return [cell for cell in self.cells if not cell.is_baseline]

    @property
    def benchmarks(self) -> list[str]:
        """The names of the benchmarks that its cells were asked."""
        return list(dict.fromkeys(each.name for cell in self.cells for each in cell.benchmarks))

    def known(self, benchmark: str) -> list[tuple[CellSummary, BenchmarkScore]]:
        """The cells that were asked a benchmark, with their scores."""
        return [(cell, each) for cell in self.cells if (each := cell.benchmark(benchmark))]

    def task_rows(self, benchmark: str) -> list[tuple[str, str, list[GroupScore]]]:
        """(cell's label, task, groups) of tasks without depths, where a row says more than a mean.

        None where the benchmark is one task without floors.
        """
        rows = [
            (self.label(cell), task, scores.of_task(task))
            for cell, scores in self.known(benchmark)
            for task in scores.tasks
            if task not in scores.tables
        ]
        tasks = {task for _, task, _ in rows}
        has_floors = any(group.floors for _, _, groups in rows for group in groups)
        return rows if len(tasks) > 1 or has_floors else []

    @property
    def axis(self) -> str:
        """What differs, for a label: the key without its section."""
        if self.scale == SHARE:
            return "share of local layers"
        return " × ".join(map(short, self.keys)) or "cell"

    def values(self, cell: CellSummary) -> list[str]:
        """The cell's value of each key."""
        return [notation.plain(cell.overrides.get(key)) for key in self.keys]

    def axis_values(self, index: int) -> list[str]:
        """The different values of a key, in order."""
        return list(dict.fromkeys(self.values(cell)[index] for cell in self.cells))

    def label(self, cell: CellSummary, most: int = 1000) -> str:
        """The shortest name that tells the cell from the others of its arm, cut at `most`."""
        is_named = self.scale not in (NUMBER, GRID)
        label = cell.name if is_named else " × ".join(self.values(cell))
        return label if len(label) <= most else label[: most - 1] + "…"


def arms(results: SweepResults) -> list[Arm]:
    """The arms in their order."""
    axes = [key for key, _ in results.settings.get("axes") or []]
    return [_arm(axes, summary) for summary in results.arms]


def _arm(axes: list[str], summary: ArmSummary) -> Arm:
    cells = list(summary.cells)
    known = axes or list(dict.fromkeys(key for cell in cells for key in cell.overrides))
    keys = [key for key in known if len({str(cell.overrides.get(key)) for cell in cells}) > 1]
    if len(keys) == 1 and all(_is_number(cell.overrides.get(keys[0])) for cell in cells):
        scale = NUMBER
        cells.sort(key=lambda cell: cell.overrides[keys[0]])
    elif axes and len(keys) == 2:
        scale = GRID
    else:
        scale = SHARE if len(set(map(local_share, cells))) > 1 else NAMES
        cells.sort(key=lambda cell: -local_share(cell))
    return Arm(summary.arm, summary.task, summary.chance, tuple(keys), scale, tuple(cells))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def local_share(cell: CellSummary) -> float:
    """Part of the layers that are local, 0 to 1."""
    kinds = [MIXERS[letter].kind for letter in cell.letters if letter in MIXERS]
    return kinds.count("local") / max(1, len(cell.letters))


def look(cell: CellSummary) -> Look:
    """The look of the mixer that all layers have, else HYBRID."""
    letters = set(cell.letters)
    return MIXERS[letters.pop()].look if len(letters) == 1 and letters <= set(MIXERS) else HYBRID


def short(key: str) -> str:
    """`window_size` of `model.window_size`."""
    return key.rsplit(".", 1)[-1]

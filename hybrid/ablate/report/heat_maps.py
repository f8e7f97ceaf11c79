"""Tables of one needle by length and depth as figures: a map a cell, one above the other.

Loads matplotlib, so import this file late. Read next: `figures.py`.
"""

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from hybrid.ablate.report.view import Arm
from hybrid.ablate.statistics.benchmarks import BenchmarkScore
from hybrid.evaluation.drawing import canvas
from hybrid.evaluation.retrieval import heat_map
from hybrid.evaluation.retrieval.result import GroupScore

Map = tuple[str, list[GroupScore]]  # a cell's label, and the groups of its table


def tables(arm: Arm) -> Iterator[tuple[str, str, list[Map]]]:
    """(benchmark, task, maps of the cells) of each task that has depths."""
    for name in arm.benchmarks:
        scores = [(arm.label(cell), each) for cell, each in arm.known(name)]
        for task in scores[0][1].tables:
            yield name, task, [(label, _groups(each, task)) for label, each in scores]


def _groups(score: BenchmarkScore, task: str) -> list[GroupScore]:
    """The groups of a task as those of a single run, which over seeds they are like."""
    return [
        GroupScore(
            task, each.length, each.depth, each.score.mean, *each.score.ends, each.num_samples
        )
        for each in score.of_task(task)
    ]


def figure_of(maps: Sequence[Map]) -> Figure:
    """The maps below each other, within `style`; colours go from 0 to 1 in all of them."""
    figure, rows = canvas(
        sum(heat_map.height(groups) for _, groups in maps), len(maps), squeeze=False
    )
    for axes, (label, groups) in zip(rows[:, 0], maps, strict=True):
        heat_map.draw(figure, axes, groups)
        axes.set_title(label, size=10, loc="left")
    return figure

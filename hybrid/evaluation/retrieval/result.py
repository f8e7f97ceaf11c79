"""The result of a retrieval evaluation: scores of 0 to 100 with Wilson intervals.

score             the mean over a group's samples
by_length         the mean of RULER's tasks at each length
effective_length  the longest at which that mean is at least 85.6; none: null
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.evaluation.config import NEEDLES, RULER
from hybrid.evaluation.intervals import plain_mean, wilson
from hybrid.evaluation.retrieval.prompts import Group
from hybrid.evaluation.retrieval.ruler import EFFECTIVE
from hybrid.evaluation.retrieval.sample_log import SampleLog, Scored


@dataclasses.dataclass(frozen=True)
class GroupScore:
    """The score of a group, its 95 % interval, and of how many samples.

    Attributes:
      depth: of tables.
      floors: mean scores of replies that need no understanding, by their name.
    """

    task: str
    length: int
    depth: float | None
    score: float
    low: float
    high: float
    num_samples: int
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LengthScore:
    """The mean over `num_tasks` tasks at a length."""

    length: int
    score: float
    num_tasks: int


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """The scores of all groups, in order, and what they are about (`about`, for JSON)."""

    groups: tuple[GroupScore, ...]
    about: Mapping[str, Any]

    def of_task(self, task: str) -> list[GroupScore]:
        """The scores of one task, in order."""
        return [group for group in self.groups if group.task == task]

    @property
    def tasks(self) -> list[str]:
        """The tasks that were scored, in order."""
        return list(dict.fromkeys(group.task for group in self.groups))

    @property
    def tables(self) -> list[str]:
        """The tasks that are tables by length and depth."""
        return [task for task in self.tasks if task in NEEDLES]

    @property
    def score(self) -> float:
        """The mean over all groups."""
        return plain_mean([group.score for group in self.groups])

    @property
    def by_length(self) -> tuple[LengthScore, ...]:
        """Means over RULER's tasks, rising by length."""
        at: dict[int, list[float]] = {}
        for group in self.groups:
            if group.task in RULER:
                at.setdefault(group.length, []).append(group.score)
        return tuple(
            LengthScore(length, plain_mean(scores), len(scores))
            for length, scores in sorted(at.items())
        )

    @property
    def effective_length(self) -> int | None:
        """The longest length whose mean reaches EFFECTIVE."""
        enough = [each.length for each in self.by_length if each.score >= EFFECTIVE]
        return max(enough, default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        values: dict[str, Any] = {"score": self.score}
        if self.by_length:
            values["by_length"] = [dataclasses.asdict(each) for each in self.by_length]
            values["effective_length"] = self.effective_length
        values["groups"] = [dataclasses.asdict(group) for group in self.groups]
        return values | dict(self.about)


def summarized(
    groups: Sequence[Group], log: SampleLog, about: Mapping[str, Any]
) -> RetrievalResult:
    """The result of groups whose samples are all in the log."""
    return RetrievalResult(tuple(_score(group, log.scored(group)) for group in groups), about)


def _score(group: Group, scored: Sequence[Scored]) -> GroupScore:
    found = wilson(math.fsum(each.score for each in scored), len(scored))
    score, low, high = (100 * end for end in (found.mean, *found.ends))
    floors = {
        name: 100 * plain_mean([each.floors[name] for each in scored]) for name in scored[0].floors
    }
    num = len(scored)
    return GroupScore(group.task, group.length, group.depth, score, low, high, num, floors)

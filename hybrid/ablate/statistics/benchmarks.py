"""A cell's scores on the benchmarks of a sweep, 0 to 100 as `eval.py` gives them.

    score      mean over all groups of a benchmark, a number a run: t interval over seeds, and its
               difference to the partner's, paired by seed
    groups     the answers of all seeds together: Wilson's interval where each is right or wrong,
               as for tasks; clustered by sample where they are graded (RULER's parts, MRCR's ratio)
    by_length  the answers of all tasks and depths at a length, clustered by sample: the needle of
               sample i is the same at every depth, and all seeds are asked the same samples

Answers that are all right or all wrong have no spread; then Wilson's interval over samples stands.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from hybrid.evaluation import intervals
from hybrid.evaluation.intervals import Estimate
from hybrid.evaluation.retrieval.sample_log import Key, Samples

Asked = Mapping[str, Samples]  # {name of a benchmark: its samples}, of one run


@dataclasses.dataclass(frozen=True)
class GroupScore:
    """The score of a task at a length, and at a depth where the task is a table.

    Attributes:
      num_samples: of each seed.
      floors: mean scores of replies that need no understanding, by their name.
    """

    task: str
    length: int
    depth: float | None
    score: Estimate
    num_samples: int
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LengthScore:
    """The score of all answers at a length, over tasks and depths."""

    length: int
    score: Estimate


@dataclasses.dataclass(frozen=True)
class BenchmarkScore:
    """A cell's scores on one benchmark.

    Attributes:
      difference: of `score` to the partner's; more is better.
      by_length: rising.  groups: in the benchmark's order.
    """

    name: str
    score: Estimate
    difference: Estimate | None
    by_length: tuple[LengthScore, ...]
    groups: tuple[GroupScore, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of its groups, each once."""
        return tuple(dict.fromkeys(group.task for group in self.groups))

    @property
    def tables(self) -> tuple[str, ...]:
        """The tasks that are tables by length and depth."""
        return tuple(dict.fromkeys(each.task for each in self.groups if each.depth is not None))

    def of_task(self, task: str) -> list[GroupScore]:
        """The groups of one task, in order."""
        return [group for group in self.groups if group.task == task]


def scored(own: Mapping[int, Asked], partner: Mapping[int, Asked]) -> tuple[BenchmarkScore, ...]:
    """The scores of a cell, a run a seed, on every benchmark that all of its runs were asked.

    Args:
      partner: those of the cell that it is paired with; {} for none.
    """
    runs = list(own.values())
    names = [name for name in runs[0] if all(name in asked for asked in runs)] if runs else []
    return tuple(_benchmark(name, own, partner) for name in names)


def _benchmark(name: str, own: Mapping[int, Asked], partner: Mapping[int, Asked]) -> BenchmarkScore:
    runs = [asked[name] for asked in own.values()]
    means = {seed: _mean(asked[name]) for seed, asked in own.items()}
    others = {seed: _mean(asked[name]) for seed, asked in partner.items() if name in asked}
    shared = sorted(set(means) & set(others))
    pairs = [means[seed] for seed in shared], [others[seed] for seed in shared]
    keys = list(runs[0])
    lengths = sorted({length for _, length, _ in keys})
    return BenchmarkScore(
        name=name,
        score=_within(intervals.mean_over_seeds(list(means.values()))),
        difference=_scaled(intervals.paired_over_seeds(*pairs)) if shared else None,
        by_length=tuple(
            LengthScore(length, pooled(runs, [key for key in keys if key[1] == length]))
            for length in lengths
        ),
        groups=tuple(_group(runs, key) for key in keys),
    )


def _mean(samples: Samples) -> float:
    """Mean over groups, 0 to 1."""
    groups = ([each.score for each in group.values()] for group in samples.values())
    return intervals.plain_mean([intervals.plain_mean(scores) for scores in groups])


def _group(runs: Sequence[Samples], key: Key) -> GroupScore:
    samples = list(runs[0][key].values())
    floors = {
        name: 100 * intervals.plain_mean([each.floors[name] for each in samples])
        for name in samples[0].floors
    }
    return GroupScore(*key, pooled(runs, [key]), len(samples), floors)


def pooled(runs: Sequence[Samples], keys: Sequence[Key]) -> Estimate:
    """The mean of all answers of several groups, 0 to 100, and its interval by the rules above."""
    answers: dict[tuple[str, int], list[float]] = {}  # of each sample, in all groups and runs
    for run, key in itertools.product(runs, keys):
        for index, each in run[key].items():
            answers.setdefault((key[0], index), []).append(each.score)
    scores = np.concatenate(list(answers.values()))
    is_graded = not np.isin(scores, (0, 1)).all()
    found: Estimate
    if is_graded or (len(keys) > 1 and scores.min() < scores.max()):
        samples = np.repeat(np.arange(len(answers)), [len(each) for each in answers.values()])
        found = intervals.mean_over_documents(scores, samples)
    else:
        num = len(scores) if len(keys) == 1 else len(answers)
        found = intervals.wilson(float(scores.mean()) * num, num)
    return _within(found)


def _within(found: Estimate) -> Estimate:
    """An estimate of a score from 0 to 1, times 100, its ends cut to the scale."""
    cut = found
    if found.low is not None and found.high is not None:
        cut = Estimate(found.mean, max(0.0, found.low), min(1.0, found.high))
    return _scaled(cut)


def _scaled(found: Estimate) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Estimate(100 * found.mean, low, high)

"""Figures from the raw scores of a cell's seeds: by position, repeat, distance and document.

Read `hybrid/evaluation/scores.py` (a row a predicted token) and `intervals.py` first. A cell's
scores at one context length are `SeedScores`, {seed: Scores}. Tokens are averaged over the seeds
first and then clustered by document, so an interval here is about other documents; intervals
about other seeds are in `summary.py`.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from hybrid.ablate.statistics import intervals
from hybrid.ablate.statistics.cell_summary import Bucket
from hybrid.ablate.statistics.intervals import DocumentDifference, Estimate, Share
from hybrid.evaluation.scores import Scores

SeedScores = Mapping[int, Scores]


def mean_nll(scores: SeedScores, seeds: Iterable[int]) -> np.ndarray:
    """Nats a token, float64 [n], averaged over `seeds` (at least one).

    Raises: ValueError if the seeds scored different tokens.
    """
    first, *others = [scores[seed] for seed in seeds]
    total = first.nll.astype(np.float64)
    for other in others:
        if not same_tokens(first, other):
            raise ValueError("seeds of one cell scored different tokens")
        total += other.nll
    return total / (1 + len(others))


def same_tokens(scores: Scores, others: Scores) -> bool:
    """Whether both hold the same tokens in the same order, as far as their columns show."""
    return np.array_equal(scores.document, others.document) and np.array_equal(
        scores.position, others.position
    )


def document_difference(scores: SeedScores, partner: SeedScores) -> DocumentDifference | None:
    """Mean difference a token to the partner, the interval over documents.

    Returns: None where they share no seed or scored different tokens.
    """
    difference, documents = token_differences(scores, partner), _any(scores).document
    if difference is None:
        return None
    mean = intervals.mean_over_documents(difference, documents)
    return DocumentDifference(mean.mean, mean.low, mean.high, len(np.unique(documents)))


def token_differences(scores: SeedScores, partner: SeedScores) -> np.ndarray | None:
    """Nats above the partner, float64 [n], averaged over the seeds that both have."""
    seeds = sorted(set(scores) & set(partner))
    if not seeds or not same_tokens(_any(scores), _any(partner)):
        return None
    return mean_nll(scores, seeds) - mean_nll(partner, seeds)


def by_position(scores: SeedScores, partner: SeedScores) -> tuple[Bucket, ...]:
    """Loss and difference by position, in buckets [0, 1), [1, 2), [2, 4), [4, 8), …"""
    return _buckets(scores, partner, _any(scores).position, first=0)


def repeats(scores: SeedScores, partner: SeedScores) -> tuple[Bucket, ...]:
    """Loss and difference on second tokens of bigrams seen before, by distance to that sight.

    Buckets [1, 2), [2, 4), … tokens. Tokens that repeat nothing are left out.
    """
    distance = _any(scores).repeat_distance
    return _buckets(scores, partner, distance, first=1) if len(distance) else ()


def _buckets(
    scores: SeedScores, partner: SeedScores, column: np.ndarray, first: int
) -> tuple[Bucket, ...]:
    # frexp writes p as m·2^e with 1/2 <= m < 1: e is 0 for 0, 1 for 1, 2 for 2 and 3, and so on.
    exponents = np.frexp(column)[1]
    documents = _any(scores).document
    loss, difference = mean_nll(scores, sorted(scores)), token_differences(scores, partner)

    def bucket(exponent: int) -> Bucket:
        inside = exponents == exponent

        def interval(values: np.ndarray) -> Estimate:
            return intervals.mean_over_documents(values[inside], documents[inside])

        return Bucket(
            start=(1 << exponent) >> 1,
            end=1 << exponent,
            loss=interval(loss),
            difference=None if difference is None else interval(difference),
            num_tokens=int(np.count_nonzero(inside)),
        )

    return tuple(bucket(each) for each in np.unique(exponents).tolist() if each >= first)


# --- Tasks: right or wrong ---------------------------------------------------------------------


def accuracy(scores: SeedScores) -> Share | None:
    """Share of right answers of all seeds together with Wilson's interval; None for text.

    Pooling counts every answer alike; `accuracy_by_seed` shows whether one seed learned the task
    and another did not.
    """
    answers = _column(scores, "correct")
    return None if answers is None else _share(answers)


def accuracy_by_seed(scores: SeedScores) -> dict[int, Share]:
    """The same of each seed alone; empty for text."""
    if _column(scores, "correct") is None:
        return {}
    return {seed: _share(scores[seed].correct) for seed in sorted(scores)}


def accuracy_by(column: str, scores: SeedScores) -> dict[int, Share]:
    """Accuracy by the values of a column of `Scores`; empty where it is absent."""
    answers, values = _column(scores, "correct"), _column(scores, column)
    if answers is None or values is None:
        return {}
    return {value: _share(answers[values == value]) for value in np.unique(values).tolist()}


def _column(scores: SeedScores, name: str) -> np.ndarray | None:
    """A column of all seeds, one after the other; None where a seed lacks it."""
    columns = [getattr(scores[seed], name) for seed in sorted(scores)]
    return np.concatenate(columns) if columns and all(map(len, columns)) else None


def _share(answers: np.ndarray) -> Share:
    return intervals.wilson(int(np.count_nonzero(answers)), len(answers))


def _any(scores: SeedScores) -> Scores:
    return next(iter(scores.values()))

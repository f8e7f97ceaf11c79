"""What the raw scores of a cell's seeds tell: by position, by repeat, by distance, by document.

Read `evaluation/token_records.py` (a row a predicted token) and `statistics.py` first. A cell's
scores at one context length are `SeedScores`, {seed: Scores}. Tokens are averaged over the seeds
first and then clustered by document, so an interval here says how the figure would move with
other documents; how it moves with the seed is `summary.py`'s part.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hybrid.ablate import statistics
from hybrid.ablate.statistics import Estimate
from hybrid.evaluation.token_records import TokenRecords as Scores

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
    """Whether both hold the same tokens in the same order, as far as rows can tell."""
    return np.array_equal(scores.document, others.document) and np.array_equal(
        scores.position, others.position
    )


def document_difference(scores: SeedScores, partner: SeedScores) -> Estimate | None:
    """Mean difference a token to the partner, the interval over documents.

    Returns: None where they share no seed or scored different tokens.
    """
    difference = token_differences(scores, partner)
    if difference is None:
        return None
    return statistics.mean_over_documents(difference, _any(scores).document)


def token_differences(scores: SeedScores, partner: SeedScores) -> np.ndarray | None:
    """Nats above the partner, float64 [n], averaged over the seeds that both have."""
    seeds = common(scores, partner)
    if not seeds or not same_tokens(_any(scores), _any(partner)):
        return None
    return mean_nll(scores, seeds) - mean_nll(partner, seeds)


def common(left: Iterable[int], right: Iterable[int]) -> list[int]:
    """The seeds that both have, in order."""
    return sorted(set(left) & set(right))


def by_position(scores: SeedScores, partner: SeedScores) -> list[dict[str, Any]]:
    """Loss and difference by position, in buckets [0, 1), [1, 2), [2, 4), [4, 8), …"""
    return _buckets(scores, partner, _any(scores).position, first=0)


def repeats(scores: SeedScores, partner: SeedScores) -> list[dict[str, Any]]:
    """Loss and difference on second tokens of bigrams seen before, by distance to that sight.

    Buckets [1, 2), [2, 4), … tokens. Tokens that repeat nothing are left out.
    """
    distance = _any(scores).repeat_distance
    return _buckets(scores, partner, distance, first=1) if len(distance) else []


def _buckets(
    scores: SeedScores, partner: SeedScores, column: np.ndarray, first: int
) -> list[dict[str, Any]]:
    # frexp writes p as m·2^e with 1/2 <= m < 1: e is 0 for 0, 1 for 1, 2 for 2 and 3, and so on.
    bucket = np.frexp(column)[1]
    documents = _any(scores).document
    loss, difference = mean_nll(scores, sorted(scores)), token_differences(scores, partner)

    def entry(index: int) -> dict[str, Any]:
        inside = bucket == index

        def interval(values: np.ndarray | None) -> dict[str, Any] | None:
            if values is None:
                return None
            return to_dict(statistics.mean_over_documents(values[inside], documents[inside]))

        return {
            "start": (1 << index) >> 1,
            "end": 1 << index,
            "loss": interval(loss),
            "difference": interval(difference),
            "num_tokens": int(np.count_nonzero(inside)),
        }

    return [entry(index) for index in np.unique(bucket).tolist() if index >= first]


# --- Tasks: right or wrong ---------------------------------------------------------------------


def accuracy(scores: SeedScores) -> dict[str, Any] | None:
    """Share of right answers of all seeds together with Wilson's interval; None for text.

    Pooling counts every answer alike; `accuracy_by_seed` shows whether one seed learned the task
    and another did not.
    """
    answers = _answers(scores, lambda one: one.correct)
    return None if answers is None else _share(answers)


def accuracy_by_seed(scores: SeedScores) -> list[dict[str, Any]]:
    """The same of each seed alone; empty for text."""
    if accuracy(scores) is None:
        return []
    return [{"seed": seed, **_share(scores[seed].correct)} for seed in sorted(scores)]


def by_distance(scores: SeedScores) -> list[dict[str, Any]]:
    """Accuracy by tokens from the question back to the answer; empty where none are noted."""
    return _accuracy_by("distance", scores, lambda one: one.distance)


def by_num_pairs(scores: SeedScores) -> list[dict[str, Any]]:
    """Accuracy by number of key–value pairs in the row; empty where none are noted."""
    return _accuracy_by("num_pairs", scores, lambda one: one.num_pairs)


def _accuracy_by(
    name: str, scores: SeedScores, column: Callable[[Scores], np.ndarray]
) -> list[dict[str, Any]]:
    answers, groups = _answers(scores, lambda one: one.correct), _answers(scores, column)
    if answers is None or groups is None:
        return []
    return [
        {name: group, **_share(answers[groups == group])} for group in np.unique(groups).tolist()
    ]


def _answers(scores: SeedScores, column: Callable[[Scores], np.ndarray]) -> np.ndarray | None:
    """A column of all seeds, one after the other; None where a seed hasn't got it."""
    columns = [column(scores[seed]) for seed in sorted(scores)]
    return np.concatenate(columns) if columns and all(map(len, columns)) else None


def _share(answers: np.ndarray) -> dict[str, Any]:
    share = statistics.wilson(int(np.count_nonzero(answers)), len(answers))
    return to_dict(share) | {"num": share.num}


def to_dict(estimate: Estimate) -> dict[str, Any]:
    """An estimate's mean and interval as JSON holds them."""
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def _any(scores: SeedScores) -> Scores:
    return next(iter(scores.values()))

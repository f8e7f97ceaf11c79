"""Figures from the raw scores of a cell's seeds: by position, repeat, distance and document.

Read `hybrid/evaluation/scores.py` (a row a predicted token) first. A cell's scores at one context
length are `SeedScores`, {seed: Scores}. Losses are averaged over the seeds first and then clustered
by document, so their intervals are about other documents; those about seeds are in `summary.py`.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from hybrid.ablate.statistics.cell_summary import Bucket
from hybrid.ablate.statistics.intervals import (
    CountedMean,
    DocumentMean,
    Estimate,
    mean_over_documents,
    wilson,
)
from hybrid.evaluation.scores import Scores

SeedScores = Mapping[int, Scores]


def mean_nll(scores: SeedScores, seeds: Iterable[int]) -> np.ndarray:
    """Nats a token, float64 [n], averaged over `seeds` (at least one).

    Raises: ValueError if the seeds scored different tokens.
    """
    first, *others = [scores[seed] for seed in seeds]
    if not all(_same_tokens(first, other) for other in others):
        raise ValueError("seeds of one cell scored different tokens")
    total = first.nll.astype(np.float64)
    for other in others:
        total += other.nll
    return total / (1 + len(others))


def token_differences(scores: SeedScores, partner: SeedScores) -> np.ndarray | None:
    """Nats above the partner, float64 [n], averaged over the seeds that both have.

    Returns: None where they share no seed or scored different tokens.
    """
    seeds = sorted(set(scores) & set(partner))
    if not seeds or not _same_tokens(_any(scores), _any(partner)):
        return None
    return mean_nll(scores, seeds) - mean_nll(partner, seeds)


def document_difference(scores: SeedScores, partner: SeedScores) -> DocumentMean | None:
    """Mean difference a token, the interval over documents; None as `token_differences`."""
    differences = token_differences(scores, partner)
    return None if differences is None else mean_over_documents(differences, _any(scores).document)


def buckets(scores: SeedScores, partner: SeedScores, column: str, first: int) -> tuple[Bucket, ...]:
    """Loss and difference where a column is in [0, 1), [1, 2), [2, 4), …, from that of `first`."""
    # frexp writes p as m·2^e with 1/2 <= m < 1: e is 0 for 0, 1 for 1, 2 for 2 and 3, and so on.
    exponents = np.frexp(getattr(_any(scores), column))[1]
    documents = _any(scores).document
    loss, difference = mean_nll(scores, sorted(scores)), token_differences(scores, partner)

    def mean(values: np.ndarray, inside: np.ndarray) -> Estimate:
        over_documents = mean_over_documents(values[inside], documents[inside])
        return Estimate(over_documents.mean, over_documents.low, over_documents.high)

    return tuple(
        Bucket(
            start=(1 << exponent) >> 1,
            end=1 << exponent,
            loss=mean(loss, exponents == exponent),
            difference=None if difference is None else mean(difference, exponents == exponent),
            num_tokens=int(np.count_nonzero(exponents == exponent)),
        )
        for exponent in np.unique(exponents).tolist()
        if exponent >= first
    )


def accuracies(
    scores: SeedScores, group: Callable[[int, Scores], np.ndarray]
) -> dict[int, CountedMean]:
    """Share of right answers of all seeds together by `group(seed, scores)`, an int [n] each.

    Returns: {} for text, and where a seed lacks the groups.
    """
    columns = [(one.correct, group(seed, one)) for seed, one in scores.items()]
    if not all(len(correct) and len(groups) for correct, groups in columns):
        return {}
    correct, groups = map(np.concatenate, zip(*columns, strict=True))
    return {
        value: wilson(int(np.count_nonzero(correct[groups == value])), int(sum(groups == value)))
        for value in np.unique(groups).tolist()
    }


def accuracy(scores: SeedScores) -> CountedMean | None:
    """That of all answers, each counted alike; None for text."""
    return accuracies(scores, lambda _, one: np.zeros(len(one.correct), int)).get(0)


def _same_tokens(scores: Scores, others: Scores) -> bool:
    """Whether both hold the same tokens in the same order, as far as their columns show."""
    return np.array_equal(scores.document, others.document) and np.array_equal(
        scores.position, others.position
    )


def _any(scores: SeedScores) -> Scores:
    return next(iter(scores.values()))

"""Figures from the token records of a cell's seeds: by position, repeat, distance and document.

Losses a token are averaged over the seeds first and then clustered by document, so their intervals
are about other documents; intervals about other seeds are in `summary.py`.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from hybrid.ablate.statistics.cell_summary import Bucket
from hybrid.evaluation.intervals import (
    CountedMean,
    DocumentMean,
    Estimate,
    mean_over_documents,
    wilson,
)
from hybrid.evaluation.result import doubling
from hybrid.evaluation.token_records import TokenRecords

SeedRecords = Mapping[int, TokenRecords]  # {seed: records}, at one context length


def mean_nll(records: SeedRecords, seeds: Iterable[int]) -> np.ndarray:
    """Nats a token, float64 [n], averaged over `seeds` (at least one).

    Raises: ValueError if the seeds scored different tokens.
    """
    first, *others = [records[seed] for seed in seeds]
    if not all(_same_tokens(first, other) for other in others):
        raise ValueError("seeds of one cell scored different tokens")
    total = first.nll.astype(np.float64)
    for other in others:
        total += other.nll
    return total / (1 + len(others))


def token_differences(records: SeedRecords, partner: SeedRecords) -> np.ndarray | None:
    """Nats above the partner, float64 [n], averaged over the seeds that both have.

    Returns: None where they share no seed or scored different tokens.
    """
    seeds = sorted(set(records) & set(partner))
    if not seeds or not _same_tokens(_any(records), _any(partner)):
        return None
    return mean_nll(records, seeds) - mean_nll(partner, seeds)


def document_difference(records: SeedRecords, partner: SeedRecords) -> DocumentMean | None:
    """Mean difference a token, the interval over documents; None as `token_differences`."""
    differences = token_differences(records, partner)
    return None if differences is None else mean_over_documents(differences, _any(records).document)


def buckets(
    records: SeedRecords, partner: SeedRecords, columns: Mapping[str, int]
) -> list[tuple[Bucket, ...]]:
    """Loss and difference where a column is in [0, 1), [1, 2), [2, 4), …, for each of `columns`.

    A column's number is that of its first bucket.
    """
    documents = _any(records).document
    loss, difference = mean_nll(records, sorted(records)), token_differences(records, partner)

    def mean(values: np.ndarray, inside: np.ndarray) -> Estimate:
        over_documents = mean_over_documents(values[inside], documents[inside])
        return Estimate(over_documents.mean, over_documents.low, over_documents.high)

    def bucket(exponent: int, inside: np.ndarray) -> Bucket:
        return Bucket(
            start=(1 << exponent) >> 1,
            end=1 << exponent,
            loss=mean(loss, inside),
            difference=None if difference is None else mean(difference, inside),
            num_tokens=int(np.count_nonzero(inside)),
        )

    found = []
    for column, first in columns.items():
        exponents = doubling(getattr(_any(records), column))
        kept = [exponent for exponent in np.unique(exponents).tolist() if exponent >= first]
        found.append(tuple(bucket(exponent, exponents == exponent) for exponent in kept))
    return found


def accuracy(records: SeedRecords) -> CountedMean | None:
    """Share of right answers of all seeds together, each counted alike; None for text."""
    correct = _joined(records, "correct")
    return _share(correct) if len(correct) else None


def accuracies(records: SeedRecords, column: str) -> dict[int, CountedMean]:
    """The same for each value of a column; {} for text."""
    correct, values = _joined(records, "correct"), _joined(records, column)
    return {value: _share(correct[values == value]) for value in np.unique(values).tolist()}


def _share(correct: np.ndarray) -> CountedMean:
    return wilson(int(np.count_nonzero(correct)), len(correct))


def _joined(records: SeedRecords, column: str) -> np.ndarray:
    return np.concatenate([getattr(one, column) for one in records.values()])


def _same_tokens(records: TokenRecords, others: TokenRecords) -> bool:
    """Whether both hold the same tokens in the same order, as far as their columns show."""
    return np.array_equal(records.document, others.document) and np.array_equal(
        records.position, others.position
    )


def _any(records: SeedRecords) -> TokenRecords:
    return next(iter(records.values()))

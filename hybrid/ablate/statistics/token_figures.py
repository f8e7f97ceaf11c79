"""Figures from the token records of a cell's seeds: by position, repeat, distance and document.

Losses a token are averaged over the seeds first and then clustered by document, so their intervals
are about other documents; intervals about other seeds are in `summary.py`.
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
    records: SeedRecords, partner: SeedRecords, column: str, first: int
) -> tuple[Bucket, ...]:
    """Loss and difference where a column is in [0, 1), [1, 2), [2, 4), …, from that of `first`."""
    # frexp writes p as m·2^e with 1/2 <= m < 1: e is 0 for 0, 1 for 1, 2 for 2 and 3, and so on.
    exponents = np.frexp(getattr(_any(records), column))[1]
    documents = _any(records).document
    loss, difference = mean_nll(records, sorted(records)), token_differences(records, partner)

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
    records: SeedRecords, group: Callable[[int, TokenRecords], np.ndarray]
) -> dict[int, CountedMean]:
    """Share of right answers of all seeds together by `group(seed, records)`, an int [n] each.

    Returns: {} for text, and where a seed lacks the groups.
    """
    columns = [(one.correct, group(seed, one)) for seed, one in records.items()]
    if not all(len(correct) and len(groups) for correct, groups in columns):
        return {}
    correct, groups = map(np.concatenate, zip(*columns, strict=True))
    return {
        value: wilson(int(np.count_nonzero(correct[groups == value])), int(sum(groups == value)))
        for value in np.unique(groups).tolist()
    }


def accuracy(records: SeedRecords) -> CountedMean | None:
    """That of all answers, each counted alike; None for text."""
    return accuracies(records, lambda _, one: np.zeros(len(one.correct), int)).get(0)


def _same_tokens(records: TokenRecords, others: TokenRecords) -> bool:
    """Whether both hold the same tokens in the same order, as far as their columns show."""
    return np.array_equal(records.document, others.document) and np.array_equal(
        records.position, others.position
    )


def _any(records: SeedRecords) -> TokenRecords:
    return next(iter(records.values()))

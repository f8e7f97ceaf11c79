"""Losses of a mixture: each source's held-out documents by themselves, and all of them together.

With `eval.max_tokens` every source has the same part of them, and what a small one leaves goes to
the others: each loss then rests on as many tokens as the budget allows, and in training all sources
are looked at from the first evaluation on. The loss of all is the mean over the tokens scored.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from hybrid.data.eval_documents import EvalDocuments
from hybrid.data.mixed import MixedDocuments
from hybrid.evaluation import perplexity
from hybrid.evaluation.batches import BatchScorer
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.result import Result, SourceLoss
from hybrid.evaluation.token_records import TokenRecords


def evaluate(
    scorer: BatchScorer, documents: MixedDocuments, config: EvalConfig, length: int
) -> Result:
    """Scores every source in windows of `length`; its records number the documents of all.

    Raises: as `perplexity.evaluate`; Stopped.
    """
    parts = documents.by_source
    budgets = [0] * len(parts)
    if config.max_tokens:
        budgets = shared_tokens(config.max_tokens, [_num_tokens(p, config) for p in parts.values()])
    results = {
        name: perplexity.evaluate(
            scorer, part, dataclasses.replace(config, max_tokens=budget), length
        )
        for (name, part), budget in zip(parts.items(), budgets, strict=True)
        if budget or not config.max_tokens
    }
    about = next(iter(results.values()))
    num_bytes = [result.num_bytes for result in results.values()]
    starts = itertools.accumulate(map(len, parts.values()), initial=0)
    firsts = dict(zip(parts, starts, strict=False))
    joined = perplexity.summarize(
        _joined([_numbered(results[name].records, firsts[name]) for name in results]),
        None if None in num_bytes else sum(filter(None, num_bytes)),
        about.context_length,
        about.stride,
        about.bos,
        config.count_eos,
    )
    names = [field.name for field in dataclasses.fields(SourceLoss)]
    by_source = {
        source: SourceLoss(**{name: getattr(result, name) for name in names})
        for source, result in results.items()
    }
    return dataclasses.replace(joined, by_source=by_source)


def shared_tokens(num_tokens: int, held: Sequence[int]) -> list[int]:
    """Parts of `num_tokens`, as equal as what each source holds allows; the first get the rest.

    >>> shared_tokens(10, [100, 2, 100])
    [4, 2, 4]
    >>> shared_tokens(2, [5, 5, 5])
    [1, 1, 0]
    """
    parts = [0] * len(held)
    order = sorted(range(len(held)), key=lambda source: (held[source], -source))
    for done, source in enumerate(order):
        parts[source] = min(held[source], num_tokens // (len(order) - done))
        num_tokens -= parts[source]
    return parts


def _num_tokens(documents: EvalDocuments, config: EvalConfig) -> int:
    """How many tokens of a source are predicted."""
    if not config.count_eos:
        documents = documents.without_eos()
    unpredicted = int(documents.bos == "never")
    return sum(max(length - unpredicted, 0) for length in documents.lengths)


def _numbered(records: TokenRecords, first: int) -> TokenRecords:
    return dataclasses.replace(records, document=records.document + np.int32(first))


def _joined(records: Sequence[TokenRecords]) -> TokenRecords:
    columns = [one.columns() for one in records]
    return TokenRecords(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})

"""Accuracy of a model on a task: how often the right answer has the largest logit.

    accuracy       right answers / questions
    by_distance    the same by tokens from the question back to its value
    by_num_pairs   the same by how many pairs the row holds

Pure of files. `held_out.evaluate` calls `evaluate`.
"""

from collections.abc import Iterator

import numpy as np

from hybrid.data.batch import Batch, stacked
from hybrid.data.tasks import Example, Examples
from hybrid.evaluation import windows
from hybrid.evaluation.batches import BatchScorer
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.result import Result, shares, summarized
from hybrid.evaluation.token_records import TokenRecords
from hybrid.ops.loss import TokenScores


def evaluate(scorer: BatchScorer, examples: Examples, config: EvalConfig, length: int) -> Result:
    """Scores the examples made at `length`.

    Raises: ConfigError where the task doesn't fit the length; Stopped.
    """
    examples = examples.at(length)
    number = num_examples(examples, config.max_tokens)
    size = windows.rows_a_batch(number, length, config.batch_size, scorer.batch_multiple)
    scored = scorer.score_batches(_batches(examples, number, size), -(-number // size))
    parts = [_records(scores, *of_batch) for scores, of_batch in scored]
    records = _joined(parts, config.max_tokens)
    return summarized(
        records,
        context_length=length,
        stride=length,
        bos="never",
        accuracy=float(np.mean(records.correct)),
        by_distance=shares(records.correct, records.distance),
        by_num_pairs=shares(records.correct, records.num_pairs),
    )


def num_examples(examples: Examples, max_tokens: int) -> int:
    """Examples to score for `max_tokens` predicted tokens; all for 0."""
    if not max_tokens:
        return examples.num_rows
    num_asked = np.cumsum([examples.num_asked(index) for index in range(examples.num_rows)])
    return min(examples.num_rows, int(np.searchsorted(num_asked, max_tokens)) + 1)


def _batches(
    examples: Examples, number: int, size: int
) -> Iterator[tuple[Batch, tuple[int, list[Example]]]]:
    """Batches of `size` rows, the last one filled up with padding, and what they hold."""
    for first in range(0, number, size):
        of_batch = [examples.example(i) for i in range(first, min(first + size, number))]
        rows = [example.row() for example in of_batch]
        empty = {name: np.zeros_like(column) for name, column in rows[0].items()}
        rows += [empty] * (size - len(rows))
        yield stacked(rows), (first, of_batch)


def _records(scores: TokenScores, first: int, of_batch: list[Example]) -> TokenRecords:
    counts = [len(example.asked) for example in of_batch]
    row = np.repeat(np.arange(len(of_batch)), counts)
    column = np.concatenate([example.asked for example in of_batch])
    num_pairs = np.repeat([example.num_pairs for example in of_batch], counts)
    return TokenRecords(
        nll=scores.nll[row, column],
        position=column,
        document=(first + row).astype(np.int32),
        correct=scores.is_top[row, column],
        distance=np.concatenate([example.distance for example in of_batch]),
        num_pairs=num_pairs.astype(np.int32),
    )


def _joined(parts: list[TokenRecords], max_tokens: int) -> TokenRecords:
    names = parts[0].columns()
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return TokenRecords(**{name: column[: max_tokens or None] for name, column in joined.items()})

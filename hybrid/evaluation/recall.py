"""Accuracy of a model on a task: how often the right answer has the largest logit.

    accuracy       right answers / questions
    by_distance    the same by tokens from the question back to the value it asks for
    by_num_pairs   the same by how many pairs the row holds

Pure of files. `held_out.evaluate` calls `score`.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from hybrid.data.batch import Batch
from hybrid.data.tasks import Example, Examples, as_row
from hybrid.evaluation import windows
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.result import Result, doubling_buckets, groups, mean_loss
from hybrid.evaluation.scores import Scores
from hybrid.evaluation.scoring import Scorer


def score(scorer: Scorer, examples: Examples, config: EvalConfig, length: int) -> Result:
    """Scores the examples made at `length`; `scorer.score` gives (nll, is_top), [b, t] each.

    Raises: ConfigError where the task doesn't fit the length; Stopped.
    """
    examples = examples.at(length)
    number = num_examples(examples, config.max_tokens)
    size = windows.rows_a_batch(number, length, config.batch_size, scorer.batch_multiple)
    parts = []
    for (nll, is_top), (first, of_batch) in scorer.each(
        _batches(examples, number, size), -(-number // size)
    ):
        parts.append(_scores(nll, is_top, first, of_batch))
    return summarize(_joined(parts, config.max_tokens), length)


def num_examples(examples: Examples, max_tokens: int) -> int:
    """Examples to score for `max_tokens` predicted tokens; all for 0."""
    if not max_tokens:
        return examples.num_rows
    asked = np.cumsum([examples.num_asked(index) for index in range(examples.num_rows)])
    return min(examples.num_rows, int(np.searchsorted(asked, max_tokens)) + 1)


def _batches(
    examples: Examples, number: int, size: int
) -> Iterator[tuple[Batch, tuple[int, list[Example]]]]:
    """Batches of `size` rows, the last one filled up with padding, and what they hold."""
    for first in range(0, number, size):
        of_batch = [examples.example(i) for i in range(first, min(first + size, number))]
        rows = [as_row(example) for example in of_batch]
        empty = {name: np.zeros_like(column) for name, column in rows[0].items()}
        rows += [empty] * (size - len(rows))
        batch = Batch(**{name: np.stack([row[name] for row in rows]) for name in empty})
        yield batch, (first, of_batch)


def _scores(nll: np.ndarray, is_top: np.ndarray, first: int, of_batch: list[Example]) -> Scores:
    """The columns of a batch's questions."""
    counts = [len(example.asked) for example in of_batch]
    row = np.repeat(np.arange(len(of_batch)), counts)
    column = np.concatenate([example.asked for example in of_batch])
    num_pairs = np.repeat([example.num_pairs for example in of_batch], counts)
    return Scores(
        nll=nll[row, column],
        position=column,
        document=(first + row).astype(np.int32),
        correct=is_top[row, column],
        distance=np.concatenate([example.distance for example in of_batch]),
        num_pairs=num_pairs.astype(np.int32),
    )


def _joined(parts: list[Scores], max_tokens: int) -> Scores:
    names = parts[0].columns()
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Scores(**{name: column[: max_tokens or None] for name, column in joined.items()})


def summarize(scores: Scores, context_length: int) -> Result:
    """The Result of a task's scores, whose nll may be wider than float32."""
    loss, perplexity = mean_loss(scores.nll)
    return Result(
        loss=loss,
        perplexity=perplexity,
        bits_per_byte=None,
        num_tokens=len(scores.nll),
        num_bytes=None,
        by_position=doubling_buckets(scores.nll, scores.position),
        context_length=context_length,
        stride=context_length,
        bos="never",
        scores=dataclasses.replace(scores, nll=scores.nll.astype(np.float32)),
        accuracy=float(np.mean(scores.correct)),
        by_distance=groups(scores.correct, scores.distance),
        by_num_pairs=groups(scores.correct, scores.num_pairs),
    )

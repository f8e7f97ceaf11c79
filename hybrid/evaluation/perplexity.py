"""Loss, perplexity and bits a byte of a model on documents, every token counted once.

`windows.py` plans what is scored where; here the model scores batch after batch and the host
adds up, in float64 and in input order, so the result depends on neither packing nor batches:

    loss           Σ nll / predicted tokens                    (nats)
    perplexity     exp(loss)
    bits_per_byte  Σ nll / ln 2 / bytes of the predicted tokens
    by_position    the same loss by how many inputs of its window precede the one that predicts
                   the token, in buckets [0, 1), [1, 2), [2, 4), [4, 8), …: a model that uses
                   far context keeps falling beyond the reach of its local windows
    repeats        the same loss on repeated bigrams (`repeats.py`) by how many tokens back the
                   latest earlier sight is, in such buckets from [1, 2) on

Pure of files. `held_out.evaluate` calls `score`.
"""

import dataclasses
import math

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.pipeline import EvalDocuments
from hybrid.evaluation import windows
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.repeats import repeat_distances
from hybrid.evaluation.result import Result, doubling_buckets, mean_loss
from hybrid.evaluation.scores import Scores
from hybrid.evaluation.scoring import Scorer


def score(scorer: Scorer, documents: EvalDocuments, config: EvalConfig, length: int) -> Result:
    """Scores documents in windows of `length`; `scorer.score` gives nats [b, t].

    Raises: ConfigError for a stride that doesn't fit, or text without a token to predict; Stopped.
    """
    plan = windows.plan(
        [len(tokens) for tokens in documents.tokens],
        context_length=length,
        stride=config.stride,
        bos=documents.bos,
        max_tokens=config.max_tokens,
        batch_size=config.batch_size,
        batch_multiple=scorer.batch_multiple,
        share_rows=config.mode != "cached",
    )
    if not plan.num_tokens:
        raise ConfigError("data.paths", "hold no token to predict (the text is empty)")
    scores = _run(scorer, plan, documents)
    num_bytes = count_bytes(documents, plan.num_tokens)
    return summarize(scores, num_bytes, length, config.stride or length, documents.bos)


def _run(scorer: Scorer, plan: windows.Plan, documents: EvalDocuments) -> Scores:
    """The columns of all predicted tokens in input order, nats in float64."""
    integers = (np.empty(plan.num_tokens, np.int32) for _ in range(3))
    scores = Scores(np.empty(plan.num_tokens), *integers)
    planned = windows.batches(plan, documents.tokens, documents.bos_id, documents.pad_id)
    batches = ((batch, (batch, pieces)) for batch, pieces in planned)
    for nll, (batch, pieces) in scorer.each(batches, plan.num_batches):
        repeats = repeat_distances(batch.tokens, batch.targets, batch.segment_ids)
        for piece in pieces:
            _file(piece, nll, repeats, scores)
    return scores


def _file(piece: windows.Piece, nll: np.ndarray, repeats: np.ndarray, scores: Scores) -> None:
    """Puts a window's scores where its tokens stand in the input."""
    window, row, column = piece
    where = slice(window.offset, window.offset + window.num_scored)
    columns = slice(column + window.first, column + window.length)
    scores.nll[where] = nll[row, columns]
    scores.position[where] = np.arange(window.first, window.length)
    scores.document[where] = window.document
    scores.repeat_distance[where] = repeats[row, columns]


def count_bytes(documents: EvalDocuments, num_tokens: int) -> int | None:
    """Bytes of text behind the first `num_tokens` predicted tokens; None where unknown."""
    if documents.num_bytes is None:
        return None
    total, left = 0, num_tokens
    unpredicted = 1 if documents.bos == "never" else 0  # a document's first token is context
    for counts in documents.num_bytes:
        predicted = counts[unpredicted : unpredicted + left]
        total += int(np.sum(predicted))
        left -= len(predicted)
    return total


def summarize(
    scores: Scores, num_bytes: int | None, context_length: int, stride: int, bos: str
) -> Result:
    """The Result of a text's scores, whose nll may be wider than float32."""
    loss, perplexity = mean_loss(scores.nll)
    total, repeated = loss * len(scores.nll), scores.repeat_distance > 0
    return Result(
        loss=loss,
        perplexity=perplexity,
        bits_per_byte=total / math.log(2) / num_bytes if num_bytes else None,
        num_tokens=len(scores.nll),
        num_bytes=num_bytes,
        by_position=doubling_buckets(scores.nll, scores.position),
        context_length=context_length,
        stride=stride,
        bos=bos,
        scores=dataclasses.replace(scores, nll=scores.nll.astype(np.float32)),
        repeats=doubling_buckets(scores.nll[repeated], scores.repeat_distance[repeated]),
    )

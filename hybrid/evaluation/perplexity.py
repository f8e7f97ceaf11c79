"""Loss, perplexity and bits a byte of a model on documents, every token counted once.

`windows.py` says which token is scored in which window; here the model scores batch after batch.
The host adds up in float64 and in input order, so packing and batches do not change the result:

    loss           Σ nll / predicted tokens                    (nats)
    perplexity     exp(loss)
    bits_per_byte  Σ nll / ln 2 / bytes of the predicted tokens
    by_position    the same loss by how many inputs of its window precede the one that predicts
                   the token, in buckets [0, 1), [1, 2), [2, 4), [4, 8), …: a model that uses
                   far context keeps falling beyond the reach of its local windows
    repeats        the same loss on repeated bigrams (`repeats.py`) by how many tokens back the
                   latest earlier sight is, in such buckets from [1, 2) on

Pure of files. `held_out.evaluate` calls `evaluate`.
"""

from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.pipeline import EvalDocuments
from hybrid.evaluation import windows
from hybrid.evaluation.batches import BatchScorer
from hybrid.evaluation.config import EvalConfig
from hybrid.evaluation.repeats import repeat_distances
from hybrid.evaluation.result import Result, doubling_buckets, summarized
from hybrid.evaluation.token_records import TokenRecords


def evaluate(
    scorer: BatchScorer, documents: EvalDocuments, config: EvalConfig, length: int
) -> Result:
    """Scores documents in windows of `length`, their EOS too where `config.count_eos` says so.

    Raises: ConfigError for a stride that doesn't fit, or text without a token to predict; Stopped.
    """
    documents = documents if config.count_eos else documents.without_eos()
    packed = windows.pack_windows(
        [len(tokens) for tokens in documents.tokens],
        context_length=length,
        stride=config.stride,
        bos=documents.bos,
        max_tokens=config.max_tokens,
        batch_size=config.batch_size,
        batch_multiple=scorer.batch_multiple,
        share_rows=config.mode != "cached",
        predicted=documents.predicted,
    )
    if not packed.num_tokens:
        raise ConfigError("data.paths", "hold no token to predict (the text is empty)")
    records = _records(scorer, packed, documents)
    num_bytes = count_bytes(documents, packed.num_tokens)
    stride, counts_eos = config.stride or length, config.count_eos
    return summarize(records, num_bytes, length, stride, documents.bos, counts_eos)


def _records(
    scorer: BatchScorer, packed: windows.PackedWindows, documents: EvalDocuments
) -> TokenRecords:
    """The columns of all predicted tokens in input order, nats in float64."""
    integers = (np.empty(packed.num_tokens, np.int32) for _ in range(3))
    records = TokenRecords(np.empty(packed.num_tokens), *integers)
    made = windows.batches(packed, documents.tokens, documents.bos_id, documents.pad_id)
    batches = ((batch, (batch, pieces)) for batch, pieces in made)
    for scores, (batch, pieces) in scorer.score_batches(batches, packed.num_batches):
        repeats = repeat_distances(batch.tokens, batch.targets, batch.segment_ids)
        for window, row, column in pieces:
            here = slice(window.offset, window.offset + window.num_scored)
            positions = np.flatnonzero(batch.loss_mask[row, column : column + window.length])
            columns = column + positions
            records.nll[here] = scores.nll[row, columns]
            records.position[here] = positions
            records.document[here] = window.document
            records.repeat_distance[here] = repeats[row, columns]
    return records


def count_bytes(documents: EvalDocuments, num_tokens: int) -> int | None:
    """Bytes of text behind the first `num_tokens` predicted tokens; None where unknown."""
    if documents.num_bytes is None:
        return None
    masks = documents.predicted or (None,) * len(documents)
    counts = []
    for of_tokens, mask in zip(documents.num_bytes, masks, strict=True):
        is_predicted = windows.targets_of(mask, len(of_tokens), documents.bos)
        counts.append(of_tokens[len(of_tokens) - len(is_predicted) :][is_predicted])
    return int(np.sum(np.concatenate(counts)[:num_tokens]))


def summarize(
    records: TokenRecords,
    num_bytes: int | None,
    context_length: int,
    stride: int,
    bos: str,
    count_eos: bool = True,
) -> Result:
    """The Result of a text's records, whose nll may be wider than float32."""
    repeated = records.repeat_distance > 0
    repeats = doubling_buckets(records.nll[repeated], records.repeat_distance[repeated])
    about: dict[str, Any] = {"context_length": context_length, "stride": stride, "bos": bos}
    about["count_eos"] = count_eos
    return summarized(records, num_bytes=num_bytes, repeats=repeats, **about)

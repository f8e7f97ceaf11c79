"""Which tokens are scored in which window, and how windows share rows. No jax, no model.

Each document is scored as if it were alone. Write x_0 for BOS (absent under `never`) and x_1,
x_2, … for its tokens, EOS the last; every x_j that has a token before it is predicted once.
With C inputs a window and stride S (S = C unless given), window k holds

    inputs   x_{kS}   … x_{kS+C-1}        positions 0 … C-1
    targets  x_{kS+1} … x_{kS+C}          scored from column 0 if k = 0, else from C - S

so a later window scores its last S targets, each with at least C - S tokens before it, and at
S = C neighbours share only the boundary token, target of one and input of the next. Under
`window` a later window's first input is BOS instead of x_{kS} and its first target (the
boundary token) is not scored again, which takes S <= C - 1: a larger stride is cut to that.

Where not all of a document's tokens are predicted (an answer is, its prompt is not), a window
scores what is predicted among S targets from the first that is left, ends with the last of them,
and reaches back as far as C inputs go: so an answer has all of its prompt before it that fits.

Windows have very different lengths (a document's last, short documents). Several share a row
as segments with positions of their own, packed best fit in order of decreasing length; since
segments never see each other the scores are those of each window alone.

Read next: `perplexity.py`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hybrid.config import ConfigError
from hybrid.data import packing
from hybrid.data.batch import Batch

TOKENS_A_BATCH = 8192
Masks = Sequence[np.ndarray] | None


class Window(NamedTuple):
    """A stretch of one document that the model reads at once.

    Attributes:
      document: index of the document.
      start: index in the document's sequence (BOS included where there is one) of input 0.
      length: inputs it holds.
      first: column from which on its predicted targets are scored.
      offset: predicted tokens, in input order, before its first scored one.
      num_scored: targets it scores; all from `first` on where all are predicted.
    """

    document: int
    start: int
    length: int
    first: int
    offset: int
    num_scored: int


class Piece(NamedTuple):
    """Where a window lies in a batch: `row`, and the column of its first input."""

    window: Window
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class PackedWindows:
    """All windows of a corpus, packed into rows of one length.

    Attributes:
      bos: `document`, `window` or `never`.
      num_tokens: predicted tokens.
      row_length: columns of a row.
      batch_size: rows of a batch.
      rows: the windows of each row, left to right.
      predicted: for each document bool [n], which of its tokens are predicted; None: all.
    """

    bos: str
    num_tokens: int
    row_length: int
    batch_size: int
    rows: tuple[tuple[Window, ...], ...]
    predicted: Masks = None

    @property
    def num_batches(self) -> int:
        """How many batches `batches` gives."""
        return -(-len(self.rows) // self.batch_size)


def pack_windows(
    document_lengths: Sequence[int],
    *,
    context_length: int,
    stride: int = 0,
    bos: str = "document",
    max_tokens: int = 0,
    batch_size: int = 0,
    batch_multiple: int = 1,
    share_rows: bool = True,
    predicted: Masks = None,
) -> PackedWindows:
    """The windows of documents of the given lengths (tokens with EOS, without BOS), in rows.

    Args:
      context_length, stride: C and S above; a stride of 0 is C.
      max_tokens: stop after exactly so many predicted tokens; 0: all.
      batch_size: rows a batch; 0: about TOKENS_A_BATCH tokens, in batches of equal size.
      batch_multiple: what the rows of a batch must be a multiple of (devices).
      share_rows: whether windows may share a row; else each has its own.
      predicted: as `PackedWindows` has it.
    Raises: ConfigError for a stride above context_length, or a window that can't move on.
    """
    stride = checked_stride(context_length, stride, bos)
    targets = (
        targets_of(None if predicted is None else predicted[document], num_tokens, bos)
        for document, num_tokens in enumerate(document_lengths)
    )
    reaches_back = predicted is not None
    windows = list(_windows(targets, context_length, stride, max_tokens, reaches_back))
    longest = max((window.length for window in windows), default=1)
    row_length = min(context_length, 1 << (longest - 1).bit_length())
    rows = best_fit(windows, row_length) if share_rows else tuple((window,) for window in windows)
    num_tokens = sum(window.num_scored for window in windows)
    size = rows_a_batch(len(rows), row_length, batch_size, batch_multiple)
    return PackedWindows(bos, num_tokens, row_length, size, rows, predicted)


def checked_stride(context_length: int, stride: int, bos: str) -> int:
    """The stride that windows really take.  Raises: ConfigError where there is none."""
    if stride > context_length:
        raise ConfigError(
            "eval.stride", "must not exceed eval.context_length", stride, f"1 to {context_length}"
        )
    if bos == "window" and context_length < 2:
        raise ConfigError(
            "eval.context_length",
            "must be at least 2 with data.bos=window (BOS takes one input)",
            context_length,
        )
    return min(stride or context_length, context_length - (bos == "window"))


def targets_of(mask: np.ndarray | None, num_tokens: int, bos: str) -> np.ndarray:
    """Which of a document's targets are predicted, bool [n]; its first token is none under `never`.

    mask: which of its tokens are; None: all `num_tokens`.
    """
    mask = np.ones(num_tokens, bool) if mask is None else mask
    return mask[1:] if bos == "never" else mask


def _windows(
    targets: Iterable[np.ndarray],
    context_length: int,
    stride: int,
    max_tokens: int,
    reaches_back: bool,
) -> Iterator[Window]:
    offset = 0
    for document, is_predicted in enumerate(targets):
        places = np.flatnonzero(is_predicted)
        if max_tokens:
            places = places[: max_tokens - offset]
        scored = 0
        while scored < len(places):
            next_place = int(places[scored])
            limit = max(next_place + stride, context_length)
            done = int(np.searchsorted(places, limit))
            stop = int(places[done - 1]) + 1
            start = max(0, (stop if reaches_back else next_place + stride) - context_length)
            first = next_place - start
            yield Window(document, start, stop - start, first, offset + scored, done - scored)
            scored = done
        offset += len(places)


def best_fit(windows: Sequence[Window], row_length: int) -> tuple[tuple[Window, ...], ...]:
    """Puts windows into rows of at most `row_length` columns, best fit, longest first."""
    rows = packing.best_fit([window.length for window in windows], row_length)
    return tuple(tuple(windows[number] for number in row) for row in rows)


def rows_a_batch(num_rows: int, row_length: int, batch_size: int, multiple: int) -> int:
    """Rows a batch; by default so many that the last batch is about as full as the others."""
    if not batch_size:
        most = max(1, TOKENS_A_BATCH // row_length, multiple)
        batch_size = -(-num_rows // max(1, -(-num_rows // most)))
    return max(1, -(-batch_size // multiple)) * multiple


def batches(packed: PackedWindows, documents, bos_id: int | None, pad_id: int):
    """Yields (Batch of numpy arrays [batch_size, row_length], its Pieces), in a fixed order.

    Args:
      documents: `documents[i]` is the int32 tokens of document i, EOS the last, without BOS.
      bos_id: read unless the policy is `never`.  pad_id: fills up rows.
    """
    for first in range(0, len(packed.rows), packed.batch_size):
        rows = packed.rows[first : first + packed.batch_size]
        yield _batch(packed, rows, documents, bos_id, pad_id)


def _batch(packed, rows, documents, bos_id, pad_id) -> tuple[Batch, list[Piece]]:
    shape = (packed.batch_size, packed.row_length)
    tokens, targets = (np.full(shape, pad_id, np.int32) for _ in range(2))
    segment_ids, positions = (np.zeros(shape, np.int32) for _ in range(2))
    loss_mask = np.zeros(shape, bool)
    pieces = []
    for row, windows in enumerate(rows):
        column = 0
        for segment, window in enumerate(windows, start=1):
            span = slice(column, column + window.length)
            document, stop = documents[window.document], window.start + window.length
            inputs, outputs = _cut(document, window, packed.bos, bos_id)
            tokens[row, span], targets[row, span] = inputs, outputs
            segment_ids[row, span] = segment
            positions[row, span] = np.arange(window.length)
            mask = None if packed.predicted is None else packed.predicted[window.document]
            is_predicted = targets_of(mask, len(document), packed.bos)[window.start : stop]
            loss_mask[row, span] = is_predicted & (np.arange(window.length) >= window.first)
            pieces.append(Piece(window, row, column))
            column = span.stop
    return Batch(tokens, targets, segment_ids, positions, loss_mask), pieces


def _cut(document, window: Window, bos: str, bos_id) -> tuple[np.ndarray, np.ndarray]:
    start, stop = window.start, window.start + window.length
    if bos == "never":
        return document[start:stop], document[start + 1 : stop + 1]
    # The sequence is BOS and then the document: its index j is the document's j - 1.
    targets = document[start:stop]
    inputs = np.empty(window.length, np.int32)
    inputs[1:] = targets[:-1]
    inputs[0] = bos_id if start == 0 or bos == "window" else document[start - 1]
    return inputs, targets

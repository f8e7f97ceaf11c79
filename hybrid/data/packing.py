"""A stream of documents cut into rows of one length, in one of three ways.

A row predicts T = `context_length` tokens and so holds T + 1. It is made of pieces, stretches of
the stream that lie in one document or go on over documents,

    stream   b0 h e l l o e0 b1 w o r l d e1          (b: BOS, e: EOS; T = 5)
    row 0    b0 h e l l o                             predicts h e l l o
    row 1               o e0 b1 w o r                 predicts e0, not b1, then w o r
    row 2                         r l d e1 . .        predicts l d e1; the rest is padding

`stream`     one piece a row: row r is stream[r*T : r*T + T + 1]. Nothing is lost, nothing padded
             but the end; neighbours share their boundary token, the last target of one row and the
             first input of the next.
`best_fit`   whole documents, each put where the least room is left for it, the longest first
             (2404.10830). One that is longer than a row is cut as above, others never.
`document`   one document a row; what is beyond T tokens is left out.

A target that begins a document is not predicted. Within a row each document is a segment, numbered
from 1, with positions from 0; one that goes on from another row before starts anew there. Padding
is segment 0.

With `bos=window` a piece that begins inside a document opens with one more BOS, in front of the
boundary token, which is not predicted again. So that rows stand at multiples of T - 1, a row of
`stream` that begins with a document leaves its last place empty.
Read next: `pipeline.py`.
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

Span = tuple[int, int]  # [start, stop) of the stream
Row = dict[str, np.ndarray]


@runtime_checkable  # for the tests, which check types
class Stream(Protocol):
    """Every document's tokens, one after another, wherever they are kept.

    Attributes:
      num_tokens: of all documents.
      starts: int64 [num_documents], where each document begins.
    """

    @property
    def num_tokens(self) -> int: ...

    @property
    def starts(self) -> np.ndarray: ...

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Unsigned integers [stop - start]."""

    def predicted(self, start: int, stop: int) -> np.ndarray | None:
        """Which of these tokens are predicted, where not all of them, bool [stop - start]."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows are laid out.

    Attributes:
      context_length: predicted tokens a row (T), at least 1; 2 with `window_bos`.
      pad_id: fills what is left of a row.
      packing: `stream`, `best_fit` or `document`.
      window_bos: BOS to open pieces with that begin inside a document, or None.
      cross_document: a row is one segment.
    """

    context_length: int
    pad_id: int
    packing: str = "stream"
    window_bos: int | None = None
    cross_document: bool = False

    @property
    def step(self) -> int:
        """From a piece that begins inside a document to the next."""
        return self.context_length - (self.window_bos is not None)

    def num_stream_rows(self, num_tokens: int) -> int:
        """Rows of a stream that is cut through."""
        return -(-max(num_tokens - 1, 0) // self.step)


class StreamRows:
    """The rows of `packing=stream`, known by arithmetic."""

    def __init__(self, stream: Stream, layout: Layout):
        self.num_rows = layout.num_stream_rows(stream.num_tokens)
        self._num_tokens, self._layout = stream.num_tokens, layout

    def pieces(self, row: int) -> list[Span]:
        """The stretches of the stream that the row holds."""
        start = row * self._layout.step
        return [(start, min(start + self._layout.step + 1, self._num_tokens))]


@dataclasses.dataclass(frozen=True)
class ListedRows:
    """Rows whose pieces are listed.

    Attributes:
      spans: int64 [num_pieces, 2], row after row.
      ends: int64 [num_rows], how many pieces the rows up to and with each have.
      num_left_out: tokens that would be predicted and are in no row.
    """

    spans: np.ndarray
    ends: np.ndarray
    num_left_out: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.ends)

    def pieces(self, row: int) -> list[Span]:
        """The stretches of the stream that the row holds."""
        first = int(self.ends[row - 1]) if row else 0
        return [(int(a), int(b)) for a, b in self.spans[first : int(self.ends[row])]]


Rows = StreamRows | ListedRows


def rows_of(stream: Stream, layout: Layout) -> Rows:
    """Which pieces each row holds; but for `stream` this looks at every document's length."""
    if layout.packing == "stream":
        return StreamRows(stream, layout)
    starts = np.asarray(stream.starts)
    stops = np.append(starts[1:], stream.num_tokens)
    has_target = stops - starts > 1
    starts, stops = starts[has_target], stops[has_target]
    if layout.packing == "document":
        kept = np.minimum(stops, starts + layout.context_length + 1)
        ends = np.arange(1, len(starts) + 1)
        return ListedRows(np.stack([starts, kept], 1), ends, _num_predicted(stream, kept, stops))
    pieces = np.array(list(_cut(starts, stops, layout)), np.int64).reshape(-1, 2)
    opened = 0 if layout.window_bos is None else ~np.isin(pieces[:, 0], starts)
    lengths = (pieces[:, 1] - pieces[:, 0] + opened).tolist()
    rows = best_fit(lengths, layout.context_length + 1)
    order = [piece for row in rows for piece in sorted(row)]  # as the documents stand
    return ListedRows(pieces[order], np.cumsum([len(row) for row in rows]))


def _num_predicted(stream: Stream, starts: np.ndarray, stops: np.ndarray) -> int:
    """Predicted tokens of stretches that begin inside documents."""
    mask = stream.predicted(0, stream.num_tokens)
    if mask is None:
        return int((stops - starts).sum())
    before = np.append(0, np.cumsum(mask))
    return int((before[stops] - before[starts]).sum())


def _cut(starts: np.ndarray, stops: np.ndarray, layout: Layout) -> Iterator[Span]:
    """Documents, those longer than a row cut; pieces share their boundary tokens."""
    room = layout.context_length + 1
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        end = min(start + room, stop)
        yield start, end
        while end < stop:
            start, end = end - 1, min(end + layout.step, stop)
            yield start, end


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Each piece, the longest first, into the row with the least room that is enough.

    Returns: the numbers of each row's pieces, in the order they were put there.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room, row) of rows that are not full, ascending
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        length = lengths[piece]
        place = bisect.bisect_left(left, (length, 0))
        if place < len(left):
            free, row = left.pop(place)
        else:
            free, row = room, len(rows)
            rows.append([])
        rows[row].append(piece)
        if free > length:
            bisect.insort(left, (free - length, row))
    return rows


# --- One row -------------------------------------------------------------------------------------


def row_of(stream: Stream, layout: Layout, pieces: Sequence[Span]) -> Row:
    """The row that holds these pieces, by the fields of `Batch`, each [context_length]."""
    room = layout.context_length + 1
    tokens = np.full(room, layout.pad_id, np.int32)
    is_start, is_predicted = np.zeros(room, bool), np.zeros(room, bool)
    starts, place = stream.starts, 0
    for start, stop in pieces:
        first, last = (int(n) for n in np.searchsorted(starts, (start, stop)))
        is_start[place] = True
        if layout.window_bos is not None and (first == last or starts[first] != start):
            tokens[place] = layout.window_bos
            place += 1
        end = place + stop - start
        tokens[place:end] = stream.tokens(start, stop)
        predicted = stream.predicted(start, stop)
        is_predicted[place:end] = True if predicted is None else predicted
        is_predicted[place] = False  # the boundary, which another row predicts, or a start
        is_start[starts[first:last] - start + place] = True
        place = end
    is_predicted &= ~is_start
    places = np.arange(room)
    is_real = places < place
    if layout.cross_document:
        is_start = places == 0
    segments = np.cumsum(is_start, dtype=np.int32)
    begins = np.maximum.accumulate(np.where(is_start, places, 0))
    positions = (places - begins).astype(np.int32)
    return {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "segment_ids": np.where(is_real, segments, 0)[:-1],
        "positions": np.where(is_real, positions, 0)[:-1],
        "loss_mask": is_predicted[1:],
    }


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """A stream that is held in arrays.

    Attributes:
      held: unsigned integers [num_tokens].
      starts: int64 [num_documents], where each document begins.
      is_predicted: bool [num_tokens]; None: all.
    """

    held: np.ndarray
    starts: np.ndarray
    is_predicted: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.held)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self.held[start:stop]

    def predicted(self, start: int, stop: int) -> np.ndarray | None:
        return None if self.is_predicted is None else self.is_predicted[start:stop]


@dataclasses.dataclass(frozen=True)
class Packing:
    """The rows of one stream."""

    stream: Stream
    layout: Layout

    @functools.cached_property
    def _rows(self) -> Rows:
        return rows_of(self.stream, self.layout)

    @property
    def num_rows(self) -> int:
        return self._rows.num_rows

    def row(self, index: int) -> Row:
        """Row `index` below num_rows, by the fields of `Batch`, each [context_length]."""
        return row_of(self.stream, self.layout, self._rows.pieces(index))

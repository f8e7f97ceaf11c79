"""The stream cut into rows of one length, every token predicted exactly once.

A row predicts T = `context_length` tokens and so holds T + 1. Neighbours share their boundary
token: it is the last target of one row and the first input of the next,

    stream   b0 h e l l o e0 b1 w o r l d e1          (b: BOS, e: EOS; T = 5)
    row 0    b0 h e l l o                             predicts h e l l o
    row 1               o e0 b1 w o r                 predicts e0, not b1, then w o r
    row 2                         r l d e1 . .        predicts l d e1; the rest is padding

so row r is stream[r*T : r*T + T + 1]. A target that begins a document is not predicted. Within
a row each document is a segment, numbered from 1, with positions from 0; one that goes on from
the row before starts anew there. Padding is segment 0.

With `bos=window` a row that begins inside a document opens with one more BOS, in front of the
boundary token, which is not predicted again; such a row moves on by T - 1.
Read next: `pipeline.py`.
"""

import dataclasses
import functools

import numpy as np

from hybrid.data.cache import TokenStream


@dataclasses.dataclass(frozen=True)
class Packing:
    """A stream cut into rows.

    Attributes:
      stream: the tokens and where documents start in them.
      context_length: predicted tokens a row (T), at least 1; 2 with `window_bos`.
      pad_id: fills the last row.
      window_bos: BOS to open rows with that begin inside a document, or None.
      cross_document: a row is one segment.
    """

    stream: TokenStream
    context_length: int
    pad_id: int
    window_bos: int | None = None
    cross_document: bool = False

    @functools.cached_property
    def row_starts(self) -> np.ndarray:
        """int64 [num_rows], where each row begins in the stream."""
        last, length = len(self.stream.tokens) - 1, self.context_length
        if self.window_bos is None:
            return np.arange(0, last, length, dtype=np.int64)
        begins, starts, place = set(self.stream.starts.tolist()), [], 0
        while place < last:
            starts.append(place)
            place += length - (place not in begins)
        return np.asarray(starts, np.int64)

    @property
    def num_rows(self) -> int:
        return len(self.row_starts)

    @property
    def num_predicted(self) -> int:
        """Predicted tokens of all rows: everything but each document's first token."""
        return len(self.stream.tokens) - len(self.stream.starts)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Row `index` below num_rows, by the fields of `Batch`, each [context_length]."""
        start, places = int(self.row_starts[index]), np.arange(self.context_length + 1)
        starts = self.stream.starts
        first = int(np.searchsorted(starts, start))
        begins_inside = first == len(starts) or starts[first] != start
        bos = [self.window_bos] if self.window_bos is not None and begins_inside else []
        opened = len(bos)
        text = self.stream.tokens[start : start + len(places) - opened]
        tokens = np.full(len(places), self.pad_id, np.int32)
        tokens[:opened] = bos
        tokens[opened : opened + len(text)] = text
        is_real = places < opened + len(text)
        is_start = places == 0
        last = int(np.searchsorted(starts, start + len(text)))
        is_start[starts[first:last] - start + opened] = True
        predicted = is_real[1:] & ~is_start[1:]
        predicted[:opened] = False  # the boundary token was predicted by the row before
        if self.cross_document:
            is_start = places == 0
        segments = np.cumsum(is_start, dtype=np.int32)
        begins = np.maximum.accumulate(np.where(is_start, places, 0))
        positions = (places - begins).astype(np.int32)
        return {
            "tokens": tokens[:-1],
            "targets": tokens[1:],
            "segment_ids": np.where(is_real, segments, 0)[:-1],
            "positions": np.where(is_real, positions, 0)[:-1],
            "loss_mask": predicted,
        }

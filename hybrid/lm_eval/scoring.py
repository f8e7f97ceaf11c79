"""How likely continuations are behind their contexts, in few compiled shapes. No text, no library.

Of a request with c tokens of context and m of continuation the model reads the c + m - 1 tokens
before the last, and its last m outputs are scored. Two ways give the same numbers:

    rows          requests packed into rows of a power of two, as windows of an evaluation are
                  (`evaluation/windows.py`); rows above LONG go through the cache chunk by chunk
    kept cache    where several requests share a context, as the answers of a question do, its
                  first c - 1 tokens are read once, and each continuation is read behind that cache

Logits exist for a block of the vocabulary at a time (`ops/loss.py`).
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hybrid import model as model_lib
from hybrid.evaluation import windows
from hybrid.evaluation.batches import BatchScorer, jitted
from hybrid.evaluation.windows import PackedWindows, Window
from hybrid.generate import session_of
from hybrid.inference.config import InferenceConfig
from hybrid.inference.scoring import through_cache
from hybrid.inference.session import Session
from hybrid.loading.api import Model
from hybrid.model.cache import Cache
from hybrid.model.config import ModelConfig
from hybrid.ops.loss import TokenScores

LONG = 4096  # tokens of a row from which on it goes through the cache
SHORTEST_ROW, SHORTEST_TAIL = 128, 8
SHORTEST_SHARED = 32  # tokens of a context from which on sharing it is worth a cache


class Request(NamedTuple):
    """What to score: ids int32 [c + m], and m, how many of them to score; c is at least 1."""

    ids: np.ndarray
    num_scored: int

    @property
    def num_shared(self) -> int:
        """Tokens that only lead to the first output: the context without its last token."""
        return len(self.ids) - self.num_scored - 1

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids) - 1


class Answer(NamedTuple):
    """The log-likelihood in nats, and whether each token is the likeliest at its place."""

    log_likelihood: float
    is_greedy: bool


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores requests with one model.

    Attributes:
      inference: how caches are kept.
      pad_id: fills rows.
      batch_size: rows of a batch; 0: by length.
      progress: called with how many more requests are scored.
    """

    model: Model
    inference: InferenceConfig
    pad_id: int
    batch_size: int = 0
    progress: Callable[[int], None] = lambda more: None

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer for each request, in their order."""
        found: dict[int, Answer] = {}
        shared, alone = shared_contexts(requests, self.inference.prefill_chunk)
        for index, answer in self._all(requests, shared, alone):
            found[index] = answer
            self.progress(1)
        return [found[index] for index in range(len(requests))]

    def _all(self, requests, shared, alone) -> Iterator[tuple[int, Answer]]:
        for groups in _by_size(shared, lambda group: requests[group[0]].num_shared).values():
            size = self._rows(len(groups), requests[groups[0][0]].num_inputs)
            for first in range(0, len(groups), size):
                yield from self._kept(requests, groups[first : first + size], size)
        for row_length, indices in _by_size(alone, lambda i: requests[i].num_inputs).items():
            yield from self._packed(requests, indices, row_length)

    def _rows(self, count: int, length: int) -> int:
        size = windows.rows_a_batch(count, length, self.batch_size, 1)
        return min(size, count)

    # --- Rows ----------------------------------------------------------------------------------

    def _packed(self, requests, indices, row_length) -> Iterator[tuple[int, Answer]]:
        """The answers of requests of about one length."""
        is_long = row_length > LONG
        packed = self._windows([requests[index] for index in indices], row_length, not is_long)
        forward: Any = model_lib.score
        if is_long:
            forward = through_cache(model_lib.score_hidden, self.inference)
        score = jitted(forward, self.model.config, self.model.params, True)
        scorer = BatchScorer(score, jax.device_put, 1, lambda: False, lambda done, total: None)
        documents = [requests[index].ids for index in indices]
        batches = windows.batches(packed, documents, None, self.pad_id)
        for scores, pieces in scorer.score_batches(batches, packed.num_batches):
            for window, row, column in pieces:
                columns = slice(column + window.first, column + window.length)
                yield (
                    indices[window.document],
                    _answer(scores.nll[row, columns], scores.is_top[row, columns]),
                )

    def _windows(self, requests, row_length: int, share_rows: bool) -> PackedWindows:
        """Each request as one window, whose last outputs are scored; BOS is among its ids."""
        made, offset = [], 0
        for index, request in enumerate(requests):
            about = (request.num_inputs, request.num_shared, offset, request.num_scored)
            made.append(Window(index, 0, *about))
            offset += request.num_scored
        if share_rows:
            rows = windows.best_fit(made, row_length)
        else:
            rows = tuple((window,) for window in made)
        size = self._rows(len(rows), row_length)
        return PackedWindows("never", offset, row_length, size, rows)

    # --- Kept cache ----------------------------------------------------------------------------

    def _kept(self, requests, groups, num_rows: int) -> Iterator[tuple[int, Answer]]:
        """The answers of groups that share a context each: one row a group, one round an answer.

        num_rows: of the batch, the last of which may stand for no group.
        """
        session = session_of(self.model, self.inference)
        contexts = [requests[group[0]].ids[: requests[group[0]].num_shared] for group in groups]
        contexts += contexts[-1:] * (num_rows - len(groups))
        longest = _power(max(requests[i].num_inputs for group in groups for i in group))
        cache = session.empty(num_rows, longest)
        tokens, lengths = self._padded(contexts, max(map(len, contexts)))
        cache, _ = session.prefill(cache, tokens, lengths)
        for turn in range(max(map(len, groups))):
            there = [(row, group[turn]) for row, group in enumerate(groups) if turn < len(group)]
            rows = [np.zeros(0, np.int32)] * num_rows
            for row, index in there:
                rows[row] = requests[index].ids[requests[index].num_shared :]
            scores = jax.device_get(self._tails(session, cache, rows))
            for row, index in there:
                num = requests[index].num_scored
                yield index, _answer(scores.nll[row, :num], scores.is_top[row, :num])

    def _tails(self, session: Session, cache: Cache, rows: list[np.ndarray]) -> TokenScores:
        """Scores [b, t] of each row's tokens behind the first, read behind the cache."""
        width = max(SHORTEST_TAIL, _power(max(map(len, rows)) - 1))
        tokens, lengths = self._padded(rows, width + 1)
        num_new = np.maximum(lengths - 1, 0)
        mask = np.arange(width)[None, :] < num_new[:, None]
        inputs = tokens[:, :-1], tokens[:, 1:], mask, num_new
        slots = session.slot_arrays(cache.form)
        return _score_behind(session.config, session.params, cache, *inputs, slots)

    def _padded(self, rows: list[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
        """int32 [b, width] of rows padded on the right, and their lengths int32 [b]."""
        tokens = np.full((len(rows), width), self.pad_id, np.int32)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = row
        return tokens, np.array([len(row) for row in rows], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _score_behind(
    config: ModelConfig, params, cache: Cache, tokens, targets, mask, num_new, slots
) -> TokenScores:
    """The cache is only read, so that the next continuation finds it as it is."""
    x, _ = model_lib.extend(config, params, tokens, num_new, cache, slots)
    return model_lib.score_hidden(config, params, x, targets, mask, True)


def shared_contexts(
    requests: Sequence[Request], most_tail: int
) -> tuple[list[list[int]], list[int]]:
    """Which requests are read behind one context, and which alone: groups of indices, and indices.

    most_tail: tokens of a continuation that are read behind a cache at once.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    alone = []
    for index, request in enumerate(requests):
        if request.num_shared >= SHORTEST_SHARED and request.num_scored <= most_tail:
            groups[request.ids[: request.num_shared].tobytes()].append(index)
        else:
            alone.append(index)
    alone += [index for group in groups.values() if len(group) == 1 for index in group]
    return [group for group in groups.values() if len(group) > 1], sorted(alone)


def _by_size(items: Sequence[Any], length: Callable[[Any], int]) -> dict[int, list[Any]]:
    """The items by the power of two that holds their length, the longest first."""
    found: dict[int, list[Any]] = defaultdict(list)
    for item in sorted(items, key=length, reverse=True):
        found[max(SHORTEST_ROW, _power(length(item)))].append(item)
    return found


def _power(number: int) -> int:
    """The smallest power of two that is at least a number.

    >>> [_power(n) for n in (0, 1, 2, 3, 128, 129)]
    [1, 1, 2, 4, 128, 256]
    """
    return 1 << max(0, number - 1).bit_length()


def _answer(nll: np.ndarray, is_top: np.ndarray) -> Answer:
    return Answer(-float(np.sum(nll, dtype=np.float64)), bool(np.all(is_top)))

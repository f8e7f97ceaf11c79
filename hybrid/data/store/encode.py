"""Documents to tokens on all cores, in their order.

Processes are spawned, not forked (jax's threads would not survive that), each with the tokenizers
library's own threads for a batch. A document's tokens are `[BOS] tokens [EOS]`; where not all of
its text is predicted, its parts are encoded one by one, so that no token spans an edge: what
follows a prompt is encoded as a model would write it. A BOS or EOS of a parsed text's own stands
in the place of ours.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.sources import Document
from hybrid.data.sources.form import Spans
from hybrid.data.tokenizers import Tokenizer

CHUNK_BYTES = 1 << 20  # of text that is encoded at once
_AHEAD = 2  # chunks that wait for each process


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One document's tokens.

    Attributes:
      ids: int32 [n], BOS and EOS included.
      num_bytes: of text of each token, uint16 [n]; None where that was not asked or is unknown.
      predicted: which are predicted, bool [n]; None: all but BOS.
    """

    ids: np.ndarray
    num_bytes: np.ndarray | None = None
    predicted: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """How a document becomes tokens.

    Attributes:
      bos_id, eos_id: what stands around its text, or None.
    """

    tokenizer: Tokenizer
    bos_id: int | None
    eos_id: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the tokens of a text."""
        return {
            "fingerprint": self.tokenizer.fingerprint,
            "version": getattr(self.tokenizer, "version", ""),
            "vocab_size": self.tokenizer.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }

    def batch(self, documents: Sequence[Document]) -> list[Tokens]:
        """The tokens of each document.  Raises: ConfigError for text that is not UTF-8."""
        is_plain = [d.predicted is None and not d.parsed for d in documents]
        whole = [d.text for d, plain in zip(documents, is_plain, strict=True) if plain]
        try:
            encoded = iter(self.tokenizer.encode_batch(whole))
        except UnicodeDecodeError:
            for document in documents:  # which one was it?
                with _named(document):
                    document.text.decode()
            raise
        return [
            Tokens(self._around(next(encoded), self.bos_id, self.eos_id))
            if plain
            else self.one(document, with_bytes=False)
            for document, plain in zip(documents, is_plain, strict=True)
        ]

    def one(self, document: Document, with_bytes: bool = True) -> Tokens:
        """The tokens of one document, by default with the bytes of text that each stands for.

        Raises: ConfigError for text that is not UTF-8.
        """
        predicted, size = document.predicted, len(document.text)
        edges = sorted({0, size, *itertools.chain(*(predicted or ()))})
        spans = [(a, b) for a, b in itertools.pairwise(edges) if a < b] or [(0, 0)]
        parts = [self._part(document, span, with_bytes) for span in spans]
        ids = np.concatenate([ids for ids, _ in parts])
        own = self._own_text(ids) if document.parsed else slice(None)
        mask = None
        if predicted is not None:
            ends_predicted = any(stop == size for _, stop in predicted)
            lengths = [len(ids) for ids, _ in parts]
            of_text = np.repeat([_covers(predicted, span) for span in spans], lengths)
            mask = self._around(of_text[own], 0, ends_predicted).astype(bool)
        return Tokens(
            self._around(ids[own], self.bos_id, self.eos_id),
            self._counts([counts for _, counts in parts], own) if with_bytes else None,
            mask,
        )

    def _part(
        self, document: Document, span: tuple[int, int], with_bytes: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids of a stretch of text, and the bytes of each where they are asked for and known."""
        text, tokenizer = document.text[slice(*span)], self.tokenizer
        with _named(document):
            if with_bytes:
                ids, counts = tokenizer.encode_with_bytes(text, document.parsed)
                return ids, counts if len(ids) else np.zeros(0, np.int64)
            return (tokenizer.encode_parsed if document.parsed else tokenizer.encode)(text), None

    def _own_text(self, ids: np.ndarray) -> slice:
        """The text without a BOS that it spells itself and an EOS where ours will stand."""
        bos_id = self.tokenizer.bos_id  # also where the policy is to have none
        start = int(bos_id is not None and len(ids) > 0 and ids[0] == bos_id)
        ends = self.eos_id is not None and len(ids) > start and ids[-1] == self.eos_id
        return slice(start, len(ids) - ends)

    def _around(self, values: np.ndarray, of_bos: int | None, of_eos: int | None) -> np.ndarray:
        before = np.array([] if self.bos_id is None else [of_bos], np.int32)
        after = np.array([] if self.eos_id is None else [of_eos], np.int32)
        return np.concatenate([before, values, after], dtype=np.int32, casting="unsafe")

    def _counts(self, counts: Sequence[np.ndarray | None], own: slice) -> np.ndarray | None:
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        joined = self._around(np.concatenate(known)[own], 0, 0)
        return joined.astype(np.uint16) if joined.max(initial=0) < 1 << 16 else None


def _covers(predicted: Spans, part: tuple[int, int]) -> bool:
    return any(a <= part[0] and part[1] <= b for a, b in predicted)


@contextlib.contextmanager
def _named(document: Document) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise undecodable(document, error) from None


def undecodable(document: Document, error: UnicodeDecodeError) -> ConfigError:
    """The error for a text that is not the UTF-8 its tokenizer needs."""
    problem = f"{document.name} is not UTF-8 (byte {document.start + error.start})"
    accepted = "UTF-8 text, or data.tokenizer=byte, which takes any bytes"
    return ConfigError("data.paths", problem, accepted=accepted)


# --- On all cores --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """A document to encode.

    Attributes:
      with_bytes: whether the bytes of text of each token are asked for.
      about: what the asker wants to have beside the answer.
    """

    document: Document
    with_bytes: bool
    about: Any = None


def encoded(
    documents: Iterable[Asked], encoder: Encoder, num_workers: int = 0
) -> Iterator[tuple[Asked, Tokens]]:
    """Every document with its tokens, in their order, by `num_workers` processes (0: this one).

    Raises: ConfigError for text that is not UTF-8; whatever iterating `documents` raises.
    """
    chunks = _chunks(documents)
    if not num_workers:
        for chunk in chunks:
            yield from zip(chunk, _encode(encoder, _texts(chunk)), strict=True)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, context, _start_worker, (encoder, max(1, num_cores() // num_workers))
    )
    waiting: collections.deque = collections.deque()
    try:
        for chunk in chunks:
            with _nothing_to_import():
                waiting.append((chunk, pool.submit(_encode_here, _texts(chunk))))
            if len(waiting) > _AHEAD * num_workers:
                chunk, future = waiting.popleft()
                yield from zip(chunk, future.result(), strict=True)
        for chunk, future in waiting:
            yield from zip(chunk, future.result(), strict=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _chunks(documents: Iterable[Asked]) -> Iterator[list[Asked]]:
    """About a megabyte of text each."""
    chunk: list[Asked] = []
    size = 0
    for asked in documents:
        chunk.append(asked)
        size += len(asked.document.text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _texts(chunk: Sequence[Asked]) -> list[tuple[Document, bool]]:
    """What an encoder needs of a chunk, and nothing that costs to hand over."""
    return [(asked.document, asked.with_bytes) for asked in chunk]


def _encode(encoder: Encoder, texts: Sequence[tuple[Document, bool]]) -> list[Tokens]:
    plain = iter(encoder.batch([document for document, with_bytes in texts if not with_bytes]))
    return [encoder.one(document) if with_bytes else next(plain) for document, with_bytes in texts]


@contextlib.contextmanager
def _nothing_to_import() -> Iterator[None]:
    """A process that is spawned within does not run the caller's script again.

    It needs nothing of it, and a script without `if __name__ == "__main__"` would start over.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# --- A process of its own ------------------------------------------------------------------------

_encoder: Encoder | None = None  # of a worker


def _start_worker(encoder: Encoder, num_threads: int) -> None:
    global _encoder
    _encoder = encoder
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)  # before the library makes its threads
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells nobody; without this its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _encode_here(texts: Sequence[tuple[Document, bool]]) -> list[Tokens]:
    assert _encoder is not None
    return _encode(_encoder, texts)

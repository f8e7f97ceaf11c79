"""From the `data.` section to rows for training and what is held out for evaluation.

`open_rows` gives an endless run of rows. Row r is a pure function of (fingerprint, seed, r): a
permutation for each epoch (`order.py`) of a source's rows, which are cut from a store of tokens
(`store/`, `packing.py`) or made by a task (`tasks/`). So the state of the data in a checkpoint is
one integer, the next row, and any number of processes cuts the same global batches from it. Grain
maps, batches and reads ahead in threads, but owns no order.

`open_held_out` gives whole documents, which the evaluation cuts into windows itself, or a task's
examples.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from hybrid.config import ConfigError
from hybrid.data import cache, mixed, order, sources, tokenizers
from hybrid.data.batch import stacked
from hybrid.data.cache import StoredText
from hybrid.data.config import DataConfig
from hybrid.data.eval_documents import EvalDocuments, StoredArrays, StoredNames
from hybrid.data.mixed import MixedDocuments, MixedRows
from hybrid.data.packing import Layout, Row
from hybrid.data.store import prepared
from hybrid.data.store.build import check_ids
from hybrid.data.store.encode import Encoder
from hybrid.data.store.rows import StoreRows
from hybrid.data.tasks import Examples

_READ_THREADS, _READ_AHEAD = 2, 8  # batches ahead of the consumer
_ENDLESS = 1 << 40  # batches
_ROWS = 1  # changes with what rows a text gives


@runtime_checkable  # for the tests, which check types
class RowSource(Protocol):
    """The rows of one epoch, unshuffled."""

    num_rows: int

    def row(self, index: int) -> Row:
        """Row `index` below num_rows, by the fields of `Batch`, each [context_length]."""

    def names(self, index: int) -> list[str]:
        """Where the documents of row `index` came from, in its order."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """An endless, shuffled run of rows.

    Attributes:
      source: the rows of one epoch, unshuffled; or those of a mixture, in an order of their own.
      seed: of the shuffles.
      fingerprint: of everything that decides the rows of an epoch: text, tokenizer, BOS policy,
        context length and packing, or a task's keys.
      description: one line about the source, for a log.
      corpus: of text, the fingerprint of all of `data.paths`.
    """

    source: RowSource | Examples | MixedRows
    seed: int
    fingerprint: str
    description: str
    corpus: str | None = None

    @property
    def num_rows(self) -> int:
        """Rows an epoch."""
        return self.source.num_rows

    @property
    def end(self) -> int | None:
        """Rows of the whole run, where the sources of a mixture are used up; None: endless."""
        return self.source.mixture.num_rows if isinstance(self.source, MixedRows) else None

    @property
    def identity(self) -> dict[str, Any]:
        """The fingerprints, as the record of a run keeps them; of a mixture `by_source` too."""
        own = {"data_fingerprint": self.fingerprint, "corpus_fingerprint": self.corpus}
        if not isinstance(self.source, MixedRows):
            return own
        return {**own, "by_source": {name: r.identity for name, r in self.source.runs.items()}}

    def row(self, index: int) -> Row:
        """Row `index` >= 0 of the run, over epochs; fields of `Batch`, each [context_length]."""
        return self.source.row(self._place(index))

    def names(self, index: int) -> list[str]:
        """Where the documents of row `index` came from, in its order; none of a task."""
        if isinstance(self.source, Examples):
            return []
        return self.source.names(self._place(index))

    def _place(self, index: int) -> int:
        """Which row of the source comes at `index`; a mixture has its own order."""
        if isinstance(self.source, MixedRows):
            return index
        return order.row_at(index, self.num_rows, self.seed)

    def batches(
        self, first_row: int, batch_size: int, own: Sequence[int] | None = None
    ) -> grain.DatasetIterator:
        """This process's part of each global batch, endlessly from `first_row`, read ahead.

        Global batch i is rows first_row + i * batch_size and on, `batch_size` of them; a process
        has those that `own` numbers within the batch, by default all.
        Returns: an iterator of `Batch` of numpy arrays [len(own), t], whose `close` ends the
          threads.
        """
        own = range(batch_size) if own is None else own
        share = len(own)

        def read(index: int) -> Row:
            batch, place = divmod(index, share)
            return self.row(first_row + batch * batch_size + own[place])

        rows = grain.MapDataset.range(share * _ENDLESS).map(read)
        batches = rows.batch(share, batch_fn=stacked)
        options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_READ_AHEAD)
        return iter(batches.to_iter_dataset(options))


def open_rows(
    config: DataConfig,
    *,
    context_length: int,
    seed: int,
    vocab_size: int,
    batch_size: int = 1,
    split: str = "train",
    progress: cache.Progress | None = None,
    before_tokenizing: Callable[[], Any] = lambda: None,
) -> Rows:
    """The rows of a split; text is tokenized into the cache where it is not there yet.

    `batch_size` is the rows of a step, by which the schedule of a mixture is counted.
    `before_tokenizing()` is called then, when nothing but the text's own content can be wrong.
    `progress(done, total)` is called with bytes of text; an exception from it stops.
    Raises: ConfigError for wrong files (those of the evaluation too), tokenizers and
      vocabularies; nothing was written then.
    """
    if config.mixture:
        open_one = functools.partial(
            open_rows,
            context_length=context_length,
            seed=seed,
            vocab_size=vocab_size,
            split=split,
            progress=progress,
            before_tokenizing=before_tokenizing,
        )
        return _open_mixture(config, open_one, split, vocab_size, batch_size)
    if config.is_task:
        examples = Examples(config.source, config.task, split, context_length, vocab_size)
        return Rows(examples, seed, examples.fingerprint, examples.description)
    encoder, bos = encoder_of(config, vocab_size)
    if bos == "window" and context_length < 2:
        problem = "must be at least 2 with data.bos=window"
        raise ConfigError("training.context_length", problem, context_length)
    text = _stored(config, split, encoder, vocab_size, progress, before_tokenizing)
    if not text.about.total("num_predicted"):
        raise ConfigError("data.paths", "the text has no token to predict", list(config.paths))
    tokenizer = encoder.tokenizer
    layout = Layout(
        context_length,
        _pad_id(tokenizer, vocab_size),
        config.packing,
        tokenizer.bos_id if bos == "window" else None,
        config.cross_document,
    )
    rows = StoreRows(text.store, text.split, layout, cache.cache_root(config.cache_dir))
    if not rows.shares.predicted:
        problem = f"is too short: no row of data.packing={config.packing} reaches what is predicted"
        raise ConfigError("training.context_length", problem, context_length)
    ids = (tokenizer.fingerprint, bos, tokenizer.bos_id, tokenizer.eos_id)
    fingerprint = _fingerprint(_ROWS, text.fingerprint, *ids, *_form(layout, text))
    description = f"{text.description}; {rows.shares.description}"
    return Rows(rows, seed, fingerprint, description, text.corpus)


def _open_mixture(
    config: DataConfig,
    open_one: Callable[[DataConfig], Rows],
    split: str,
    vocab_size: int,
    batch_size: int,
) -> Rows:
    """The rows of a mixture; what is wrong with one source shows before another is written."""
    encoder, _ = encoder_of(config, vocab_size)
    for index, part in enumerate(config.parts):
        with mixed.errors_of(index):
            if part.source == "prepared":
                prepared.opened(part, split, encoder, vocab_size)
                continue
            _check_readable(part, split, encoder)
            if part.eval_paths:
                _check_readable(part, "eval", encoder)
    runs = []
    for index, part in enumerate(config.parts):
        with mixed.errors_of(index):
            runs.append(open_one(part))
    rows = mixed.mixed_rows(config, runs, batch_size)
    corpus = mixed.joined_fingerprint([run.corpus for run in runs])
    description = mixed.described(config, [run.description for run in runs])
    return Rows(rows, runs[0].seed, rows.fingerprint, description, corpus)


def _stored(
    config: DataConfig,
    split: str,
    encoder: Encoder,
    vocab_size: int,
    progress: cache.Progress | None,
    before_tokenizing: Callable[[], Any],
) -> StoredText:
    """A split's tokens, prepared or from the cache, where those of the other split get too."""
    if config.source == "prepared":
        return prepared.opened(config, split, encoder, vocab_size)
    keys: Any = {"vocab_size": vocab_size}
    if split == "train" and config.eval_paths:
        _check_readable(config, "eval", encoder)
    text = cache.stored(
        config, split, encoder, **keys, progress=progress, before_tokenizing=before_tokenizing
    )
    if split == "train":
        cache.stored(config, "eval", encoder, **keys)
    return text


def _check_readable(config: DataConfig, split: str, encoder: Encoder) -> None:
    """What is wrong with files shows before anything is written.  Raises: ConfigError."""
    if cache.noted(config, split, encoder) is None:
        sources.documents(config, split)


def encoder_of(config: DataConfig, vocab_size: int) -> tuple[Encoder, str]:
    """How documents are tokenized, and the BOS policy.  Raises: ConfigError."""
    tokenizer = tokenizers.load(config.tokenizer)
    bos = tokenizers.resolve_bos(config.bos, tokenizer)
    encoder = Encoder(tokenizer, None if bos == "never" else tokenizer.bos_id, tokenizer.eos_id)
    check_ids(max(encoder.bos_id or 0, encoder.eos_id or 0), vocab_size)
    return encoder, bos


def _form(layout: Layout, text: StoredText) -> tuple[Any, ...]:
    """What decides the rows beside the text; as it was before there were other ways than one."""
    form = (layout.context_length, layout.cross_document)
    shards = [shard.num_tokens for shard in text.about.shards]
    is_plain = layout.packing == "stream" and layout.window_bos is None and len(shards) == 1
    return form if is_plain else (*form, layout.packing, shards)


def _pad_id(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> int:
    """Padding is never seen by text nor predicted, so an id the model lacks becomes 0."""
    return tokenizer.pad_id if tokenizer.pad_id < vocab_size else 0


def _fingerprint(*parts) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


# --- Evaluation ------------------------------------------------------------------------------


def open_held_out(
    config: DataConfig,
    *,
    vocab_size: int,
    context_length: int = 0,
    split: str = "eval",
    held_out_below: bytes | Mapping[str, bytes | None] | None = None,
    progress: cache.Progress | None = None,
) -> EvalDocuments | MixedDocuments | Examples:
    """What an evaluation scores: documents, or a task's examples at `context_length`.

    `split` is `eval` or, of documents, `all` of `data.paths`; `held_out_below` parts documents as
    those of an earlier run, of a mixture by source.  `progress(done, total)` is called with
    bytes of text; an exception from it stops.  Examples can be made at another length later.
    Raises: ConfigError for wrong files, tokenizers, lengths and vocabularies.
    """
    if config.is_task:
        return Examples(config.source, config.task, "eval", context_length, vocab_size)
    if config.mixture:
        open_one = functools.partial(
            open_held_out, vocab_size=vocab_size, split=split, progress=progress
        )
        return _held_out_mixture(config, open_one, held_out_below)
    assert not isinstance(held_out_below, Mapping), "of a mixture alone"
    encoder, bos = encoder_of(config, vocab_size)
    tokenizer = encoder.tokenizer
    text = documents = None
    if config.source == "prepared":
        text = prepared.opened(config, "eval", encoder, vocab_size)
    elif split == "eval":
        text = cache.noted(config, "eval", encoder, held_out_below)
    if text is not None:
        check_ids(text.store.manifest.largest_id, vocab_size)
        below, corpus = text.held_out_below, text.corpus
        arrays, fingerprint = _of_store(text, encoder), text.fingerprint
        description = text.description
    else:
        documents = sources.documents(config, split, held_out_below)
        below = documents.held_out_below.hex() if documents.held_out_below else None
        corpus, fingerprint = documents.corpus, documents.fingerprint
        arrays = _in_memory(documents, encoder, vocab_size, progress)
        description = documents.described(len(documents) - len(arrays["tokens"]))
    masks, context = arrays["predicted"], int(bos == "never")  # a document's first token
    if not len(arrays["tokens"]) or (masks and not any(m[context:].any() for m in masks)):
        key = "data.eval_paths" if split == "eval" and config.eval_paths else "data.paths"
        raise ConfigError(key, "the text has no token to predict")
    return EvalDocuments(
        **arrays,
        bos=bos,
        bos_id=None if bos == "never" else tokenizer.bos_id,
        pad_id=_pad_id(tokenizer, vocab_size),
        fingerprint=_fingerprint(fingerprint, tokenizer.fingerprint, bos),
        identity={
            "corpus_fingerprint": corpus or None,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "held_out_fingerprint": fingerprint,
            "held_out_below": below,
        },
        description=description,
        has_eos=tokenizer.eos_id is not None,
    )


def _held_out_mixture(
    config: DataConfig,
    open_one: Callable[..., Any],
    held_out_below: bytes | Mapping[str, bytes | None] | None,
) -> MixedDocuments:
    """What each source of a mixture holds out."""
    below = held_out_below if isinstance(held_out_below, Mapping) else {}
    by_source = {}
    for index, (source, part) in enumerate(zip(config.mixture, config.parts, strict=True)):
        with mixed.errors_of(index):
            found = open_one(part, held_out_below=below.get(source.name))
        by_source[source.name] = found
    lines = [documents.description for documents in by_source.values()]
    return MixedDocuments(by_source, mixed.described(config, lines))


def _of_store(text: StoredText, encoder: Encoder) -> dict[str, Any]:
    """The documents as `EvalDocuments` names them, read when they are asked for."""
    store, after = text.store, int(encoder.bos_id is not None)
    masked = any("predicted" in store.shard("eval", n) for n in range(len(text.about.shards)))
    return {
        "tokens": StoredArrays(store, "tokens", np.int32, after),
        "num_bytes": StoredArrays(store, "token_bytes", np.int64, after)
        if text.about.has_token_bytes
        else None,
        "names": StoredNames(store),
        "predicted": StoredArrays(store, "predicted", bool, after) if masked else None,
    }


def _in_memory(
    documents: sources.Documents,
    encoder: Encoder,
    vocab_size: int,
    progress: cache.Progress | None,
) -> dict[str, Any]:
    """The same of documents that no store holds yet."""
    found: dict[str, list] = {"tokens": [], "num_bytes": [], "names": [], "predicted": []}
    after, done = int(encoder.bos_id is not None), 0
    for document in documents:
        tokens = encoder.one(document)
        check_ids(int(tokens.ids.max(initial=0)), vocab_size)
        if len(tokens.ids) > after:
            counts, mask = tokens.num_bytes, tokens.predicted
            found["tokens"].append(tokens.ids[after:])
            found["num_bytes"].append(None if counts is None else counts[after:].astype(np.int64))
            found["names"].append(document.name)
            found["predicted"].append(None if mask is None else mask[after:])
        done += len(document.text)
        if progress is not None:
            progress(done, documents.num_bytes)
    for name in ("num_bytes", "predicted"):
        if any(array is None for array in found[name]):
            found[name] = None  # type: ignore[assignment]
    return {name: arrays if arrays is None else tuple(arrays) for name, arrays in found.items()}

"""From the `data.` section to rows for training and what is held out for evaluation.

`open_rows` gives an endless run of rows. Row r is a pure function of (fingerprint, seed, r): a
permutation for each epoch (`order.py`) of a source's rows, which are cut from a cached stream of
text (`packing.py`) or made by a task (`tasks/`). So the state of the data in a checkpoint is one
integer, the next row, and any number of processes cuts the same global batches from it. Grain
maps, batches and reads ahead in threads, but owns no order.

`open_held_out` gives whole documents, which the evaluation cuts into windows itself, or a task's
examples.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from hybrid.config import ConfigError
from hybrid.data import cache, order, packing, sources, tokenizers
from hybrid.data.batch import stacked
from hybrid.data.config import DataConfig
from hybrid.data.tasks import Examples

_READ_THREADS, _READ_AHEAD = 2, 8  # batches ahead of the consumer
_ENDLESS = 1 << 40  # batches


@dataclasses.dataclass(frozen=True)
class Rows:
    """An endless, shuffled run of rows.

    Attributes:
      source: the rows of one epoch, unshuffled.
      seed: of the shuffles.
      fingerprint: of everything that decides the rows of an epoch: text, tokenizer, BOS policy,
        context length and packing, or a task's keys.
      description: one line about the source, for a log.
      corpus: of text, the fingerprint of all of `data.paths`.
    """

    source: packing.Packing | Examples
    seed: int
    fingerprint: str
    description: str
    corpus: str | None = None

    @property
    def num_rows(self) -> int:
        """Rows an epoch."""
        return self.source.num_rows

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Row `index` >= 0 of the run, over epochs; fields of `Batch`, each [context_length]."""
        return self.source.row(order.row_at(index, self.num_rows, self.seed))

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

        def read(index: int) -> dict[str, np.ndarray]:
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
    split: str = "train",
    progress: cache.Progress | None = None,
    before_tokenizing: Callable[[], Any] = lambda: None,
) -> Rows:
    """The rows of a split; text is tokenized into the cache where it is not there yet.

    `before_tokenizing()` is called then, when nothing but the text's own content can be wrong.
    `progress(done, total)` is called with bytes of text; an exception from it stops.
    Raises: ConfigError for wrong files (those of the evaluation too), tokenizers and
      vocabularies; nothing was written then.
    """
    if config.is_task:
        examples = Examples(config.source, config.task, split, context_length, vocab_size)
        return Rows(examples, seed, examples.fingerprint, examples.description)
    tokenizer, bos = _tokenizer(config, vocab_size)
    if bos == "window" and context_length < 2:
        problem = "must be at least 2 with data.bos=window"
        raise ConfigError("training.context_length", problem, context_length)
    documents = sources.documents(config, split)
    if split == "train" and config.eval_paths:
        sources.documents(config, "eval")  # what is wrong there shows before anything is written
    stream = cache.token_stream(
        documents,
        tokenizer,
        with_bos=bos != "never",
        vocab_size=vocab_size,
        cache_dir=config.cache_dir,
        progress=progress,
        before_tokenizing=before_tokenizing,
    )
    window_bos = tokenizer.bos_id if bos == "window" else None
    pad_id = _pad_id(tokenizer, vocab_size)
    packed = packing.Packing(stream, context_length, pad_id, window_bos, config.cross_document)
    if not packed.num_predicted:
        raise ConfigError("data.paths", "the text has no token to predict", list(config.paths))
    text = (documents.fingerprint, tokenizer.fingerprint, bos, tokenizer.bos_id, tokenizer.eos_id)
    fingerprint = _fingerprint(cache.FORMAT, *text, context_length, config.cross_document)
    description = _described(documents, stream.num_empty)
    return Rows(packed, seed, fingerprint, description, documents.corpus)


def _described(documents: sources.Documents, num_empty: int) -> str:
    skipped = f", {num_empty:,} without a token skipped" if num_empty else ""
    return documents.description + skipped


def _tokenizer(config: DataConfig, vocab_size: int) -> tuple[tokenizers.Tokenizer, str]:
    tokenizer = tokenizers.load(config.tokenizer)
    bos = tokenizers.resolve_bos(config.bos, tokenizer)
    used = (tokenizer.eos_id, None if bos == "never" else tokenizer.bos_id)
    cache.check_ids(max((i for i in used if i is not None), default=0), vocab_size)
    return tokenizer, bos


def _pad_id(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> int:
    """Padding is never seen by text nor predicted, so an id the model lacks becomes 0."""
    return tokenizer.pad_id if tokenizer.pad_id < vocab_size else 0


def _fingerprint(*parts) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


# --- Evaluation ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EvalDocuments:
    """The documents of an evaluation in the order of the source, tokenized; each has a token.

    Attributes:
      tokens: for each document int32 [n], its text's tokens and EOS where the tokenizer has
        one; no BOS.
      num_bytes: for each document int64 [n], bytes of text of each token (EOS: 0); None where
        it is unknown for one of them.
      names: where each document came from.
      bos: `document`, `window` or `never`: where the evaluation puts `bos_id`.
      bos_id: None where `bos` is never.
      pad_id: a valid id to fill rows with.
      fingerprint: of text, tokenizer and BOS policy.
      description: one line about the text, for a log.
      identity: fingerprints of what an evaluation rests on, as the record of a run keeps them.
      has_eos: whether the last token of each document is EOS.
    """

    tokens: tuple[np.ndarray, ...]
    num_bytes: tuple[np.ndarray, ...] | None
    names: tuple[str, ...]
    bos: str
    bos_id: int | None
    pad_id: int
    fingerprint: str
    description: str
    identity: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    has_eos: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def without_eos(self) -> "EvalDocuments":
        """The same documents, the EOS of each left out."""
        if not self.has_eos:
            return self
        counts = self.num_bytes
        return dataclasses.replace(
            self,
            tokens=tuple(tokens[:-1] for tokens in self.tokens),
            num_bytes=None if counts is None else tuple(each[:-1] for each in counts),
            has_eos=False,
        )


def open_held_out(
    config: DataConfig,
    *,
    vocab_size: int,
    context_length: int = 0,
    split: str = "eval",
    held_out_below: bytes | None = None,
    progress: cache.Progress | None = None,
) -> EvalDocuments | Examples:
    """What an evaluation scores: documents, or a task's examples at `context_length`.

    `split` is `eval` or, of documents, `all` of `data.paths`; `held_out_below` parts documents as
    those of an earlier run.  `progress(done, total)` is called with bytes of text; an exception
    from it stops.  Examples can be made at another length later.
    Raises: ConfigError for wrong files, tokenizers, lengths and vocabularies.
    """
    if config.is_task:
        return Examples(config.source, config.task, "eval", context_length, vocab_size)
    tokenizer, bos = _tokenizer(config, vocab_size)
    documents = sources.documents(config, split, held_out_below)
    tokens, num_bytes, names, done = [], [], [], 0
    for document in documents:
        ids, counts = _with_eos(document, tokenizer, vocab_size)
        if ids.size:
            tokens.append(ids)
            num_bytes.append(counts)
            names.append(document.name)
        done += len(document.text)
        if progress is not None:
            progress(done, documents.num_bytes)
    if not tokens:
        key = "data.eval_paths" if split == "eval" and config.eval_paths else "data.paths"
        raise ConfigError(key, "the text has no token to predict (all of it is blank)")
    known = [counts for counts in num_bytes if counts is not None]
    below = documents.held_out_below
    return EvalDocuments(
        tokens=tuple(tokens),
        num_bytes=tuple(known) if len(known) == len(tokens) else None,
        names=tuple(names),
        bos=bos,
        bos_id=None if bos == "never" else tokenizer.bos_id,
        pad_id=_pad_id(tokenizer, vocab_size),
        fingerprint=_fingerprint(documents.fingerprint, tokenizer.fingerprint, bos),
        identity={
            "corpus_fingerprint": documents.corpus or None,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "held_out_fingerprint": documents.fingerprint,
            "held_out_below": below.hex() if below else None,
        },
        description=_described(documents, len(documents) - len(tokens)),
        has_eos=tokenizer.eos_id is not None,
    )


def _with_eos(
    document: sources.Document, tokenizer: tokenizers.Tokenizer, vocab_size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        ids, num_bytes = tokenizer.encode_with_bytes(document.text)
    except UnicodeDecodeError as error:
        raise cache.undecodable(document, error) from None
    if not ids.size:
        num_bytes = np.zeros(0, np.int64)  # no token stands for the blanks
    cache.check_ids(int(ids.max(initial=0)), vocab_size)
    if tokenizer.eos_id is not None:
        ids = np.append(ids, np.int32(tokenizer.eos_id))
        num_bytes = None if num_bytes is None else np.append(num_bytes, 0)
    return ids, num_bytes

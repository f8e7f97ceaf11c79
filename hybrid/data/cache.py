"""Small corpora: stores in the cache folder, made once for a text and a tokenizer.

A split is a store of its own. Documents to train on stand in the order of their hashes, which mixes
them and is the same on every machine; those held out in the order of the source. A store appears
by renaming a finished folder, so it is whole or absent; of two writers the first one wins and the
other takes what it finds. One that does not match its checksums is made anew. Its name is a
hash of everything it depends on.

Beside them stand notes: which stores belong to a list of files, each with the size and time of
change that it had then. So a later start reads no text; it does again where a file is younger.
Read next: `packing.py`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hybrid.config import ConfigError, opened_path
from hybrid.data import sources
from hybrid.data.config import DataConfig
from hybrid.data.sources import Documents
from hybrid.data.store import manifest
from hybrid.data.store.build import Entry, Writer, check_ids
from hybrid.data.store.encode import CHUNK_BYTES, Asked, Encoder, Tokens, encoded, num_cores
from hybrid.data.store.manifest import Manifest, Split, Store
from hybrid.process.files import check_writable, shared_folder, write_json

FORMAT = 3
_FRESH_SECONDS = 2.0  # a file may change again within its own time of change
_VERIFIED_BYTES = 1 << 30
_ALONE_BYTES = 4 << 20  # text that starting processes for would cost more than it saves
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class StoredText:
    """A split of a text in a store, and what is known of the text.

    Attributes:
      split: `train` or `eval`.
      fingerprint: of the split's texts.  corpus: of those of both splits, empty where unknown.
      held_out_below: of a split by hash, the hash that parts it, in hex.
      description: one line for a log.
    """

    store: Store
    split: str
    fingerprint: str
    corpus: str
    held_out_below: str | None
    description: str

    @property
    def about(self) -> Split:
        return self.store.manifest.split(self.split)


def noted(
    config: DataConfig, split: str, encoder: Encoder, held_out_below: bytes | None = None
) -> StoredText | None:
    """The split as an earlier start has left it, if no file has changed since; reads no text."""
    with contextlib.suppress(ConfigError, OSError, ValueError, KeyError, TypeError):
        root = cache_root(config.cache_dir)
        note = _note(root, config, split, encoder, held_out_below)
        held = json.loads(note.read_bytes())
        if any(change >= held["noted"] - _FRESH_SECONDS for _, _, change in _files(config, split)):
            return None
        store = _whole(root / held.pop("store"))
        held.pop("noted")
        part = "eval" if split == "eval" else "train"
        return None if store is None else StoredText(store, part, **held)
    return None


def stored(
    config: DataConfig,
    split: str,
    encoder: Encoder,
    *,
    vocab_size: int,
    progress: Progress | None = None,
    before_tokenizing: Callable[[], Any] = lambda: None,
) -> StoredText:
    """The split from the cache, or tokenized into it.

    `before_tokenizing()` is called where it has to be tokenized.
    `progress(done, total)` is called with bytes of text about every megabyte; whatever it
    raises, and any interrupt, leaves no trace on disk.
    Raises: ConfigError for wrong files, ids beyond `vocab_size`, text the tokenizer can't read, or
      a cache folder that can't be written.
    """
    found = noted(config, split, encoder)
    if found is not None:
        check_ids(found.store.manifest.largest_id, vocab_size)
        return found
    began, part = time.time(), "eval" if split == "eval" else "train"
    documents = sources.documents(config, split)
    store = token_store(
        documents,
        encoder,
        part,
        vocab_size=vocab_size,
        cache_dir=config.cache_dir,
        progress=progress,
        before_tokenizing=before_tokenizing,
    )
    skipped = store.manifest.split(part).num_without_token
    below = documents.held_out_below
    about: dict[str, Any] = {
        "fingerprint": documents.fingerprint,
        "corpus": documents.corpus,
        "held_out_below": below.hex() if below else None,
        "description": documents.described(skipped),
    }
    note = {**about, "store": store.folder.name, "noted": began}
    with contextlib.suppress(OSError):  # a later start reads the text again
        root = cache_root(config.cache_dir)
        write_json(_note(root, config, split, encoder, None), note)
    return StoredText(store, part, **about)


def cache_root(cache_dir: str = "") -> pathlib.Path:
    """The folder of all caches.  Raises: ConfigError where there is no home to put them in."""
    base = cache_dir or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/hybrid"
    return pathlib.Path(opened_path("data.cache_dir", base)).absolute()


# --- Stores --------------------------------------------------------------------------------------


def token_store(
    documents: Documents,
    encoder: Encoder,
    split: str,
    *,
    vocab_size: int,
    cache_dir: str = "",
    progress: Progress | None = None,
    before_tokenizing: Callable[[], Any] = lambda: None,
) -> Store:
    """The store of `documents` as its `train` or `eval`, from the cache or made; see `stored`."""
    root = cache_root(cache_dir)
    order = documents.names, documents.listing.digest.tobytes()
    parts = (FORMAT, split, documents.fingerprint, order, sorted(encoder.identity.items()))
    folder = root / _hash(parts)
    store = _whole(folder)
    if store is not None:
        check_ids(store.manifest.largest_id, vocab_size)
        return store
    check_writable(root, "data.cache_dir")
    before_tokenizing()
    try:
        with shared_folder(folder, lambda path: _whole(path) is not None) as made:
            entries = _entries(documents, encoder, progress, split == "eval")
            if split == "train":
                entries = _by_hash(entries, documents, made.with_name("spool"))
            writer = Writer(made, encoder, vocab_size)
            for entry in entries:
                if writer.add(split, entry):
                    writer.end_round()
            writer.end_round()
            counts = writer.counts
            if not any(about.num_predicted for about in counts.shards[split]):
                raise ConfigError("data.paths", "the text has no token to predict")
            parts_of = {split: counts.split(split, documents.origin, documents.fingerprint)}
            about = Manifest(
                tokenizer=encoder.identity,
                largest_id=counts.largest_id,
                corpus="",
                held_out_below=None,
                source={},
                train=parts_of.get("train", Split()),
                eval=parts_of.get("eval", Split()),
            )
            manifest.write(made, about)
        store = _whole(folder)
    except OSError as error:
        problem = f"can't be written ({error.strerror})"
        raise ConfigError("data.cache_dir", problem, str(root), "a writable folder") from error
    if store is None:
        raise ConfigError("data.cache_dir", "does not hold what was written", str(root))
    return store


def _entries(
    documents: Documents, encoder: Encoder, progress: Progress | None, with_bytes: bool
) -> Iterator[Entry]:
    """The documents, tokenized, in their order."""
    is_alone = documents.num_bytes < _ALONE_BYTES or encoder.tokenizer.is_fast
    listing, done, told = documents.listing, 0, 0
    digests = listing.digest.astype(">u8")
    asked = (Asked(document, with_bytes) for document in documents)
    found = encoded(asked, encoder, 0 if is_alone else num_cores())
    for number, (asked_for, tokens) in enumerate(found):
        document = asked_for.document
        place = int(listing.place[number])
        file = documents.files.names[listing.file[number]]
        yield Entry(file, place, len(document.text), digests[number].tobytes(), tokens)
        done += len(document.text)
        if progress is not None and (done - told >= CHUNK_BYTES or done == documents.num_bytes):
            progress(done, documents.num_bytes)
            told = done


def _by_hash(
    entries: Iterator[Entry], documents: Documents, spool: pathlib.Path
) -> Iterator[Entry]:
    """The entries in the order of their hashes, by way of a file on disk.

    Tokens that are not predicted stand in it as -1 - id.
    """
    about: list[tuple[str, int, int, bytes]] = []
    ends = array("q")
    with open(spool, "wb") as written:
        for entry in entries:
            ids = entry.tokens.ids
            if entry.tokens.predicted is not None:
                ids = np.where(entry.tokens.predicted, ids, -1 - ids)
            written.write(ids.astype(np.int32).tobytes())
            ends.append(written.tell() // 4)
            about.append((entry.file, entry.place, entry.num_bytes, entry.digest))
    held = np.memmap(spool, np.int32, "r") if ends and ends[-1] else np.zeros(0, np.int32)
    for number in documents.by_hash.tolist():
        kept = held[ends[number - 1] if number else 0 : ends[number]]
        is_whole = kept.min(initial=0) >= 0
        ids = np.array(kept) if is_whole else np.where(kept < 0, -1 - kept, kept)
        file, place, num_bytes, digest = about[number]
        tokens = Tokens(ids, predicted=None if is_whole else kept >= 0)
        yield Entry(file, place, num_bytes, digest, tokens)
    del held
    spool.unlink()


def _whole(folder: pathlib.Path) -> Store | None:
    """The store in `folder`, or None where there is none or it is damaged."""
    try:
        store = manifest.read(folder, "data.cache_dir")
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size <= _VERIFIED_BYTES:  # larger ones are checked block by block as they are read
            store.verify()
    except (ConfigError, OSError):
        return None
    return store


# --- Notes ---------------------------------------------------------------------------------------


def _note(
    root: pathlib.Path,
    config: DataConfig,
    split: str,
    encoder: Encoder,
    held_out_below: bytes | None,
) -> pathlib.Path:
    """Where the note on a split of these very files is."""
    parts = (
        FORMAT,
        split,
        sorted(encoder.identity.items()),
        config.source,
        sources.form_of(config),
        bool(config.eval_paths),  # or parted by hash
        config.eval_fraction,
        held_out_below,
        _files(config, split),
    )
    return root / f"{_hash(parts)}.json"


def _files(config: DataConfig, split: str) -> list[tuple[str, int, float]]:
    """Every file that decides a split: its path, its size, and when it last changed."""
    named = split if config.eval_paths else "train"
    found, _, _ = sources.files_of(config, named)
    about = ((path, os.stat(path)) for path in found.paths)
    return [(path, stat.st_size, max(stat.st_mtime, stat.st_ctime)) for path, stat in about]


def _hash(parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

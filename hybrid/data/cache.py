"""All documents as one stream of tokens on disk, made once for a text and a tokenizer.

The stream is `[BOS] tokens [EOS]` of every document in the order of their hashes. That order
mixes the documents and is the same on every machine. A cache is a folder of

    tokens.bin   the stream, uint16 or uint32, little-endian, mapped and not read
    starts.bin   where each document starts in it, int64
    meta.json    format, sizes and checksums

It appears by renaming a finished folder, so it is whole or absent; of two writers the first
one wins and the other takes what it finds. One that does not match its checksums is made anew.
Its name is a hash of everything it depends on. Read next: `packing.py`.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hybrid.config import ConfigError, opened_path
from hybrid.data.sources import Document, Documents
from hybrid.data.tokenizers import Tokenizer
from hybrid.process.files import check_writable, write_json, write_whole

FORMAT = 1
_CHUNK_BYTES = 1 << 20  # of text, between two calls of `progress`
_STALE_SECONDS = 24 * 3600
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """Every document's tokens, one after another.

    Attributes:
      tokens: unsigned integers [num_tokens], mapped from disk.
      starts: int64 [num_documents], where each document begins.
      num_empty: how many documents gave no token, not even BOS or EOS; they have no start.
    """

    tokens: np.ndarray
    starts: np.ndarray
    num_empty: int = 0


def token_stream(
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    with_bos: bool,
    vocab_size: int,
    cache_dir: str = "",
    progress: Progress | None = None,
    before_tokenizing: Callable[[], Any] = lambda: None,
) -> TokenStream:
    """The stream of `documents`, from the cache or tokenized into it.

    `before_tokenizing()` is called where it has to be tokenized.
    `progress(done, total)` is called with bytes of text about every megabyte; whatever it
    raises, and any interrupt, leaves no trace on disk.
    Raises: ConfigError for ids beyond `vocab_size`, text the tokenizer can't read, or a
      cache folder that can't be written.
    """
    bos = [tokenizer.bos_id] if with_bos else []
    eos = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
    root = cache_root(cache_dir)
    version = getattr(tokenizer, "version", "")
    parts = [FORMAT, documents.fingerprint, tokenizer.fingerprint, version, bos, eos]
    folder = root / hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
    stream = _load(folder, vocab_size)
    if stream is not None:
        return stream
    check_writable(root, "data.cache_dir")
    before_tokenizing()
    pieces = _pieces(documents.by_hash, tokenizer, bos, eos, progress)
    try:
        with _temporary_folder(root) as temporary:
            _write(temporary / "cache", pieces, tokenizer.vocab_size, vocab_size)
            _publish(temporary / "cache", folder)
        stream = _load(folder, vocab_size)
    except OSError as error:
        problem = f"can't be written ({error.strerror})"
        raise ConfigError("data.cache_dir", problem, str(root), "a writable folder") from error
    if stream is None:
        raise ConfigError("data.cache_dir", "does not hold what was written", str(root))
    return stream


def cache_root(cache_dir: str = "") -> pathlib.Path:
    """The folder of all caches.  Raises: ConfigError where there is no home to put them in."""
    base = cache_dir or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/hybrid"
    return pathlib.Path(opened_path("data.cache_dir", base)).absolute()


def check_ids(largest: int, vocab_size: int) -> None:
    """Raises: ConfigError when an id does not fit the model's vocabulary."""
    if largest >= vocab_size:
        problem = f"is too small for the tokenizer's id {largest}"
        raise ConfigError("model.vocab_size", problem, vocab_size, f"at least {largest + 1}")


def undecodable(document: Document, error: UnicodeDecodeError) -> ConfigError:
    """The error for a text that is not the UTF-8 its tokenizer needs."""
    problem = f"{document.name} is not UTF-8 (byte {document.start + error.start})"
    accepted = "UTF-8 text, or data.tokenizer=byte, which takes any bytes"
    return ConfigError("data.paths", problem, accepted=accepted)


# --- Reading ---------------------------------------------------------------------------------


def _load(folder: pathlib.Path, vocab_size: int) -> TokenStream | None:
    """The cache in `folder`, or None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        tokens = np.memmap(folder / "tokens.bin", np.dtype(meta["dtype"]), "r")
        starts = np.fromfile(folder / "starts.bin", "<i8")
        whole = meta["checksums"] == [_checksum(tokens), _checksum(starts)]
        largest = int(meta["largest_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    check_ids(largest, vocab_size)
    has_tokens = np.diff(starts, append=len(tokens)) > 0
    return TokenStream(tokens, starts[has_tokens], int(np.sum(~has_tokens)))


def _checksum(array: np.ndarray) -> int:
    data, total = array.view(np.uint8), 0
    for start in range(0, len(data), 1 << 24):
        total = zlib.crc32(data[start : start + (1 << 24)].tobytes(), total)
    return total


# --- Writing ---------------------------------------------------------------------------------


def _pieces(documents, tokenizer, bos, eos, progress) -> Iterator[list[np.ndarray]]:
    """Each document's tokens with BOS and EOS, about a megabyte of text at a time."""
    before, after = np.asarray(bos, int), np.asarray(eos, int)
    ends = itertools.accumulate(reference.num_bytes for reference in documents.references)
    listed = zip(documents, ends, strict=True)
    for _, group in itertools.groupby(listed, lambda pair: pair[1] // _CHUNK_BYTES):
        chunk, done = zip(*group, strict=True)
        encoded = _encode(tokenizer, chunk)
        yield [np.concatenate([before, ids, after], dtype=np.int64) for ids in encoded]
        if progress is not None:
            progress(done[-1], documents.num_bytes)


def _encode(tokenizer: Tokenizer, chunk: Sequence[Document]) -> list[np.ndarray]:
    try:
        return tokenizer.encode_batch([document.text for document in chunk])
    except UnicodeDecodeError:
        for document in chunk:  # which one was it?
            try:
                document.text.decode()
            except UnicodeDecodeError as error:
                raise undecodable(document, error) from None
        raise


def _write(folder: pathlib.Path, pieces, tokenizer_size: int, vocab_size: int) -> None:
    """Makes and fills `folder`.

    Raises: ConfigError for an id beyond `vocab_size`, or no token at all.
    """
    folder.mkdir()
    dtype = np.dtype("<u2" if tokenizer_size <= 1 << 16 else "<u4")
    largest, checksum, lengths = 0, 0, []
    with open(folder / "tokens.bin", "wb") as file:
        for chunk in pieces:
            joined = np.concatenate(chunk)
            largest = max(largest, int(joined.max(initial=0)))
            check_ids(largest, vocab_size)
            data = joined.astype(dtype).tobytes()
            checksum = zlib.crc32(data, checksum)
            lengths += [len(piece) for piece in chunk]
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if not any(lengths):
        raise ConfigError("data.paths", "the text has no token to predict (all of it is blank)")
    starts = np.cumsum([0, *lengths[:-1]]).astype("<i8")
    write_whole(folder / "starts.bin", starts.tobytes())
    sums = [checksum, _checksum(starts)]
    meta = {"format": FORMAT, "dtype": dtype.str, "largest_id": largest, "checksums": sums}
    write_json(folder / "meta.json", meta)


@contextlib.contextmanager
def _temporary_folder(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder of one's own under `root`; on failure it and the folders made for it are gone."""
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in root.glob("writing-*"):  # what a killed writer left a day ago or more
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(prefix="writing-", dir=root, ignore_cleanup_errors=True)
    try:
        with folder as temporary:
            yield pathlib.Path(temporary)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # another writer uses it by now
                path.rmdir()
        raise


def _publish(ready: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames a finished folder into place, a damaged one out of the way first."""
    for _ in range(3):
        try:
            ready.rename(folder)
            return
        except OSError:
            if _load(folder, 1 << 32) is not None:
                return  # another writer was first
            with contextlib.suppress(OSError):
                folder.rename(ready.with_name(f"damaged-{time.monotonic_ns()}"))
    ready.rename(folder)

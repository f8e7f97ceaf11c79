"""Documents: what rows of files hold, known by hash, and read again when they are needed.

`documents` reads every file once and keeps 40 bytes a document, so a corpus never has to fit in
memory; iterating reads the files again, in order, and notices what has changed. Everything a user
can get wrong about files is refused here.

The hash of a document decides its split (below `data.eval_fraction` of the range: held out),
so a document stays where it is when others come and go, and copies of a text fall together.
A text that stands alone is cut in two instead, and its end is held out.
The fingerprint is a hash over the sorted hashes: the same text in other files or another
order has the same one.

Documents without any text are counted and left out. What `stdlib` leaves out is said in
`stdlib.py`. Read next: `tokenizers.py`.
"""

import dataclasses
import functools
import hashlib
import os
import platform
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.config import DataConfig
from hybrid.data.sources import files, rows, stdlib
from hybrid.data.sources import split as split_lib
from hybrid.data.sources.form import Content, Form, Spans
from hybrid.data.sources.prompts import form_of

_LISTINGS_KEPT = 8  # 40 bytes a document


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it came from, for messages.

    Attributes:
      name: `FILE`, or `FILE:LINE`.
      start: where in its row's text it begins.
      predicted, parsed: as of its `Content`.
    """

    name: str
    text: bytes
    start: int = 0
    predicted: Spans | None = None
    parsed: bool = False


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of one kind, and how documents are made of their rows.

    Attributes:
      names: of the files, for people.
      form: what of a row is text.
    """

    kind: str
    paths: tuple[str, ...]
    names: tuple[str, ...]
    form: Form

    def read(self, file: int, wanted: rows.Wanted) -> Iterator[tuple[int, Content]]:
        """The wanted documents of a file, with their places (`rows.py`)."""
        return rows.read(self.kind, self.paths[file], self.form, wanted)

    def name(self, file: int, place: int) -> str:
        """Where a document came from: `FILE` or `FILE:LINE`."""
        return rows.place_name(self.names[file], place)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What is known of documents without their text, in the order of the source.

    Attributes:
      file: which file each is in, int32 [n].
      place: its line or row, int64 [n].
      num_bytes: of its text, int64 [n].
      digest: two numbers of 64 bits, uint64 [n, 2].
    """

    file: np.ndarray
    place: np.ndarray
    num_bytes: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def where(self, keep: np.ndarray) -> "Listing":
        """The documents that a mask or a list of numbers chooses."""
        arrays = (getattr(self, field.name)[keep] for field in dataclasses.fields(self))
        return Listing(*arrays)


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of one split, read one by one as they are iterated.

    Attributes:
      origin: what they are, for people: `stdlib of Python 3.11.7`.
      held_out_below: of a split by hash, the hash that parts it; None where files do.
      corpus: the fingerprint of all of `data.paths`, this split and the others.
      num_empty: how many documents without any text were left out.
      no_files: what a glob found that is neither file nor folder, as a link that leads nowhere.
      span: which bytes of each text it is.
    """

    files: Files
    listing: Listing
    origin: str
    held_out_below: bytes | None = None
    corpus: str = ""
    num_empty: int = 0
    no_files: tuple[str, ...] = ()
    span: tuple[int, int | None] = (0, None)

    def __len__(self) -> int:
        return len(self.listing)

    def __iter__(self) -> Iterator[Document]:
        """Raises: ConfigError when a file is gone or is no longer what was listed."""
        listing = self.listing
        ends = np.flatnonzero(np.diff(listing.file, append=-1)) + 1
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            file, places = int(listing.file[start]), listing.place[start:end]
            is_wanted = np.zeros(places[-1] + 1, bool)
            is_wanted[places] = True
            number = start
            found = self.files.read(file, functools.partial(_is_in, is_wanted))
            for place, content in found:
                content = _part(content, *self.span)
                name = self.files.name(file, place)
                if split_lib.key_of(digest_of(*content)) != tuple(listing.digest[number].tolist()):
                    raise _changed(name)
                yield Document(name, content.text, self.span[0], *content[1:])
                number += 1
            if number != end:
                raise _changed(self.files.names[file])

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Where each came from."""
        pairs = zip(self.listing.file.tolist(), self.listing.place.tolist(), strict=True)
        return tuple(self.files.name(*pair) for pair in pairs)

    @functools.cached_property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return int(self.listing.num_bytes.sum())

    @functools.cached_property
    def by_hash(self) -> np.ndarray:
        """The numbers of the documents by their hashes: mixed, and the same everywhere."""
        high, low = self.listing.digest.T
        return np.lexsort((low, high))

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hex digits that depend on the texts alone, not on names or order."""
        ordered = self.listing.digest[self.by_hash].astype(">u8")
        return digest_of(ordered.tobytes()).hex()

    def described(self, num_without_token: int = 0) -> str:
        """One line for a log: origin, number of documents, size, fingerprint, what is left out."""
        line = described(self.origin, len(self), self.num_bytes, self.fingerprint, self.num_empty)
        if self.no_files:
            more = f" and {len(self.no_files) - 3:,} more" * (len(self.no_files) > 3)
            line += f", no file: {', '.join(self.no_files[:3])}{more}"
        return line + without_token(num_without_token)

    @property
    def description(self) -> str:
        """`described`, where all documents have tokens."""
        return self.described()


def described(
    origin: str, num_documents: int, num_bytes: int, fingerprint: str, num_empty: int
) -> str:
    """A text in one line, for a log."""
    counted = f"{num_documents:,} documents" if num_documents != 1 else "1 document"
    line = f"{origin}: {counted}, {num_bytes / 1e6:.2f} MB, fingerprint {fingerprint[:12]}"
    return line + (f", {num_empty:,} without text left out" if num_empty else "")


def without_token(number: int) -> str:
    """What is added to that line where documents gave no token."""
    return f", {number:,} without a token skipped" if number else ""


def _changed(name: str) -> ConfigError:
    return ConfigError("data.paths", f"{name} changed while it was being read")


def digest_of(text: bytes, predicted: Spans | None = None, parsed: bool = False) -> bytes:
    """16 bytes that tell a document from all others, by all of its `Content`."""
    digest = hashlib.blake2b(text, digest_size=split_lib.DIGEST_BYTES)
    if predicted is not None:
        digest.update(f" predicted {list(predicted)}".encode())
    if parsed:
        digest.update(b" parsed")
    return digest.digest()


def documents(
    config: DataConfig, split: str = "train", held_out_below: bytes | None = None
) -> Documents:
    """The documents of a split.

    `train` and `eval` share the documents of `data.paths` by hash, at least one each, or the one
    text that is there, unless `data.eval_paths` names the evaluation text: then `train` is
    everything in `data.paths`.  `all` is everything in `data.paths`.

    held_out_below: the hash that parted the documents of a run, whatever has come since.
    Raises: ConfigError for files that are missing, unreadable, malformed or too short.
    """
    if split == "eval" and config.eval_paths:
        return _listed(*files_of(config, "eval"))
    everything = _everything(config)
    everything = dataclasses.replace(everything, corpus=everything.fingerprint)
    if split == "all" or (split == "train" and config.eval_paths):
        return everything
    if split not in ("train", "eval"):
        raise ValueError(f"split: train, eval or all, got {split!r}")
    digests = everything.listing.digest
    if held_out_below is None and (digests == digests[0]).all():
        return _part_of_one(everything, config.eval_fraction, split)
    threshold = held_out_below or split_lib.threshold_of(digests, config.eval_fraction)
    is_kept = split_lib.is_below(digests, threshold) == (split == "eval")
    if not is_kept.any():
        problem = f"nothing is left of the {len(everything)} documents for the run's {split} split"
        raise ConfigError("data.paths", problem, list(config.paths) or config.source)
    origin = f"{everything.origin} ({split})"
    kept = everything.listing.where(is_kept)
    return dataclasses.replace(everything, listing=kept, origin=origin, held_out_below=threshold)


def _part_of_one(everything: Documents, fraction: float, split: str) -> Documents:
    """Of the one text that is there (and its copies) the end is held out, the rest is trained on.

    Raises: ConfigError for a text too short to cut.
    """
    first = next(iter(everything))
    text, cut = first.text, split_lib.end_of_training(first.text, fraction)
    if not cut:
        remedy = "name files in data.eval_paths, or give more text"
        problem = "nothing is left to hold out for evaluation"
        raise ConfigError("data.eval_paths", problem, f"{len(text)} bytes of text", remedy)
    span = (cut, len(text)) if split == "eval" else (0, cut)
    part = _part(Content(text, first.predicted, first.parsed), *span)
    number = len(everything)
    digest = np.array([split_lib.key_of(digest_of(*part))] * number, np.uint64)
    sizes = np.full(number, len(part.text))
    listing = dataclasses.replace(everything.listing, num_bytes=sizes, digest=digest)
    shown = "the last" if split == "eval" else "without the last"
    origin = f"{everything.origin} ({split}: {shown} {len(text) - cut:,} bytes of the one document)"
    return dataclasses.replace(everything, listing=listing, origin=origin, span=span)


def _part(content: Content, start: int, stop: int | None) -> Content:
    """The bytes [start, stop) of a text."""
    if (start, stop) == (0, None):
        return content
    text = content.text[start:stop]
    if content.predicted is None:
        return content._replace(text=text)
    inside = ((max(a - start, 0), min(b - start, len(text))) for a, b in content.predicted)
    predicted = tuple(span for span in inside if span[0] < span[1])
    return Content(text, predicted, content.parsed)


# --- Listing -------------------------------------------------------------------------------------


def files_of(config: DataConfig, split: str = "train") -> tuple[Files, str, tuple[str, ...]]:
    """The files of `data.paths`, or of `data.eval_paths` for `eval`, by names alone.

    Returns: them, the key that names them, and what else it names that is no file.
    Raises: ConfigError for a path without a file.
    """
    form = form_of(config)
    if config.source == "stdlib" and split != "eval":
        root, sources = stdlib.root(), stdlib.files()
        names = tuple(path.relative_to(root).as_posix() for path in sources)
        return Files("text", tuple(map(str, sources)), names, form), "data.source", ()
    patterns, key = config.paths, "data.paths"
    kind = config.source
    if split == "eval":
        patterns, key = config.eval_paths, "data.eval_paths"
        kind = "text" if config.source == "stdlib" else config.source
    paths, others = files.expand(patterns, kind, key)
    return Files(kind, paths, paths, form), key, others


def _everything(config: DataConfig) -> Documents:
    return _stdlib() if config.source == "stdlib" else _listed(*files_of(config))


@functools.cache
def _stdlib() -> Documents:
    """The library without generated files and copies (same bytes)."""
    found, _, _ = files_of(DataConfig())
    by_people = stdlib.by_people(found.paths)
    found = dataclasses.replace(
        found,
        paths=tuple(found.paths[number] for number in by_people),
        names=tuple(found.names[number] for number in by_people),
    )
    listing = _list(found, _changes(found))
    _, firsts = np.unique(listing.digest, axis=0, return_index=True)
    if len(firsts) < 2:
        problem = f"this Python has no library sources in {stdlib.root()}"
        raise ConfigError("data.source", problem, "stdlib", "text or jsonl")
    origin = f"stdlib of Python {platform.python_version()}"
    return Documents(found, listing.where(np.sort(firsts)), origin)


def _listed(found: Files, key: str, no_files: tuple[str, ...]) -> Documents:
    """The documents of files, listed.  Raises: ConfigError under `key`."""
    try:
        listing = _list(found, _changes(found))
    except ConfigError as error:
        raise error.under(key if error.key == "data.paths" else error.key) from None
    has_text = listing.num_bytes > 0
    if not has_text.any():
        raise ConfigError(key, "no text in these files", list(found.paths))
    num_empty = int((~has_text).sum())
    kept = listing.where(has_text) if num_empty else listing
    return Documents(found, kept, found.kind, num_empty=num_empty, no_files=no_files)


def _changes(found: Files) -> tuple[Any, ...]:
    """What differs when a file has changed; nothing for one that reading will complain of."""
    about: list[tuple[int, ...] | None] = []
    for path in found.paths:
        try:
            stat = os.stat(path)
        except (OSError, ValueError):
            about.append(None)
        else:
            about.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(about)


@functools.lru_cache(_LISTINGS_KEPT)
def _list(found: Files, changes: tuple[Any, ...]) -> Listing:
    """Reads all files; both splits and the check before them take one reading."""
    del changes  # is there for the cache
    file_of, place_of, size_of, digests = array("i"), array("q"), array("q"), bytearray()
    for file in range(len(found.paths)):
        for place, content in found.read(file, _everything_in_it):
            file_of.append(file)
            place_of.append(place)
            size_of.append(len(content.text))
            digests += digest_of(*content)
    digest = np.frombuffer(bytes(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    return Listing(np.array(file_of), np.array(place_of), np.array(size_of), digest)


def _is_in(is_wanted: np.ndarray, place: int) -> bool:
    return place < len(is_wanted) and bool(is_wanted[place])


def _everything_in_it(place: int) -> bool:
    del place
    return True

"""A store of text of any size, shard by shard: stopped at any time, it goes on at the last shard.

The source is read once, in order. `journal.jsonl` gets a line when the shards of a round are on
the disk: how far the source was read, and all counts. The next start cuts what is beyond, reads on
from there and ends with the same bits; the last thing written is the manifest.

Documents are held out by hash, as `sources` does, but one by one: nothing is known of all others
while the first are read. A text that stands alone is not cut.
"""

import dataclasses
import functools
import hashlib
import json
import operator
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.config import DataConfig
from hybrid.data.sources import Document, Files, digest_of, files_of, matches_of
from hybrid.data.sources.split import is_below, nominal_threshold
from hybrid.data.store import manifest
from hybrid.data.store.build import SHARD_TOKENS, Counts, Entry, Writer
from hybrid.data.store.encode import Asked, Encoder, encoded
from hybrid.data.store.manifest import MANIFEST, Manifest
from hybrid.process.files import check_writable, log_of
from hybrid.process.lock import FILE as LOCK
from hybrid.process.lock import writer_lock
from hybrid.process.remote import AnyPath, RemotePath

JOURNAL = "journal.jsonl"
_KEYS = ("source", "paths", "eval_paths", "eval_fraction")
Place = tuple[int, int, int]  # list of files, file, line or row


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a store is: bytes of files read of all, and what came of them."""

    done: int
    total: int
    num_bytes: int
    num_tokens: int


def prepare(
    config: DataConfig,
    encoder: Encoder,
    folder: AnyPath,
    *,
    vocab_size: int,
    num_workers: int,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Manifest:
    """Makes the store of a config's text, or goes on with it; one that is finished stays.

    Whatever `progress` raises stops between two documents.
    Raises: ConfigError for wrong files, text or ids; what this call has written is gone then.
    """
    job = _Job.of(config, encoder, shard_tokens)
    if not isinstance(folder, RemotePath) and not folder.absolute().parent.is_dir():
        raise ConfigError("--output", "its parent folder doesn't exist", str(folder))
    check_writable(folder, "--output")
    _check_outside(folder, config)
    with writer_lock(folder) as lock:
        found = _finished(folder, job)
        if found is not None:
            return found
        held = _held(folder, job)
        is_new = not folder.exists()
        lock.claim()
        writer = Writer(folder, encoder, vocab_size, shard_tokens, held.counts)
        journal = log_of(folder / JOURNAL)
        before = held.lines
        journal.replace("".join(before).encode())
        try:
            _write(job, writer, journal, held, num_workers, progress)
            made = _manifest(job, writer.counts)
        except ConfigError:
            journal.replace("".join(before).encode())
            _cut(folder, held.counts)
            if len(before) == 1:
                for name in (JOURNAL, LOCK):
                    (folder / name).unlink(missing_ok=True)
            if is_new:
                folder.rmdir()
            raise
        manifest.write(folder, made)
        for name in (JOURNAL, LOCK):
            (folder / name).unlink(missing_ok=True)
    return made


def _check_outside(folder: AnyPath, config: DataConfig) -> None:
    """Raises: ConfigError for a store that would be among the files that it is made of."""
    if isinstance(folder, RemotePath):
        return
    for name in ("paths", "eval_paths"):
        walked = (match for pattern in getattr(config, name) for match in matches_of(pattern))
        for match in map(pathlib.Path, walked):
            if match.is_dir() and folder.resolve().is_relative_to(match.resolve()):
                problem = f"lies in a folder of data.{name}"
                raise ConfigError("--output", problem, str(folder), f"a folder outside of {match}")


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is read, and how.

    Attributes:
      lists: the files to share by hash, or those to train on and those held out.
      sizes: of all files, list after list.
      settings: all that decides the bits, as the journal's first line.
    """

    config: DataConfig
    encoder: Encoder
    lists: tuple[Files, ...]
    sizes: tuple[tuple[int, ...], ...]
    settings: dict[str, Any]

    @classmethod
    def of(cls, config: DataConfig, encoder: Encoder, shard_tokens: int) -> "_Job":
        if config.is_task or config.source == "prepared":
            raise ConfigError("data.source", "has no text to prepare", config.source)
        lists = [files_of(config)[0]]
        if config.eval_paths:
            lists.append(files_of(config, "eval")[0])
        stats = [[os.stat(path) for path in files.paths] for files in lists]
        about = [[(stat.st_size, stat.st_mtime_ns) for stat in of_list] for of_list in stats]
        changes = hashlib.blake2b(repr(about).encode(), digest_size=16).hexdigest()
        source = {name: getattr(config, name) for name in _KEYS}
        source["form"] = repr(lists[0].form)  # the fields, and the template of conversations
        settings = {
            "format": manifest.FORMAT,
            "source": json.loads(json.dumps(source)),
            "files": changes,
            "tokenizer": encoder.identity,
            "shard_tokens": shard_tokens,
        }
        sizes = tuple(tuple(stat.st_size for stat in of_list) for of_list in stats)
        return cls(config, encoder, tuple(lists), sizes, settings)

    @property
    def is_by_hash(self) -> bool:
        """Whether documents are held out by their hashes."""
        return not self.config.eval_paths

    def documents(self, after: Place) -> Iterator[Asked]:
        """All documents behind a place, with what the writer needs to know of them."""
        threshold = nominal_threshold(self.config.eval_fraction)
        first, first_file, first_place = after
        for number, files in enumerate(self.lists[first:], first):
            start = first_file if number == first else 0
            for file in range(start, len(files.paths)):
                behind = first_place if (number, file) == (first, first_file) else -1
                for place, content in files.read(file, functools.partial(operator.lt, behind)):
                    digest = digest_of(*content)
                    is_eval = number == 1
                    if self.is_by_hash:
                        key = np.frombuffer(digest, ">u8").astype(np.uint64)[None]
                        is_eval = bool(is_below(key, threshold)[0])
                    document = Document(files.name(file, place), content.text, 0, *content[1:])
                    yield Asked(document, is_eval, ((number, file, place), digest))


@dataclasses.dataclass(frozen=True)
class _Held:
    """What an earlier start has left: journal lines, counts, and the place it got to."""

    lines: list[str]
    counts: Counts
    place: Place


def _write(
    job: _Job,
    writer: Writer,
    journal: Any,
    held: _Held,
    num_workers: int,
    progress: Callable[[Progress], None],
) -> None:
    read = _Reading(job, held.place)
    place = held.place
    for asked, tokens in encoded(job.documents(held.place), job.encoder, num_workers):
        place, digest = asked.about
        files, number = job.lists[place[0]], place[1]
        size = len(asked.document.text)
        entry = Entry(files.names[number], place[2], size, digest, tokens)
        if writer.add("eval" if asked.with_bytes else "train", entry):
            writer.end_round()
            journal.append(_round(place, writer.counts).encode())
            journal.sync()
        progress(read.progress(place, size, len(tokens.ids)))
    writer.end_round()


class _Reading:
    """How much has been read, by the sizes of files; within one by the text that came of it."""

    def __init__(self, job: _Job, place: Place):
        self._sizes = job.sizes
        self._total = sum(map(sum, job.sizes))
        self._at, self._before, self._here = place[:2], self._until(*place[:2]), 0
        self._num_bytes = self._num_tokens = 0

    def progress(self, place: Place, num_bytes: int, num_tokens: int) -> Progress:
        """After a document."""
        if place[:2] != self._at:
            self._at, self._before, self._here = place[:2], self._until(*place[:2]), 0
        self._here += num_bytes
        self._num_bytes += num_bytes
        self._num_tokens += num_tokens
        here = min(self._here, self._sizes[place[0]][place[1]])
        return Progress(self._before + here, self._total, self._num_bytes, self._num_tokens)

    def _until(self, number: int, file: int) -> int:
        return sum(map(sum, self._sizes[:number])) + sum(self._sizes[number][:file])


def _round(place: Place, counts: Counts) -> str:
    return json.dumps({"place": place, "counts": dataclasses.asdict(counts)}) + "\n"


def _manifest(job: _Job, counts: Counts) -> Manifest:
    """Raises: ConfigError where a split has got no document."""
    if not counts.shards["train"] or not counts.shards["eval"]:
        if not counts.shards["train"] and not counts.shards["eval"]:
            raise ConfigError("data.paths", "no text in these files", list(job.config.paths))
        which = "train on" if counts.shards["eval"] else "hold out"
        remedy = "another part, or files to evaluate on in data.eval_paths"
        problem = f"leaves no document to {which}"
        raise ConfigError("data.eval_fraction", problem, job.config.eval_fraction, remedy)
    chains = counts.chain["train"] + (counts.chain["eval"] if job.is_by_hash else "")
    threshold = nominal_threshold(job.config.eval_fraction)
    names = ("train", "eval") if job.is_by_hash else ("", "")
    train, held_out = (
        counts.split(split, job.config.source + f" ({name})" * bool(name))
        for split, name in zip(("train", "eval"), names, strict=True)
    )
    return Manifest(
        tokenizer=job.encoder.identity,
        largest_id=counts.largest_id,
        corpus=hashlib.blake2b(chains.encode(), digest_size=16).hexdigest(),
        held_out_below=threshold.hex() if job.is_by_hash else None,
        source=job.settings,
        train=train,
        eval=held_out,
    )


# --- What is there -------------------------------------------------------------------------------


def _finished(folder: AnyPath, job: _Job) -> Manifest | None:
    """The manifest of the finished store of the same settings, if it is there.

    Raises: ConfigError for a store of others.
    """
    if not (folder / MANIFEST).exists():
        return None
    found = manifest.read(folder, "--output").manifest
    _check_same(folder, found.source, job)
    (folder / JOURNAL).unlink(missing_ok=True)
    return found


def _held(folder: AnyPath, job: _Job) -> _Held:
    """What an earlier start has left; shards beyond its last line are removed.

    Raises: ConfigError for other settings, or a folder that holds something else.
    """
    head = json.dumps(job.settings) + "\n"
    nothing = _Held([head], Counts.none(), (0, 0, -1))
    lines = log_of(folder / JOURNAL).read().decode().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # the last may be torn
    if not whole:
        others = [path.name for path in folder.iterdir()] if folder.exists() else []
        others = [name for name in others if name not in (LOCK, JOURNAL)]
        if others:
            problem = "must be new or an empty folder, or a store that was begun"
            raise ConfigError("--output", problem, str(folder))
        return nothing
    _check_same(folder, json.loads(whole[0]), job)
    if len(whole) == 1:
        _cut(folder, nothing.counts)
        return nothing
    last = json.loads(whole[-1])
    counts = Counts.of(last["counts"])
    _cut(folder, counts)
    place = tuple(last["place"])
    return _Held(whole, counts, (place[0], place[1], place[2]))


def _check_same(folder: AnyPath, held: dict[str, Any], job: _Job) -> None:
    for name, value in job.settings.items():
        if held.get(name) != value:
            what = {"files": "its files have changed since", "source": "of another text"}
            problem = f"holds a store {what.get(name, f'of another {name}')}"
            accepted = "the same config, or another folder"
            raise ConfigError("--output", problem, str(folder), accepted)


def _cut(folder: AnyPath, counts: Counts) -> None:
    """Removes the shards that are not counted, and what was being written."""
    known = {about.file for shards in counts.shards.values() for about in shards}
    for path in folder.iterdir():
        name = path.name
        if ".safetensors" in name and name not in known:
            path.unlink()

"""The store as a whole: `manifest.json`, written last, so that a store is finished or is none.

Opening reads this file alone, however large the store is; shards are opened when a row of theirs
is asked for, and the least used ones are let go.
"""

import dataclasses
import json
import threading
import zlib
from collections import OrderedDict
from typing import Any

from hybrid.config import ConfigError
from hybrid.data.sources.corpus import described, without_token
from hybrid.data.store.shard import REMEDY, Shard
from hybrid.process.files import write_json
from hybrid.process.remote import AnyPath

MANIFEST = "manifest.json"
FORMAT = 1
_CHECKSUM = "crc32"
_OPEN_SHARDS = 128  # a split; each holds a file and a megabyte of starts


@dataclasses.dataclass(frozen=True)
class ShardAbout:
    """What the manifest knows of a shard.

    Attributes:
      num_predicted: tokens that training predicts: neither a document's first nor masked ones.
      index_crc32: checksum of its header and its checksums.
    """

    file: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    num_predicted: int
    index_crc32: int


@dataclasses.dataclass(frozen=True)
class Split:
    """What the manifest knows of the documents to train on, or of those held out.

    Attributes:
      fingerprint: of the documents' texts.
      num_empty: documents without any text, which are left out.
      num_without_token: documents of which no token came, which are left out too.
      has_token_bytes: whether the bytes of text of every token are known.
    """

    shards: tuple[ShardAbout, ...] = ()
    fingerprint: str = ""
    origin: str = ""
    num_empty: int = 0
    num_without_token: int = 0
    has_token_bytes: bool = False

    def total(self, count: str) -> int:
        """`num_tokens`, `num_documents`, `num_bytes` or `num_predicted` of all shards."""
        return sum(getattr(shard, count) for shard in self.shards)

    @property
    def description(self) -> str:
        """One line for a log: origin, number of documents, size and fingerprint."""
        counts = self.total("num_documents"), self.total("num_bytes")
        line = described(self.origin, *counts, self.fingerprint, self.num_empty)
        return line + without_token(self.num_without_token)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a store is.

    Attributes:
      tokenizer: what decides ids and layout: `fingerprint`, `version`, `vocab_size`, `bos_id`
        (null: documents have none), `eos_id`.
      largest_id: of all its tokens.
      corpus: the fingerprint of the text of both splits.
      held_out_below: the hash that parts the splits, in hex; null where files do.
      source: the keys of `data.` that it was made of.
    """

    tokenizer: dict[str, Any]
    largest_id: int
    corpus: str
    held_out_below: str | None
    source: dict[str, Any]
    train: Split
    eval: Split
    format: int = FORMAT

    def split(self, name: str) -> Split:
        """`train` or `eval`."""
        return {"train": self.train, "eval": self.eval}[name]


class Store:
    """A finished store.

    Attributes:
      folder, manifest: where and what it is.
    """

    def __init__(self, folder: AnyPath, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        self._shards: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def shard(self, split: str, number: int) -> Shard:
        """A shard of a split.  Raises: ConfigError for a damaged one."""
        about = self.manifest.split(split).shards[number]
        with self._lock:
            found = self._shards.get(about.file)
            if found is None:
                found = Shard(self.folder / about.file, about.index_crc32)
                self._shards[about.file] = found
                if len(self._shards) > _OPEN_SHARDS:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(about.file)
        return found

    def verify(self) -> None:
        """Reads every shard.  Raises: ConfigError naming the first damaged one."""
        for split in (self.manifest.train, self.manifest.eval):
            for about in split.shards:
                Shard(self.folder / about.file, about.index_crc32).verify()


def write(folder: AnyPath, manifest: Manifest) -> None:
    """Makes the folder's shards a store."""
    values = dataclasses.asdict(manifest)
    checked = {"format": FORMAT} | values | {_CHECKSUM: _checksum(values)}
    write_json(folder / MANIFEST, checked, indent=1)


def read(folder: AnyPath, key: str) -> Store:
    """The store in a folder.  Raises: ConfigError under `key` for none, or one it can't read."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        accepted = "a folder that python -m hybrid.prepare has finished"
        raise ConfigError(key, "holds no finished store", str(folder), accepted) from None
    except (OSError, ValueError) as error:
        raise ConfigError(key, f"{path} can't be read ({error})", accepted=REMEDY) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else values
        accepted = f"format {FORMAT}; prepare it again with this version"
        raise ConfigError(key, f"{folder} is a store of another format", found, accepted)
    checksum = values.pop(_CHECKSUM, None)
    if checksum != _checksum(values):
        raise ConfigError(key, f"{path} is damaged", accepted=REMEDY)
    splits = {name: _split(values[name]) for name in ("train", "eval")}
    return Store(folder, Manifest(**{**values, **splits}))


def _split(values: dict[str, Any]) -> Split:
    shards = tuple(ShardAbout(**shard) for shard in values["shards"])
    return Split(**{**values, "shards": shards})


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())

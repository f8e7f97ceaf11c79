"""Documents into shards: whole ones, in the order they come, until a shard is full.

`Writer` keeps the shards of both splits in step: when those to train on are full, what is held out
so far is written beside them. So after each round everything is known by how far the source was
read, and a build that was stopped goes on there, with the same bits.
"""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.store import shard
from hybrid.data.store.encode import Encoder, Tokens
from hybrid.data.store.manifest import ShardAbout, Split
from hybrid.process.remote import AnyPath

SHARD_TOKENS = 1 << 24
SPLITS = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A document on its way into a shard.

    Attributes:
      file, place: where it came from.
      num_bytes, digest: of its text.
    """

    file: str
    place: int
    num_bytes: int
    digest: bytes
    tokens: Tokens


@dataclasses.dataclass(frozen=True)
class Counts:
    """What has been written so far, as plain values: a round's line in a journal holds it.

    Attributes:
      shards: by split.
      chain: by split, a hash over the texts so far, in hex.
      num_empty, num_without_token: by split.
    """

    shards: dict[str, tuple[ShardAbout, ...]]
    chain: dict[str, str]
    num_empty: dict[str, int]
    num_without_token: dict[str, int]
    has_token_bytes: bool = True
    largest_id: int = 0

    @classmethod
    def none(cls) -> "Counts":
        """Before the first document."""
        nothing = dict.fromkeys(SPLITS, 0)
        return cls(dict.fromkeys(SPLITS, ()), dict.fromkeys(SPLITS, ""), nothing, nothing)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Counts":
        """What `dataclasses.asdict` has made plain."""
        shards = {s: tuple(ShardAbout(**about) for about in values["shards"][s]) for s in SPLITS}
        return cls(**{**values, "shards": shards})

    def split(self, name: str, origin: str, fingerprint: str = "") -> Split:
        """The split's entry in a manifest."""
        return Split(
            shards=self.shards[name],
            fingerprint=fingerprint or self.chain[name],
            origin=origin,
            num_empty=self.num_empty[name],
            num_without_token=self.num_without_token[name],
            has_token_bytes=name == "eval" and self.has_token_bytes,
        )


class Writer:
    """Fills shards; `end_round` puts what has come so far into files.

    Attributes:
      counts: what is in files.
    """

    def __init__(
        self,
        folder: AnyPath,
        encoder: Encoder,
        vocab_size: int = 0,
        shard_tokens: int = SHARD_TOKENS,
        counts: Counts | None = None,
    ):
        """vocab_size: of the model, whose ids end there; 0: any."""
        self._folder, self._vocab_size, self._shard_tokens = folder, vocab_size, shard_tokens
        is_small = encoder.tokenizer.vocab_size <= 1 << 16
        self._dtype = np.dtype(np.uint16 if is_small else np.uint32)
        self._has_bos = encoder.bos_id is not None
        self.counts = counts or Counts.none()
        self._open = {name: _Open() for name in SPLITS}

    def add(self, split: str, entry: Entry) -> bool:
        """Adds a document.

        Returns: whether a round should end now.
        Raises: ConfigError for an id beyond `vocab_size`.
        """
        largest = int(entry.tokens.ids.max(initial=0))
        if self._vocab_size:
            check_ids(largest, self._vocab_size)
        least = 1 + (split == "eval" and self._has_bos)  # a lone BOS can't be scored
        self._open[split].add(entry, largest, least)
        return self._open[split].num_tokens >= self._shard_tokens

    def end_round(self) -> None:
        """Writes a shard of each split that has got documents since the last round."""
        counts = dataclasses.asdict(self.counts)
        shards = dict(self.counts.shards)
        for name, opened in self._open.items():
            counts["num_empty"][name] += opened.num_empty
            counts["num_without_token"][name] += opened.num_without_token
            if opened.num_tokens:
                number = len(shards[name])
                about = opened.write(self._folder, f"{name}-{number:05}", self._dtype)
                shards[name] = (*shards[name], about)
                counts["chain"][name] = _chained(counts["chain"][name], bytes(opened.digests))
                counts["largest_id"] = max(counts["largest_id"], opened.largest_id)
                if name == "eval":
                    counts["has_token_bytes"] &= opened.has_token_bytes
            self._open[name] = _Open()
        self.counts = Counts(**{**counts, "shards": shards})


class _Open:
    """A shard that is being filled."""

    def __init__(self) -> None:
        self.num_tokens = self.num_empty = self.num_without_token = self.largest_id = 0
        self.digests = bytearray()
        self.has_token_bytes = True
        self._tokens: list[Tokens] = []
        self._files: dict[str, int] = {}
        self._file: list[int] = []
        self._place: list[int] = []
        self._num_bytes: list[int] = []

    def add(self, entry: Entry, largest: int, least: int) -> None:
        if not entry.num_bytes:
            self.num_empty += 1
            return
        if len(entry.tokens.ids) < least:
            self.num_without_token += 1
            return
        self.num_tokens += len(entry.tokens.ids)
        self.largest_id = max(self.largest_id, largest)
        self.has_token_bytes &= entry.tokens.num_bytes is not None
        self.digests += entry.digest
        self._tokens.append(entry.tokens)
        self._file.append(self._files.setdefault(entry.file, len(self._files)))
        self._place.append(entry.place)
        self._num_bytes.append(entry.num_bytes)

    def write(self, folder: AnyPath, name: str, dtype: np.dtype) -> ShardAbout:
        lengths = np.array([len(tokens.ids) for tokens in self._tokens])
        starts = np.cumsum([0, *lengths[:-1]])
        ids = np.concatenate([tokens.ids for tokens in self._tokens])
        if int(ids.max()) > np.iinfo(dtype).max:
            raise ValueError(f"the tokenizer gave the id {ids.max()}, beyond its vocab_size")
        names = json.dumps(list(self._files)).encode()
        arrays = {
            "tokens": ids.astype(dtype),
            "starts": starts.astype(np.int64),
            "num_bytes": np.array(self._num_bytes, np.int64),
            "file": np.array(self._file, np.int32),
            "place": np.array(self._place, np.int64),
            "files": np.frombuffer(names, np.uint8),
        }
        is_predicted = np.ones(len(ids), bool)
        if any(tokens.predicted is not None for tokens in self._tokens):
            masks = (
                np.ones(len(tokens.ids), bool) if tokens.predicted is None else tokens.predicted
                for tokens in self._tokens
            )
            is_predicted = np.concatenate(list(masks))
            arrays["predicted"] = np.packbits(is_predicted)
        counts = [tokens.num_bytes for tokens in self._tokens if tokens.num_bytes is not None]
        if len(counts) == len(self._tokens):
            arrays["token_bytes"] = np.concatenate(counts)
        is_predicted[starts] = False
        file = f"{name}.safetensors"
        return ShardAbout(
            file=file,
            num_tokens=len(ids),
            num_documents=len(starts),
            num_bytes=sum(self._num_bytes),
            num_predicted=int(is_predicted.sum()),
            index_crc32=shard.write(folder / file, arrays),
        )


def _chained(before: str, digests: bytes) -> str:
    """A hash over all texts in their order, a round at a time."""
    return hashlib.blake2b(before.encode() + digests, digest_size=16).hexdigest()


def check_ids(largest: int, vocab_size: int) -> None:
    """Raises: ConfigError when an id does not fit the model's vocabulary."""
    if largest >= vocab_size:
        problem = f"is too small for the tokenizer's id {largest}"
        raise ConfigError("model.vocab_size", problem, vocab_size, f"at least {largest + 1}")

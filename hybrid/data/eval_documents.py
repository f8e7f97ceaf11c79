"""Documents that an evaluation scores whole, one by one, held in arrays or read from a store."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid.data.store.manifest import Store
from hybrid.data.store.shard import Shard


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
      predicted: for each document bool [n], which tokens are scored; None: all.
    """

    tokens: Sequence[np.ndarray]
    num_bytes: Sequence[np.ndarray] | None
    names: Sequence[str]
    bos: str
    bos_id: int | None
    pad_id: int
    fingerprint: str
    description: str
    identity: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    has_eos: bool = False
    predicted: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document; a store tells them without reading the tokens."""
        if isinstance(self.tokens, StoredArrays):
            return self.tokens.lengths
        return [len(tokens) for tokens in self.tokens]

    def without_eos(self) -> "EvalDocuments":
        """The same documents, the EOS of each left out."""
        if not self.has_eos:
            return self
        return dataclasses.replace(
            self,
            tokens=_without_last(self.tokens),
            num_bytes=None if self.num_bytes is None else _without_last(self.num_bytes),
            predicted=None if self.predicted is None else _without_last(self.predicted),
            has_eos=False,
        )


def _without_last(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    if isinstance(arrays, StoredArrays):
        return dataclasses.replace(arrays, without_last=True)
    return tuple(array[:-1] for array in arrays)


@dataclasses.dataclass(frozen=True)
class _Stored(Sequence):
    """One thing of each document held out in a store, read when it is asked for."""

    store: Store

    def __len__(self) -> int:
        return self.store.manifest.eval.total("num_documents")

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):  # iterating ends by this
            raise IndexError(index)
        ends = np.cumsum([shard.num_documents for shard in self.store.manifest.eval.shards])
        number = int(np.searchsorted(ends, index, "right"))
        first = int(ends[number - 1]) if number else 0
        return self._of(self.store.shard("eval", number), index - first)

    @abc.abstractmethod
    def _of(self, shard: Shard, place: int) -> Any:
        """That of the document at `place` of a shard."""


@dataclasses.dataclass(frozen=True)
class StoredArrays(_Stored):
    """One array of each document.

    Attributes:
      name: `tokens`, `token_bytes` or `predicted`.
      after: elements at each document's beginning that are left out, as BOS is.
      without_last: whether the last one is left out.
    """

    name: str
    dtype: Any
    after: int
    without_last: bool = False

    @property
    def lengths(self) -> list[int]:
        """Elements of each document."""
        found: list[int] = []
        for number, about in enumerate(self.store.manifest.eval.shards):
            starts = self.store.shard("eval", number).starts
            lengths = np.diff(starts, append=about.num_tokens)
            found += (lengths - self.after - self.without_last).tolist()
        return found

    def _of(self, shard: Shard, place: int) -> np.ndarray:
        start = int(shard.starts[place]) + self.after
        is_last = place + 1 == len(shard.starts)
        stop = shard.num_tokens if is_last else int(shard.starts[place + 1])
        stop -= self.without_last
        if self.name == "predicted":
            found = shard.predicted(start, stop)
            return np.ones(stop - start, bool) if found is None else found
        return shard.array(self.name, start, stop).astype(self.dtype)


class StoredNames(_Stored):
    """Where each document came from."""

    def _of(self, shard: Shard, place: int) -> str:
        return shard.names(place, place + 1)[0]

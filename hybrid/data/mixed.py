"""Several sources as one: their rows in a mixture's order, and what each of them holds out.

Every source is opened as if it were alone, with a permutation of its own for each of its epochs;
here they are put together. So the rows of a source come in the order that it has alone under the
same seed, whatever its weight. Read first: `mixture.py`, the order; read next: `pipeline.py`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hybrid.config import ConfigError
from hybrid.data.config import DataConfig, MixtureSource
from hybrid.data.eval_documents import EvalDocuments
from hybrid.data.mixture import Mixture, exact, mixture_of
from hybrid.data.packing import Row


@runtime_checkable  # for the tests, which check types
class Run(Protocol):
    """The endless rows of one source (`pipeline.Rows`)."""

    @property
    def num_rows(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def row(self, index: int) -> Row: ...

    def names(self, index: int) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class MixedRows:
    """The rows of several sources, in a mixture's order.

    Attributes:
      runs: of each source, by its name.
      mixture: which source a row is of.
    """

    runs: Mapping[str, Run]
    mixture: Mixture

    @functools.cached_property
    def _in_order(self) -> tuple[Run, ...]:
        return tuple(self.runs.values())

    @property
    def num_rows(self) -> int:
        """Rows of an epoch of every source."""
        return sum(run.num_rows for run in self._in_order)

    def row(self, index: int) -> Row:
        """Row `index` of the run, with `is_of_source` beside what its source gives."""
        source, own = self.mixture.place(index)
        is_of_source = np.arange(len(self.runs)) == source
        return {**self._in_order[source].row(own), "is_of_source": is_of_source}

    def names(self, index: int) -> list[str]:
        """Where the documents of row `index` of the run came from."""
        source, own = self.mixture.place(index)
        return self._in_order[source].names(own)

    @property
    def fingerprint(self) -> str:
        """Of all that decides which row comes when: the sources' rows and the stages."""
        parts = [self.mixture, *(run.fingerprint for run in self._in_order)]
        return joined_fingerprint(parts) or ""


def mixed_rows(config: DataConfig, runs: Sequence[Run], batch_size: int) -> MixedRows:
    """The sources of `config.mixture`, opened, in the order of their rows.

    batch_size: rows a step, by which the schedule's steps are counted.
    """
    changes = {0: [exact(source.weight) for source in config.mixture]}
    for step, weights in config.mixture_schedule:
        changes[step * batch_size] = list(map(exact, weights))
    caps = [
        math.ceil(exact(source.epochs) * run.num_rows) or None
        for source, run in zip(config.mixture, runs, strict=True)
    ]
    names = (source.name for source in config.mixture)
    mixture = mixture_of(sorted(changes.items()), caps)
    return MixedRows(dict(zip(names, runs, strict=True)), mixture)


def joined_fingerprint(parts: Sequence[Any]) -> str | None:
    """One fingerprint of several, in their order; None where one is unknown."""
    if any(part is None or part == "" for part in parts):
        return None
    return hashlib.blake2b(repr(list(parts)).encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def errors_of(index: int) -> Iterator[None]:
    """Names a key of a source as it stands in the mixture: `data.mixture[0].paths`."""
    try:
        yield
    except ConfigError as error:
        raise error.under(key_of(index, error.key)) from None


def key_of(index: int, key: str) -> str:
    """The key `data.KEY` of a source where it is one of its own, else the key itself."""
    section, _, name = key.partition(".")
    return f"data.{MixtureSource.key_of(index, name)}" if section == "data" else key


def described(config: DataConfig, descriptions: Sequence[str]) -> str:
    """One line about all sources, for a log."""
    pairs = zip(config.mixture, descriptions, strict=True)
    return "; ".join(f"{source.name} ({source.weight:g}): {line}" for source, line in pairs)


# --- Evaluation ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MixedDocuments:
    """What each source of a mixture holds out.

    Attributes:
      by_source: the documents of each, by its name.
      description: one line about all of them, for a log.
    """

    by_source: Mapping[str, EvalDocuments]
    description: str

    def __len__(self) -> int:
        return sum(map(len, self.by_source.values()))

    @property
    def fingerprint(self) -> str:
        """Of text, tokenizer and BOS policy of all sources."""
        return joined_fingerprint([part.fingerprint for part in self.by_source.values()]) or ""

    @property
    def identity(self) -> dict[str, Any]:
        """As `EvalDocuments.identity`, of all together, and of each in `by_source`."""
        found = {name: dict(part.identity) for name, part in self.by_source.items()}
        first = next(iter(found.values()))
        joined = {
            name: joined_fingerprint([identity[name] for identity in found.values()])
            for name in ("corpus_fingerprint", "held_out_fingerprint")
        }
        tokenizer = {"tokenizer_fingerprint": first["tokenizer_fingerprint"]}
        return {**joined, **tokenizer, "by_source": found}

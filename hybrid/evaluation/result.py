"""The result of an evaluation, as numbers for programs; `report.py` makes the table for people."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybrid.evaluation.token_records import TokenRecords


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Mean loss of `num_tokens` tokens at [start, end) of what they are sorted by."""

    start: int
    end: int
    loss: float
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class SourceLoss:
    """The loss of one source of a mixture, as `Result` has it of all."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    num_tokens: int
    num_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Share:
    """Share of right answers among `num` questions."""

    accuracy: float
    num: int


def keyed(name: str) -> Any:
    """A field {key: dataclass} that JSON holds as a list of entries, with the key as `name`."""
    return dataclasses.field(default_factory=dict, metadata={"key": name})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of an evaluation.

    Attributes:
      loss: mean nats a predicted token.  perplexity: its exponential.
      bits_per_byte, num_bytes: None where the tokenizer gives no bytes, and of tasks.
      num_tokens: predicted tokens.
      by_position: losses by how many inputs of its window precede the one that predicts.
      context_length, stride: as used.  bos: the policy.
      count_eos: of text, the key: whether EOS, which has no bytes, is among the predicted tokens.
      records: the raw rows.
      repeats: of text: losses on repeated bigrams by distance to the latest earlier sight.
      accuracy, by_distance, by_num_pairs: of tasks: shares of right answers.
      by_source: of a mixture: the losses of each source, by its name.
      by_context: a Result for each context length in the order given, if there were several.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None = None
    num_tokens: int
    num_bytes: int | None = None
    by_position: tuple[Bucket, ...]
    context_length: int
    stride: int
    bos: str
    count_eos: bool | None = None
    repeats: tuple[Bucket, ...] = ()
    accuracy: float | None = None
    by_distance: Mapping[int, Share] = keyed("distance")
    by_num_pairs: Mapping[int, Share] = keyed("num_pairs")
    by_source: Mapping[str, SourceLoss] = keyed("name")
    by_context: tuple["Result", ...] = ()
    records: TokenRecords = dataclasses.field(repr=False, compare=False)

    @property
    def at_lengths(self) -> tuple["Result", ...]:
        """The result at each context length, in the order given."""
        return self.by_context or (self,)

    @property
    def records_by_length(self) -> dict[int, TokenRecords]:
        """The raw rows of every context length, as `token_records.save_records` takes them."""
        return {result.context_length: result.records for result in self.at_lengths}

    @property
    def per_token(self) -> np.ndarray:
        """Nats of every predicted token in input order, float32 [num_tokens]."""
        return self.records.nll

    def to_dict(self, **about: Any) -> dict[str, Any]:
        """As JSON holds it, with `about` added; numbers that JSON can't write are null.

        What text or a task doesn't have (`repeats`, `accuracy`, …) is left out.
        """
        absent = {"repeats", "count_eos"}
        if self.accuracy is None:
            absent = {"accuracy", "by_distance", "by_num_pairs"}
        absent |= {name for name in ("by_source", "by_context") if not getattr(self, name)}
        values = to_json(dataclasses.replace(self, by_context=()))
        values["by_context"] = [result.to_dict(**about) for result in self.by_context]
        return {name: values[name] for name in values if name not in absent} | about


def to_json(value: Any) -> Any:
    """Plain Python of dataclasses, but for fields without `repr`: lists for tuples and for fields
    that are `keyed`, None for numbers that JSON can't write."""
    if dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if field.repr]
        return {field.name: _field_to_json(field, getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _field_to_json(field: dataclasses.Field, value: Any) -> Any:
    if name := field.metadata.get("key"):
        return [{name: key, **to_json(entry)} for key, entry in value.items()]
    return to_json(value)


def summarized(records: TokenRecords, num_bytes: int | None = None, **about: Any) -> Result:
    """The Result of records whose nll may be wider than float32, with the fields of `about`.

    The mean is summed in float64; the perplexity is infinite where it overflows.
    """
    loss = float(np.sum(records.nll, dtype=np.float64)) / len(records.nll)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(loss))
    return Result(
        loss=loss,
        perplexity=perplexity,
        num_tokens=len(records.nll),
        by_position=doubling_buckets(records.nll, records.position),
        num_bytes=num_bytes,
        bits_per_byte=loss * len(records.nll) / math.log(2) / num_bytes if num_bytes else None,
        records=dataclasses.replace(records, nll=records.nll.astype(np.float32)),
        **about,
    )


def doubling(places: np.ndarray) -> np.ndarray:
    """The index of each place's bucket among [0, 1), [1, 2), [2, 4), …, int32 [n]."""
    # frexp writes p as m·2^e with 1/2 <= m < 1: e is 0 for 0, 1 for 1, 2 for 2 and 3, and so on.
    return np.frexp(places)[1]


def doubling_buckets(nll: np.ndarray, places: np.ndarray) -> tuple[Bucket, ...]:
    """Mean losses at places [0, 1), [1, 2), [2, 4), …; buckets without tokens left out."""
    index = doubling(places)
    counts, sums = np.bincount(index), np.bincount(index, weights=nll)
    return tuple(
        Bucket((1 << i) >> 1, 1 << i, float(sums[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts).tolist()
    )


def shares(correct: np.ndarray, values: np.ndarray) -> dict[int, Share]:
    """Shares of right answers for each of the values that occur, in ascending order."""
    distinct, index = np.unique(values, return_inverse=True)
    counts, right = np.bincount(index), np.bincount(index, weights=correct)
    return {
        value: Share(float(right[i] / counts[i]), int(counts[i]))
        for i, value in enumerate(distinct.tolist())
    }

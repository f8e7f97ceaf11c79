"""The result of an evaluation, as numbers for programs; `report.py` makes the table for people."""

import dataclasses
import math
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
class Group:
    """Share of right answers among `num` questions that have `value` in common."""

    value: int
    accuracy: float
    num: int


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an evaluation.

    Attributes:
      loss: mean nats a predicted token.  perplexity: its exponential.
      bits_per_byte, num_bytes: None where the tokenizer gives no bytes, and of tasks.
      num_tokens: predicted tokens.
      by_position: losses by how many inputs of its window precede the one that predicts.
      context_length, stride: as used.  bos: the policy.
      records: the raw rows.
      repeats: of text: losses on repeated bigrams by distance to the latest earlier sight.
      accuracy, by_distance, by_num_pairs: of tasks: shares of right answers.
      by_context: a Result for each context length in the order given, if there were several.
    """

    loss: float
    perplexity: float
    num_tokens: int
    by_position: tuple[Bucket, ...]
    context_length: int
    stride: int
    bos: str
    records: TokenRecords = dataclasses.field(repr=False, compare=False)
    bits_per_byte: float | None = None
    num_bytes: int | None = None
    repeats: tuple[Bucket, ...] = ()
    accuracy: float | None = None
    by_distance: tuple[Group, ...] = ()
    by_num_pairs: tuple[Group, ...] = ()
    by_context: tuple["Result", ...] = ()

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
        plain = ("loss", "perplexity", "bits_per_byte", "num_tokens", "num_bytes")
        values = {name: _for_json(getattr(self, name)) for name in plain}
        values["by_position"] = _buckets_for_json(self.by_position)
        values |= {name: getattr(self, name) for name in ("context_length", "stride", "bos")}
        if self.accuracy is None:
            values["repeats"] = _buckets_for_json(self.repeats)
        else:
            values["accuracy"] = self.accuracy
            values["by_distance"] = _groups_for_json("distance", self.by_distance)
            values["by_num_pairs"] = _groups_for_json("num_pairs", self.by_num_pairs)
        if self.by_context:
            values["by_context"] = [result.to_dict(**about) for result in self.by_context]
        return values | about


def _for_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _buckets_for_json(buckets) -> list[dict[str, Any]]:
    return [
        {name: _for_json(value) for name, value in dataclasses.asdict(bucket).items()}
        for bucket in buckets
    ]


def _groups_for_json(name: str, groups) -> list[dict[str, Any]]:
    return [{name: one.value, "accuracy": one.accuracy, "num": one.num} for one in groups]


def summarized(records: TokenRecords, **about: Any) -> Result:
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
        records=dataclasses.replace(records, nll=records.nll.astype(np.float32)),
        **about,
    )


def doubling_buckets(nll: np.ndarray, places: np.ndarray) -> tuple[Bucket, ...]:
    """Mean losses at places [0, 1), [1, 2), [2, 4), …; buckets without tokens left out."""
    # frexp writes p as m·2^e with 1/2 <= m < 1: e is 0 for 0, 1 for 1, 2 for 2 and 3, and so on.
    index = np.frexp(places)[1]
    counts, sums = np.bincount(index), np.bincount(index, weights=nll)
    return tuple(
        Bucket((1 << i) >> 1, 1 << i, float(sums[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts).tolist()
    )


def groups(correct: np.ndarray, values: np.ndarray) -> tuple[Group, ...]:
    """Shares of right answers for each of the values that occur, in ascending order."""
    distinct, index = np.unique(values, return_inverse=True)
    counts, right = np.bincount(index), np.bincount(index, weights=correct)
    return tuple(
        Group(int(value), float(right[i] / counts[i]), int(counts[i]))
        for i, value in enumerate(distinct.tolist())
    )

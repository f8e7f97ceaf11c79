"""The summary of a sweep as data.  Its fields are the keys of `summary` in results.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hybrid.ablate.statistics.benchmarks import BenchmarkScore
from hybrid.evaluation.intervals import CountedMean, DocumentMean, Estimate, SeedMean
from hybrid.evaluation.result import keyed

TEXT = "text"  # the task of runs that have no right and wrong


@dataclasses.dataclass(frozen=True)
class RateSummary:
    """Mean loss at one learning rate; None without a finished run."""

    learning_rate: float | None
    loss: float | None
    num_seeds: int


@dataclasses.dataclass(frozen=True)
class ContextSummary:
    """Loss, difference to the partner and accuracy at one evaluated context length."""

    context_length: int
    loss: SeedMean
    difference: CountedMean | None
    accuracy: CountedMean | None


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Loss and difference, by documents, of tokens at positions or distances in [start, end)."""

    start: int
    end: int
    loss: Estimate
    difference: Estimate | None
    num_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellSummary:
    """One cell over its finished seeds, at its best learning rate.

    Attributes:
      partner: the name of the cell that it is paired with, its own for a baseline.
      loss, accuracy: at the first evaluated context length.
      difference: to the partner, paired over seeds; difference_documents: paired by token.
      by_position, repeats: of text, at the longest evaluated context length.
      accuracy, accuracy_by_seed, by_distance, by_num_pairs: of tasks.
      benchmarks: those of `evaluations`.
      num_params … changed: as of its runs; tokens_per_second is the median over seeds.
      effective_speedup: training FLOPs that the partner needs for this loss, over the cell's own.
      on_front: no other cell of the arm has both fewer cache bytes and a lower loss.
    """

    name: str
    overrides: Mapping[str, Any]
    is_baseline: bool
    partner: str | None
    num_seeds: int
    learning_rate: float | None
    learning_rates: tuple[RateSummary, ...]
    loss: SeedMean
    difference: CountedMean | None
    difference_documents: DocumentMean | None = None
    by_context: tuple[ContextSummary, ...] = ()
    by_position: tuple[Bucket, ...] = ()
    repeats: tuple[Bucket, ...] = ()
    accuracy: CountedMean | None = None
    accuracy_by_seed: Mapping[int, CountedMean] = keyed("seed")
    by_distance: Mapping[int, CountedMean] = keyed("distance")
    by_num_pairs: Mapping[int, CountedMean] = keyed("num_pairs")
    benchmarks: tuple[BenchmarkScore, ...] = ()
    num_params: int | None
    flops_per_token: float | None
    train_flops: float | None
    kv_cache_bytes: int | None
    cache_context: int | None
    tokens_per_second: float | None
    reach: int | None
    letters: str
    changed: Mapping[str, Sequence[Any]]
    effective_speedup: float | None
    on_front: bool = False

    def benchmark(self, name: str) -> BenchmarkScore | None:
        """Its scores on the benchmark of that name."""
        return next((each for each in self.benchmarks if each.name == name), None)


@dataclasses.dataclass(frozen=True)
class ArmSummary:
    """The cells of one arm that have a finished run.

    Attributes:
      arm: "" where the sweep has a single arm.  task: text, mqar or needle.
      chance: accuracy of guessing, of a task.
      baseline: the name of the cell that all are paired with; None where there are several.
      context_lengths: in the order evaluated.
    """

    arm: str
    task: str
    chance: float | None
    baseline: str | None
    context_lengths: tuple[int, ...]
    cells: tuple[CellSummary, ...]

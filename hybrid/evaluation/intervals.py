"""95 % intervals over seeds, over documents and of accuracies.  Pure functions on arrays.

    seeds      runs of one cell that differ in their seed: Student's t over the runs
    documents  tokens of one document are not independent: clustered standard error, t with G − 1
    accuracy   right or wrong, often near 0 or 1: Wilson's interval, which stays within [0, 1]

Where no interval can be computed (one seed, one document) its ends are None, never NaN.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95 % interval, None where it has none."""

    mean: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> int | None:
        """1 for an interval above zero, −1 below, 0 where it contains zero; None without one."""
        if self.low is None or self.high is None:
            return None
        return (self.low > 0) - (self.high < 0)

    @property
    def ends(self) -> tuple[float, float]:
        """(low, high); both are the mean where there is no interval."""
        low, high = self.low, self.high
        return (self.mean, self.mean) if low is None or high is None else (low, high)


@dataclasses.dataclass(frozen=True)
class SeedMean(Estimate):
    """A mean over seeds; `std` is the standard deviation (n − 1), None for one seed."""

    std: float | None


@dataclasses.dataclass(frozen=True)
class CountedMean(Estimate):
    """A paired difference over `num` seeds, or the share of right ones among `num` answers."""

    num: int


@dataclasses.dataclass(frozen=True)
class DocumentMean(Estimate):
    """A mean over tokens, its interval over `num_documents` documents."""

    num_documents: int


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Mean of one value a seed, [n]: x̄ ± t(n−1) · s / √n, s with n − 1.

    Raises: ValueError without a value.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    num, mean = len(values), plain_mean(values)
    if num == 1:
        return SeedMean(mean, None, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1))
    half = _half_width(std / math.sqrt(num), num)
    return SeedMean(mean, mean - half, mean + half, std)


def paired_over_seeds(values: Sequence[float], baseline: Sequence[float]) -> CountedMean:
    """Mean of values − baseline, [n] each, entry i of both from the same seed (t interval).

    Pairing takes out what a seed does to both alike: the data order and much of the start.
    """
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    mean = mean_over_seeds(differences)
    return CountedMean(mean.mean, mean.low, mean.high, len(differences))


def mean_over_documents(values: np.ndarray, documents: np.ndarray) -> DocumentMean:
    """Mean of a value (or a paired difference) a token, its interval clustered by document.

        SE² = G/(G−1) · 1/n² · Σ_c (Σ_{i in c} (x_i − x̄))²,      x̄ ± t(G−1) · SE

    over G documents c and n tokens i. Squaring the inner sum gives the cross terms
    (x_i − x̄)(x_j − x̄) of tokens of one document that a standard error over tokens leaves out.
    G/(G−1) makes it the t interval over document means when all documents are equally long.

    Args:
      values: [n] floats, n >= 1.  documents: int [n], equal where tokens share a document.
    Source: the clustered standard error of Miller, "Adding Error Bars to Evals" (2411.00640),
      there without G/(G−1) and with the normal quantile.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    mean = float(np.mean(values, dtype=np.float64))
    _, cluster = np.unique(documents, return_inverse=True)
    sums = np.bincount(cluster, weights=np.asarray(values, np.float64) - mean)
    num = len(sums)
    if num == 1:
        return DocumentMean(mean, None, None, num)
    variance = num / (num - 1) * float(np.sum(sums**2)) / len(values) ** 2
    half = _half_width(math.sqrt(variance), num)
    return DocumentMean(mean, mean - half, mean + half, num)


def wilson(num_right: float, num: int) -> CountedMean:
    """Share of right answers with Wilson's score interval.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),      p = num_right / num, n = num

    Answers that are right in part count as their part, which makes the interval too wide, never
    too narrow: no score from 0 to 1 varies more than one that is only 0 or 1.
    Raises: ValueError for `num` 0.
    """
    if not num:
        raise ValueError("a share needs at least one answer")
    share, z = num_right / num, float(stats.norm.ppf((1 + LEVEL) / 2))
    middle = share + z**2 / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    low, high = ((middle + side * half) / (1 + z**2 / num) for side in (-1, 1))
    return CountedMean(share, max(0.0, min(low, share)), min(1.0, max(high, share)), num)


def first_crossing(compute: Sequence[float], loss: Sequence[float], target: float) -> float | None:
    """Compute at which a curve first reaches `target`, linear in log compute between points.

    Args:
      compute: [n], positive and rising.  loss: [n], evaluated there.
    Returns: None where the curve begins below the target or never comes down to it.
    """
    if not len(loss) or loss[0] < target:
        return None
    if loss[0] == target:
        return float(compute[0])
    for (c0, loss0), (c1, loss1) in itertools.pairwise(zip(compute, loss, strict=True)):
        if loss1 <= target:
            return float(c0 * (c1 / c0) ** ((loss0 - target) / (loss0 - loss1)))
    return None


def plain_mean(values: Sequence[float]) -> float:
    """The mean, the same bits in any order: curves and final losses meet exactly."""
    return math.fsum(values) / len(values)


def _half_width(error: float, num: int) -> float:
    """t(num − 1) · error; scipy's `t.interval` gives NaN where the error is zero."""
    return float(stats.t.ppf((1 + LEVEL) / 2, num - 1)) * error

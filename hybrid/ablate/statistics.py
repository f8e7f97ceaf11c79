"""How sure a figure is: 95 % intervals over seeds, over documents and of accuracies.

Pure functions on arrays; `summary.py` decides what goes in. Three sources of chance, three
intervals:

    seeds      runs of one cell that differ in their seed: Student's t over the runs
    documents  tokens of one document are not independent: clustered standard error, t with G − 1
    accuracy   right or wrong, often near 0 or 1: Wilson's interval, which stays within [0, 1]

An interval that cannot be had (one seed, one document) is None: a mean stays a mean, never NaN.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
_UPPER = (1 + LEVEL) / 2  # the quantile of a two-sided interval


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
      mean: of the values.
      low, high: ends of the interval; None where the values can't tell.
      num: how many independent things stand behind it: seeds, documents or answers.
      std: standard deviation of the values (n − 1), None for one value or where it isn't meant.
    """

    mean: float
    low: float | None
    high: float | None
    num: int
    std: float | None = None


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value a seed: x̄ ± t(n−1) · s / √n, s with n − 1.

    Args:
      values: [n], n >= 1.
    Raises: ValueError without a value.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    num, mean = len(values), plain_mean(values)
    if num == 1:
        return Estimate(mean, None, None, num)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1))
    return _around(mean, std / math.sqrt(num), num, std)


def paired_over_seeds(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Mean of values − baseline, [n] each, entry i of both from the same seed (t interval).

    Pairing takes out what a seed does to both alike: the data order and much of the start.
    """
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    return mean_over_seeds(differences)


def mean_over_documents(values: np.ndarray, documents: np.ndarray) -> Estimate:
    """Mean of a value a token, its interval clustered by document.

        SE² = G/(G−1) · 1/n² · Σ_c (Σ_{i in c} (x_i − x̄))²,      x̄ ± t(G−1) · SE

    over G documents c and n tokens i. Squaring the inner sum gives the cross terms
    (x_i − x̄)(x_j − x̄) of tokens of one document that a standard error over tokens leaves out.
    G/(G−1) makes it the t interval over document means when all documents are equally long. For
    a paired difference the values are differences a token.

    Args:
      values: [n] floats, n >= 1.  documents: int [n], equal where tokens share a document.
    Returns: `num` is G; no interval for G = 1.
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
        return Estimate(mean, None, None, num)
    variance = num / (num - 1) * float(np.sum(sums**2)) / len(values) ** 2
    return _around(mean, math.sqrt(variance), num)


def wilson(num_right: int, num: int) -> Estimate:
    """Share of right answers with Wilson's score interval.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    if not num:
        raise ValueError("a share needs at least one answer")
    share, z = num_right / num, float(ndtri(_UPPER))
    centre = share + z**2 / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    scale = 1 + z**2 / num
    low = 0.0 if num_right == 0 else (centre - half) / scale  # exact at the ends
    high = 1.0 if num_right == num else (centre + half) / scale
    return Estimate(share, low, high, num)


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
    points = zip(compute, loss, strict=True)
    for (c0, loss0), (c1, loss1) in itertools.pairwise(points):
        if loss1 <= target:
            return float(c0 * (c1 / c0) ** ((loss0 - target) / (loss0 - loss1)))
    return None


def plain_mean(values: Sequence[float]) -> float:
    """The mean, the same bits whatever the order: curves and final losses meet exactly."""
    return math.fsum(values) / len(values)


def _around(mean: float, error: float, num: int, std: float | None = None) -> Estimate:
    half = float(stdtrit(num - 1, _UPPER)) * error
    return Estimate(mean, mean - half, mean + half, num, std)

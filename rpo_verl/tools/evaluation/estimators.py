"""pass@k from n samples of each question, and confidence intervals for means over questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
_BLOCK = 1 << 22  # question indices in memory at a time

METHOD = (
    f"{CONFIDENCE:.0%}, over questions: percentile bootstrap ({RESAMPLES:,} resamples, seed {SEED}), never narrower "
    "than the bound for question types absent from the sample; averages over sets by MOVER"
)


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its confidence interval."""

    value: float
    low: float
    high: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Estimate the probability that at least one of k answers is correct, without bias, from c correct ones of n.

    `1 - C(n-c, k) / C(n, k)` (Chen et al. 2021, arXiv 2107.03374, equation 1): the share of the k-subsets of the n
    samples with a correct one. The quotient is the product of `1 - k/i` for i = n-c+1 … n. A sum of logarithms avoids
    huge binomials and cancellation.

    Args:
        samples: n, answers to the question.
        correct: c, the correct ones among them.
        k: from 1 to n.

    Raises:
        ValueError: outside these ranges.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} correct answers of {samples}: expected from 0 to {samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples; k has to be from 1 to {samples}")
    if samples - correct < k:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-k / i) for i in range(samples - correct + 1, samples + 1)))


def mean_interval(values: Sequence[float], lowest: float = 0.0, highest: float = 1.0) -> Estimate:
    """Average one value per question, with a confidence interval for the population of questions.

    Questions are resampled with all their samples. The interval covers the choice of questions and, through their
    spread, the sampling of answers. At either end it is the wider of two:

    - The percentile bootstrap (Efron 1979). Its seed is fixed: equal values have equal intervals.
    - A bound for question types absent from the sample. Their share of the population is at most
      `1 - ((1 - CONFIDENCE) / 2) ** (1 / m)`, or m questions without one would be implausible. They may have the
      lowest or the highest value. Without this bound, few questions or nearly equal values would look certain. For
      all 0 and all 1 it is Clopper and Pearson's interval (1934).

    Args:
        values: (m,) one number per question, within [lowest, highest].
        lowest: least possible value.
        highest: greatest possible value.

    Raises:
        ValueError: if there are no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise ValueError("no questions, so no mean")
    mean, tail = float(array.mean()), (1.0 - CONFIDENCE) / 2.0
    low, high = (float(bound) for bound in np.quantile(_resampled_means(array), [tail, 1.0 - tail]))
    unseen = 1.0 - tail ** (1.0 / array.size)
    return Estimate(mean, min(low, mean - unseen * (mean - lowest)), max(high, mean + unseen * (highest - mean)))


def _resampled_means(values: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(SEED)
    at_a_time = max(1, _BLOCK // values.size)
    sizes = [min(at_a_time, RESAMPLES - start) for start in range(0, RESAMPLES, at_a_time)]
    return np.concatenate([values[random.integers(0, values.size, (size, values.size))].mean(axis=1) for size in sizes])


def macro_average(estimates: Sequence[Estimate]) -> Estimate:
    """Average over data sets with equal weights.

    The method of variance estimates recovery combines their intervals (MOVER; Zou and Donner 2008, Statistics in
    Medicine 27:1693). Distances from value to bound add up as squares, separately for each side. That takes sets
    without common questions.

    Raises:
        ValueError: if there are no estimates.
    """
    if not estimates:
        raise ValueError("no data sets, so no average")
    count = len(estimates)
    value = sum(estimate.value for estimate in estimates) / count
    below = math.hypot(*(estimate.value - estimate.low for estimate in estimates)) / count
    above = math.hypot(*(estimate.high - estimate.value for estimate in estimates)) / count
    return Estimate(value, value - below, value + above)

"""pass@k from n samples of each question, and how far the mean over questions can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
_BLOCK = 1 << 22  # drawn question numbers in memory at a time

METHOD = (
    f"{CONFIDENCE:.0%}, over questions: percentile bootstrap ({RESAMPLES:,} resamples, seed {SEED}), never narrower "
    "than what kinds of questions that were not met could change; averages over sets by MOVER"
)


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its confidence interval."""

    value: float
    low: float
    high: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k answers is right, estimated without bias from n answers of which c are right.

    `1 - C(n-c, k) / C(n, k)` (Chen et al. 2021, arXiv 2107.03374, equation 1): the share of the k-subsets of the n
    samples that hold a right one. The quotient is the product of `1 - k/i` for i = n-c+1 … n, here summed as logarithms
    so that neither huge binomials nor the difference of nearly equal numbers occurs.

    Args:
        samples: n, answers drawn for the question.
        correct: c, right ones among them.
        k: from 1 to n; the estimator does not exist beyond.

    Raises:
        ValueError: outside these ranges.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} correct answers of {samples}: from 0 to {samples} can be")
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples; k has to be from 1 to {samples}")
    if samples - correct < k:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-k / i) for i in range(samples - correct + 1, samples + 1)))


def mean_interval(values: Sequence[float], lowest: float = 0.0, highest: float = 1.0) -> Estimate:
    """The mean of one value a question, with an interval for the mean over all questions of that kind.

    Questions are what is resampled, each with all its samples: the interval covers which questions were asked and, in
    their spread, the luck of the sampling. It is the wider one, at either end, of two:

    - the percentile bootstrap (Efron 1979), whose seed is fixed, so that the same values give the same interval;
    - what the values cannot show. Questions unlike all m that were asked may be a share of up to
      `1 - ((1 - CONFIDENCE) / 2) ** (1 / m)` before m questions without one become implausible, and may have the lowest
      or the highest value. Without this, few questions or values that nearly all agree would look like certainty. For
      all 0 and all 1 it is Clopper and Pearson's interval (1934).

    Args:
        values: (m,) one number a question, within [lowest, highest].
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
    """The mean over data sets, each counting the same.

    The sets' intervals are put together by the method of variance estimates recovery (MOVER; Zou and Donner 2008,
    Statistics in Medicine 27:1693): distances from value to bound add up as squares, each side by itself, because the
    sets have no question in common.

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

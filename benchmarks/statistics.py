"""Differences of arms over paired seeds, with intervals, and how far a further seed would have to lie to undo them.

Arms of one seed have the same questions, so differences are taken seed by seed. Their mean has Student's t interval;
five seeds are few, so it is wide.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import mpmath

Record = Mapping[str, Any]
CONFIDENCE = 0.95


@cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Half the width of Student's t interval in standard errors, from the regularized incomplete beta function.

    Args:
        degrees: of freedom, at least 1.
        confidence: probability within.
    """

    def excess(t: float) -> float:
        beyond = mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True)
        return beyond - (1 - confidence)

    return float(mpmath.findroot(excess, (0.1, 1000), solver="illinois", maxsteps=200))


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences; without an interval where there is one pair."""

    pairs: int
    mean: float
    low: float | None
    high: float | None

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def paired(differences: Sequence[float]) -> Difference:
    """Compute the mean of the differences, one per seed, with its 95 % t interval.

    Raises:
        ValueError: if there are none.
    """
    if not differences:
        raise ValueError("differences is empty: the arms share no seed")
    mean, n = fmean(differences), len(differences)
    if n == 1:
        return Difference(1, mean, None, None)
    half = t_quantile(n - 1) * stdev(differences) / math.sqrt(n)
    return Difference(n, mean, mean - half, mean + half)


def kept_between(differences: Sequence[float]) -> tuple[float, float] | None:
    """Between which differences of one further seed the interval over all seeds leaves 0 out.

    A seed far on the same side undoes a result too, because it widens the interval.

    Args:
        differences: of at least two seeds.

    Returns:
        None if no further seed can do it. Otherwise its ends, which the sign of the mean is the same between.
    """
    n, mean, t = len(differences), fmean(differences), t_quantile(len(differences))
    squares = sum((d - mean) ** 2 for d in differences)
    # With x: mean' = (n mean + x)/(n + 1), squares' = squares + n (x - mean)²/(n + 1), and 0 is left out where
    # mean'² > t² squares'/(n (n + 1)). That is a x² + b x + c > 0, with a < 0, times (n + 1)².
    a = 1 - t**2
    b = 2 * mean * (n + t**2)
    c = mean**2 * (n**2 - t**2) - t**2 * squares * (n + 1) / n
    inside = b * b - 4 * a * c
    if inside < 0:
        return None
    root = math.sqrt(inside)
    return (-b + root) / (2 * a), (-b - root) / (2 * a)


def overturned(differences: Sequence[float], form: str = "{:+.1f}", unit: str = "points") -> str:
    """Say in one sentence what a further seed would have to be to undo the result.

    Args:
        differences: one per seed.
        form: of a difference.
        unit: of a difference.
    """
    found = paired(differences)
    if found.pairs == 1:
        return "One seed shows no difference; there is no interval."
    interval = f"[{form.format(found.low)}, {form.format(found.high)}] {unit}"
    between = kept_between(differences)
    if not found.is_shown:
        if between is None:
            return f"No difference is shown ({interval}), and no single further seed could show one."
        ends = " and ".join(form.format(end) for end in between)
        return f"No difference is shown ({interval}); one further seed between {ends} {unit} would show one."
    if between is None:
        return f"A difference is shown ({interval}), and any further seed would undo it."
    near, far = between if found.mean > 0 else between[::-1]
    beyond = ("below", "above") if found.mean > 0 else ("above", "below")
    return (
        f"A difference is shown ({interval}); it holds unless that of a further seed is {beyond[0]} "
        f"{form.format(near)} {unit}, or {beyond[1]} {form.format(far)}, which would widen the interval over 0."
    )


def reached(run: Record, accuracy: float, axis: str) -> float | None:
    """Find where the run's accuracy first reaches `accuracy`, linear between the points of its curve.

    Args:
        run: a record of bench.py.
        accuracy: to be reached.
        axis: `seconds` or `tokens`.

    Returns:
        None if it never does.
    """
    before = None
    for point in run["curve"]:
        if point["accuracy"] >= accuracy:
            if before is None:
                return point[axis]
            share = (accuracy - before["accuracy"]) / (point["accuracy"] - before["accuracy"])
            return before[axis] + share * (point[axis] - before[axis])
        before = point
    return None


def area(run: Record, axis: str, budget: float) -> float:
    """Area under accuracy against tokens or seconds, divided by the budget: the mean accuracy while it is spent.

    A run that ends before the budget does keeps its last accuracy; one that goes on is cut.

    Args:
        run: a record of bench.py, whose curve begins before training.
        axis: `seconds` or `tokens`.
        budget: on the axis.

    Raises:
        ValueError: if the curve does not begin at 0, or the budget is not positive.
    """
    points = [(point[axis], point["accuracy"]) for point in run["curve"]]
    if points[0][0] != 0 or budget <= 0:
        raise ValueError(f"area from {points[0][0]} to {budget} {axis}: a curve has to begin at 0, and end later")
    points.append((max(budget, points[-1][0]), points[-1][1]))
    total = 0.0
    for (start, first), (stop, last) in pairwise(points):
        end = min(stop, budget)
        if end <= start:
            continue
        at_end = first + (last - first) * (end - start) / (stop - start)
        total += (end - start) * (first + at_end) / 2
    return total / budget


def differences(of: Mapping[str, float], baseline: Mapping[str, float]) -> list[float]:
    """Differences of an arm from the baseline, both seed → value, on the seeds that both have."""
    return [value - baseline[seed] for seed, value in of.items() if seed in baseline]

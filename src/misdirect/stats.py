"""Intervals, paired tests, centring on chance: plain numbers in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.959963984540054  # the normal's 97.5 % quantile


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """95 % Wilson score interval of a proportion (Wilson 1927). Raises ValueError for n < 1."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a proportion; expected 0 <= successes <= n and n of at least 1")
    p, z2 = successes / n, Z95 * Z95
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # at the borders the formula is exact in algebra but not in floating point
    low = 0.0 if successes == 0 else max(0.0, center - half)
    return Interval(low, 1.0 if successes == n else min(1.0, center + half))


def proportion_stderr(successes: int, n: int) -> float:
    """sqrt(p (1 - p) / n)."""
    p = successes / n
    return math.sqrt(p * (1 - p) / n)


def adjusted_stderr(successes: int, n: int) -> float:
    """Standard error with one success and one failure more, so that none or all of a few right is not certainty."""
    p = (successes + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


def centered(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance): 0 is guessing, 1 is all right."""
    return (accuracy - chance) / (1 - chance)


class Paired(NamedTuple):
    """Two models on the same questions: what changed, with a 95 % interval and McNemar's exact two-sided p-value."""

    difference: float  # accuracy of the second less that of the first
    stderr: float
    low: float
    high: float
    lost: int  # right in the first, wrong in the second
    gained: int
    n: int
    p_value: float


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Paired comparison of two models' right and wrong answers (McNemar 1947, exact binomial form).

    The interval is the adjusted Wald one of Bonett and Price (2012): one question more lost and one more gained, so that
    a few questions without a change do not make an interval of no width. Raises ValueError for other lengths or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{len(first)} and {len(second)} answers cannot be paired; expected the same number, at least 1"
        )
    from scipy.stats import binomtest

    n = len(first)
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    difference = (gained - lost) / n
    stderr = math.sqrt(max(0.0, (gained + lost) / n - difference**2) / n)
    center = (gained - lost) / (n + 2)
    half = Z95 * math.sqrt(((gained + lost + 2) / (n + 2) - center**2) / (n + 2))
    low, high = max(-1.0, min(difference, center - half)), min(1.0, max(difference, center + half))
    p_value = float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0
    return Paired(difference, stderr, low, high, lost, gained, n, p_value)


def check_finite(values: Sequence[float]) -> None:
    """Raises ValueError where some are NaN or infinite: no mean and no test is computed from those."""
    bad = sum(not math.isfinite(x) for x in values)
    if bad:
        raise ValueError(f"{bad} of {len(values)} numbers are NaN or infinite; expected finite ones")


class Mean(NamedTuple):
    value: float
    stderr: float
    low: float
    high: float


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Mean:
    """sum(a) / sum(b) with a standard error that takes the items (documents) as the independent units.

    Linearised: the residuals a_i - r b_i, over the mean of b; Student's interval. A single item has no spread: stderr NaN.
    """
    check_finite([*numerators, *denominators])
    n, total = len(numerators), sum(denominators)
    if not n or total <= 0:
        raise ValueError("no tokens to average over; expected at least one")
    ratio = sum(numerators) / total
    if n == 1:
        return Mean(ratio, math.nan, math.nan, math.nan)
    squares = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    from scipy.stats import t

    stderr = math.sqrt(squares * n / (n - 1)) / total
    half = float(t.ppf(0.975, n - 1)) * stderr
    return Mean(ratio, stderr, ratio - half, ratio + half)


def mean_of_means(values: Sequence[float], stderrs: Sequence[float]) -> Mean:
    """The unweighted mean of independent estimates: its standard error is sqrt(sum of squares) / count."""
    count = len(values)
    value = sum(values) / count
    stderr = math.sqrt(sum(s * s for s in stderrs)) / count
    return Mean(value, stderr, value - Z95 * stderr, value + Z95 * stderr)


def sample_mean(values: Sequence[float]) -> Mean:
    """Mean of a small sample with Student's 95 % interval; one value has no spread: stderr NaN."""
    check_finite(values)
    count = len(values)
    value = sum(values) / count
    if count == 1:
        return Mean(value, math.nan, math.nan, math.nan)
    from scipy.stats import t

    stderr = math.sqrt(sum((x - value) ** 2 for x in values) / (count - 1) / count)
    half = float(t.ppf(0.975, count - 1)) * stderr
    return Mean(value, stderr, value - half, value + half)


def two_sided_p(difference: float, stderr: float, n: int) -> float:
    """Of Student's test that a mean difference of `n` units is 0; 1 where nothing can be said (no spread, or one unit)."""
    check_finite([difference])
    if n < 2 or stderr == 0:
        return 1.0
    check_finite([stderr])
    from scipy.stats import t

    return float(2 * t.sf(abs(difference / stderr), n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): the chance that any rejection among all is false stays below its level."""
    check_finite(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

"""Statistics of two predictors on the same images.

Of `n` images, `both` are right for both predictors, `first` and `second` for one of them alone, and the rest for none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.959963984540054  # of a 95 % interval
EXACT = 1000  # discordant images up to which the test is exact


class Paired(NamedTuple):
    """Counts of images."""

    n: int
    both: int
    first: int
    second: int


def difference(counts: Paired) -> float:
    """Accuracy of the second predictor less that of the first, in [-1, 1]."""
    return (counts.second - counts.first) / counts.n


def interval(counts: Paired) -> tuple[float, float]:
    """95 % interval of the difference, by method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635-2650)."""
    n, both, first, second = counts
    neither = n - both - first - second
    one, two = (both + first) / n, (both + second) / n
    (low_one, high_one), (low_two, high_two) = wilson(both + first, n), wilson(both + second, n)
    phi = _correlation(both, first, second, neither)
    between = two - one

    def reach(below: float, above: float) -> float:
        return math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))

    low = between - reach(two - low_two, high_one - one)
    high = between + reach(high_two - two, one - low_one)
    return max(-1.0, low), min(1.0, high)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share = right / n
    centre = share + Z**2 / (2 * n)
    reach = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def mcnemar(counts: Paired) -> float:
    """Two-sided p value of equal accuracies (McNemar 1947): exact, for many images by the normal distribution."""
    discordant = counts.first + counts.second
    if not discordant:
        return 1.0
    if discordant <= EXACT:
        tail = sum(math.comb(discordant, k) for k in range(min(counts.first, counts.second) + 1))
        return min(1.0, 2 * tail / (1 << discordant))
    deviation = max(0.0, abs(counts.first - counts.second) - 1) / math.sqrt(discordant)
    return math.erfc(deviation / math.sqrt(2))


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Phi of the two predictors with Newcombe's continuity correction; 0 where one of them is always right or wrong."""
    n = both + first + second + neither
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not product:
        return 0.0
    covariance = float(both * neither - first * second)
    if covariance > 0:
        covariance = max(0.0, covariance - n / 2)
    return covariance / math.sqrt(product)

"""Student's t without scipy: its distribution and its quantiles, for whole degrees of freedom."""

from __future__ import annotations

import math
from functools import lru_cache


def t_cdf(t: float, freedom: int) -> float:
    r"""P(T <= t) of Student's t with a whole number of degrees of freedom, by its finite series.

    Source: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4, with :math:`\theta = \arctan(t/\sqrt\nu)`.
    """
    if freedom < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {freedom}")
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for j in range(odd + 2, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (j - 1) / j
    inside = (theta + sine * total) * 2 / math.pi if odd else sine * total
    return min(1.0, max(0.0, 0.5 + inside / 2))  # far out the sum is a last bit off


@lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability, by bisection on the angle of `t_cdf` to the last bit."""
    if not 0 < probability < 1:
        raise ValueError(f"probability must be in (0, 1), got {probability}")
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(64):
        middle = (low + high) / 2
        if t_cdf(math.sqrt(freedom) * math.tan(middle), freedom) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)

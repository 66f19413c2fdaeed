"""Ratios of blocks with a given mean: the capped simplex, the projection onto it, and random points of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import check_fraction

Array = NDArray[np.float64]
LIMIT = 1e9  # entries further out than this are at a bound whatever they are


def mean_of(ratios: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Weighted mean, exact to the bit where all ratios are equal.

    Example:
        >>> mean_of([0.1, 0.1, 0.1]), mean_of([0.0, 1.0], weights=[3, 1])
        (0.1, 0.25)
    """
    x = np.asarray(ratios, dtype=np.float64)
    return float(x[0] + _normalised(weights, len(x)) @ (x - x[0]))


def project(
    values: ArrayLike, share: float, *, weights: ArrayLike | None = None, low: float = 0.0, high: float = 1.0
) -> Array:
    r"""The nearest ratios that have the asked mean and stay within their bounds.

    .. math:: \arg\min_x \tfrac12\|x - v\|^2 \quad\text{with}\quad \sum_k w_k x_k = s\sum_k w_k,\; l \le x_k \le h

    Solved exactly: :math:`x_k = \min(h, \max(l, v_k - \tau w_k))`, whose mean falls piecewise linearly in
    :math:`\tau`; the piece that holds the asked mean is found among the 2K kinks.

    Args:
        values: :math:`v`, ``(K,)``, any finite numbers.
        share: :math:`s`, the mean that the result has.
        weights: :math:`w`, ``(K,)``, positive; None weighs all alike.
        low: :math:`l`.
        high: :math:`h`.
    Returns:
        ``(K,)`` float64. Equal values give ``share`` itself, bit for bit.
    Raises:
        ValueError: No ratios within the bounds have that mean, or a value is not finite.
    Example:
        >>> project([0.9, 0.1, -0.4], 0.2).round(3).tolist()  # the third would be below 0
        [0.6, 0.0, 0.0]

    Source: the set Omega of Lin et al. 2024, arXiv:2309.06256, section 6; the kinks as in Wang and Lu 2015,
    arXiv:1503.01002.
    Differs: the paper normalises sigmoids and does not hold the upper bound.
    """
    v = np.asarray(values, dtype=np.float64)
    check_share(share, low, high)
    if not np.isfinite(v).all():
        raise ValueError(f"ratios to project must be finite, got {v.tolist()}")
    w = _normalised(weights, len(v))
    if (v == v[0]).all() and (w == w[0]).all():
        return np.full(len(v), float(share))
    v = np.clip(v, -(LIMIT**9), LIMIT**9)  # else the next line could overflow
    v = np.clip(v - np.median(v / w) * w, -LIMIT, LIMIT)  # a shift along w changes nothing but the sizes
    return _settle(np.clip(v - _multiplier(v, w, share, low, high) * w, low, high), share, w, low, high)


def check_share(share: float, low: float = 0.0, high: float = 1.0) -> None:
    """Raises `ValueError` unless ratios between two bounds in [0, 1] can have this mean."""
    for name, value in (("initial_share", share), ("low", low), ("high", high)):
        check_fraction(name, value)
    if not low <= share <= high:
        raise ValueError(f"ratios within [{low}, {high}] cannot have the mean initial_share = {share}")


def _normalised(weights: ArrayLike | None, count: int) -> Array:
    w = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (count,) or not (np.isfinite(w) & (w > 0)).all():
        raise ValueError(f"weights must be {count} positive numbers, got {w.tolist()}")
    return w / w.sum()


def _multiplier(v: Array, w: Array, share: float, low: float, high: float) -> float:
    """The tau at which the clipped values have the asked mean."""

    def mean(tau: float) -> float:
        return float(w @ np.clip(v - tau * w, low, high))

    kinks = np.sort(np.concatenate([(v - low) / w, (v - high) / w]))
    first, last = 0, len(kinks) - 1  # mean(kinks[first]) = high >= share >= low = mean(kinks[last])
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if mean(kinks[middle]) >= share else (first, middle)
    above, below = mean(kinks[first]), mean(kinks[last])
    along = (above - share) / (above - below) if above > below else 0.0
    return float(kinks[first] + along * (kinks[last] - kinks[first]))


def _settle(x: Array, share: float, w: Array, low: float, high: float) -> Array:
    """Spreads what rounding left of the mean over the ratios that have room."""
    for _ in range(len(x) + 1):
        left = share - float(w @ x)
        room = x < high if left > 0 else x > low
        if left == 0 or not room.any():
            break
        x = np.where(room, np.clip(x + left / w[room].sum(), low, high), x)
    return x


def tangent(gradient: Array, weights: ArrayLike | None = None) -> Array:
    """A gradient without its part that would change the mean."""
    w = _normalised(weights, len(gradient))
    return gradient - (w @ gradient) / (w @ w) * w


def random_ratios(
    generator: np.random.Generator,
    share: float | None,
    *,
    blocks: int,
    weights: ArrayLike | None = None,
    sweeps: int = 20,
) -> Array:
    """A point drawn evenly from all ratios in [0, 1] with the asked mean; of all ratios where that is None.

    Pairs of ratios are drawn again along the line that keeps the mean, ``sweeps`` times each, from the even point on.
    """
    if share is None:
        return generator.random(blocks)
    w = _normalised(weights, blocks)
    x = np.full(blocks, float(share))
    for _ in range(sweeps if blocks > 1 else 0):
        for i, j in _pairs(generator, blocks):
            total = w[i] * x[i] + w[j] * x[j]
            lowest, highest = max(0.0, (total - w[j]) / w[i]), min(1.0, total / w[i])
            x[i] = lowest + generator.random() * max(0.0, highest - lowest)
            x[j] = min(1.0, max(0.0, (total - w[i] * x[i]) / w[j]))
    return project(x, share, weights=weights)


def _pairs(generator: np.random.Generator, blocks: int) -> Sequence[tuple[int, int]]:
    order = generator.permutation(blocks)
    return [(int(order[k - 1]), int(order[k])) for k in range(blocks)]

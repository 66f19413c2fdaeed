"""The area under a reward-tax frontier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..measuring.statistics import Array


def staircase(shares: Sequence[float], retentions: Sequence[float]) -> list[int]:
    """The settings that are best at some reward share, the one that keeps most ability first.

    Args:
        shares: Reward share of each setting, 0 for `initial` and 1 for plain's shipping point.
        retentions: Ability kept by each, of the same length.
    Returns:
        Indices with falling retention and rising share: the front without what lies at or below share 0.
    Raises:
        ValueError: A number is not finite: such a setting cannot be placed among the others.
    """
    if not (np.isfinite(shares).all() and np.isfinite(retentions).all()):
        raise ValueError("shares and retentions must be finite: leave out settings whose numbers are missing")
    front, reached = [], 0.0
    for index in sorted(range(len(shares)), key=lambda i: (-retentions[i], -shares[i])):
        if shares[index] > reached:
            front.append(index)
            reached = shares[index]
        if reached >= 1:
            break
    return front


def area(shares: Array, retentions: Array) -> Array:
    r"""Ability kept, averaged over the reward share asked for.

    .. math:: \int_0^1 \rho(x)\,dx

    where :math:`\rho(x)` is the retention, cut to [0, 1], of the *first* setting whose share is at least x, or 0 where
    none gets there. The order is that of `staircase`, found on validation, so that on test no setting is preferred for
    its luck there. On the split that gave the order it is the 2-D hypervolume against (0, 0), cut at share 1.
    `initial`, (0, 1), is every arm's choice at x = 0 and adds no width.

    Args:
        shares: (..., settings).
        retentions: (..., settings).
    Returns:
        (...), 1 for free alignment; 0 without settings.
    Example:
        >>> area(np.array([0.5, 1.0]), np.array([0.9, 0.6])).item()  # half of the way at 0.9, half at 0.6
        0.75
    """
    reached = np.maximum.accumulate(np.clip(shares, 0, 1), axis=-1)
    widths = np.diff(reached, axis=-1, prepend=0.0)
    return (widths * np.clip(retentions, 0, 1)).sum(axis=-1)

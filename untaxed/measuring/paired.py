"""Two models on the same items: their difference with its interval and p.

Everything here is a function of per-item sufficient statistics, (items, k) a model: accuracy has one an item,
perplexity two, a corpus score more. A statistic that is no average over items is formed anew on every resample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .quantiles import t_cdf, t_quantile
from .statistics import (
    FEWEST_SEEDS,
    NOT_FINITE,
    REPLICATES,
    Array,
    Interval,
    draws,
    item_weights,
    p_value,
    student,
    undefined,
)

MOST_FREEDOM = 2000  # beyond, t's quantiles are the normal ones to a thousandth, and its series grows long
UNSEEN = 2  # items right for one model only, one each way, that are counted beside those seen
Over = Literal["items", "seeds", "both"]
OVER: tuple[Over, ...] = ("items", "seeds", "both")


@dataclass(frozen=True)
class Difference:
    """A paired difference.

    Attributes:
        interval: The difference with its 95 % interval; `n` counts seeds.
        p: Two-sided p of "there is no difference"; below 0.05 exactly when the interval excludes 0.
        items: How many items the two models share.
        changed: On how many of them any seed scores differently.
    """

    interval: Interval
    p: float | None
    items: int
    changed: int


def paired_difference(
    statistic: str,
    before: Sequence[Array],
    after: Sequence[Array],
    *,
    over: Over = "both",
    key: str = "",
    replicates: int = REPLICATES,
) -> Difference:
    r"""The difference of two models on the same items, ``after`` minus ``before``, by paired bootstrap.

    Items are resampled once for both models and all seeds, so that what an item does to both cancels. Of n seeds no
    sample is drawn: the variance over all resamples of n values is known, :math:`s^2 (n-1)/n^2`, and it is corrected
    by :math:`n/(n-1)` for what few values hide. With v the bootstrap variance of the seed mean over N items, likewise
    corrected by :math:`N/(N-1)` where only items count, the interval is

    ==========  =====================================================  =====================================
    ``over``    interval                                               says something about
    ==========  =====================================================  =====================================
    ``items``   :math:`\bar d \pm t_{0.975, N-1} \sqrt{v N/(N-1)}`     these trainings, on other items
    ``seeds``   :math:`\bar d \pm t_{0.975, n-1} \sqrt{s^2/n}`         other trainings, on these items
    ``both``    :math:`\bar d \pm \sqrt{t^2 s^2/n + 1.96^2 v}`         other trainings, on other items
    ==========  =====================================================  =====================================

    Where items are right or wrong and few of them change, resamples that hold none of these say that nothing varies.
    Over ``items``, :math:`2/N^2` is added to v there: one item that turned right and one that turned wrong, unseen.

    Args:
        statistic: A row of `untaxed.measuring.statistics.STATISTICS`.
        before: One (items, k) array a seed, or a single one that all seeds of `after` are compared with.
        after: One (items, k) array a seed, the items in the same order.
        over: What is resampled. Fewer than 3 seeds: ``both`` resamples items only and says so, ``seeds`` is undefined.
        key: Names the resample; equal keys and numbers of items are resampled alike.
        replicates: Resamples of the items.
    Raises:
        ValueError: There is nothing to compare, the shapes differ, or a score is not finite.
    Example:
        >>> right, wrong = np.ones((50, 1)), np.zeros((50, 1))
        >>> fell = paired_difference("mean", [right], [np.concatenate([right[:40], wrong[:10]])], over="items")
        >>> round(fell.interval.mean, 2), fell.changed, fell.p < 0.05
        (-0.2, 10, True)

    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation" (paired resamples); Bonett &
    Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data".
    Differs: the interval is t times the bootstrap's standard error, not a pair of percentiles, which over 3 seeds cover
    three times in four; p then has no floor at 1/replicates, which correction for many abilities needs.
    """
    before, after = _checked(before, after, over)
    items, seeds = len(after[0]), len(after)
    found = draws(statistic, [*before, *after], item_weights(key, items, replicates))  # (1 + replicates, models)
    quantity = found[:, len(before) :] - found[:, : len(before)]
    changed = np.any([(one != two).any(axis=1) for one, two in zip(_as_many(before, seeds), after)], axis=0)
    unseen = UNSEEN / items**2 if statistic == "mean" and _right_or_wrong([*before, *after]) else 0.0
    if over == "items":
        return Difference(*_over_items(quantity.mean(axis=1), items, seeds, unseen), items, int(changed.sum()))
    return Difference(*_over_seeds(quantity, over), items, int(changed.sum()))


def _checked(before: Sequence[Array], after: Sequence[Array], over: str) -> tuple[list[Array], list[Array]]:
    if over not in OVER:
        raise ValueError(f"over must be one of {', '.join(OVER)}, got {over!r}")
    if not after or len(before) not in (1, len(after)):
        raise ValueError(f"before must hold one array, or one for each of after's {len(after)}, got {len(before)}")
    shapes = {one.shape for one in (*before, *after)}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"scores must all be (items, k) on the same items, got shapes {sorted(shapes)}")
    if not len(after[0]):
        raise ValueError("there are no items")
    if not all(np.isfinite(one).all() for one in (*before, *after)):
        raise ValueError("a score is not finite")
    return list(before), list(after)


def _as_many(scores: Sequence[Array], count: int) -> Sequence[Array]:
    return list(scores) * count if len(scores) == 1 else scores


def _right_or_wrong(scores: Sequence[Array]) -> bool:
    return all(np.isin(one, (0.0, 1.0)).all() for one in scores)


def _over_seeds(quantity: Array, over: Over) -> tuple[Interval, float | None]:
    seeds = quantity.shape[1]
    if over == "seeds":
        if seeds < FEWEST_SEEDS:
            return undefined(f"{FEWEST_SEEDS} seeds are needed, there are {seeds}", seeds), None
        quantity = quantity[:1]
    return student(quantity), p_value(quantity)


def _over_items(difference: Array, items: int, seeds: int, unseen: float) -> tuple[Interval, float | None]:
    """From the seed mean on the items and on their resamples, (1 + replicates,)."""
    if items < 2:
        return undefined("2 items are needed, there is 1", seeds), None
    if not np.isfinite(difference).all():
        return undefined(NOT_FINITE, seeds), None
    mean = float(difference[0])
    error = math.sqrt(float(difference[1:].var(ddof=1)) * items / (items - 1) + unseen)
    freedom = min(items - 1, MOST_FREEDOM)
    half = t_quantile(0.975, freedom) * error
    p = 2 * t_cdf(-abs(mean) / error, freedom) if error else float(mean == 0)
    return Interval(mean, mean - half, mean + half, seeds, "items only"), p

"""Numbers with their intervals, from per-item scores: statistics, item bootstrap, Student's t, Fieller.

A measure keeps k *sufficient statistics* an item, an array (items, k). A statistic turns their average over items
into the number, so that the number of any resample of the items is one matrix product away.

What an interval is made from is always an array of *draws*, (1 + replicates, seeds): row 0 holds the values themselves,
each further row the values on one resample of the items. Differences, taxes and areas are computed on whole arrays of
draws by the same formula, so every interval carries the noise of all items that went into it; retention, a ratio, to
first order around what was measured (`untaxed.frontier.retained`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import nearest
from .corpus import bleu, chrf
from .quantiles import t_cdf, t_quantile

Array = NDArray[np.float64]

REPLICATES = 1000  # the standard deviation of 1,000 replicates is known to 2 %
NOT_FINITE = "not a finite number on every resample of the items"
FEWEST_SEEDS = 3  # with fewer, the spread over seeds says nothing and the interval is that of the items alone


def _mean(average: Array) -> Array:
    return average[..., 0]


def _token_mean(average: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return average[..., 0] / average[..., 1]


def _perplexity(average: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.exp(_token_mean(average))


def _at_equal_length(average: Array) -> Array:
    """Intercept of a least-squares line; where nothing differs in length, the mean."""
    weight, x, y, xy, xx = np.moveaxis(average, -1, 0)
    spread = weight * xx - x * x
    line = spread > 1e-9 * weight * xx
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(line, (y * xx - x * xy) / spread, np.where(xx == 0, y / weight, np.nan))


# name -> function from sufficient statistics averaged over items, (..., k), to the number, (...)
STATISTICS: dict[str, Callable[[Array], Array]] = {
    "mean": _mean,  # k = 1: the score
    "token_mean": _token_mean,  # k = 2: sum over tokens, number of tokens
    "at_equal_length": _at_equal_length,  # k = 5: 1, x, y, x y, x x of a length difference x; zeros where undefined
    "perplexity": _perplexity,  # k = 2: negative log-likelihood in nats, number of tokens (or words, or bytes)
    "bleu": bleu,  # k = 10: lengths, matched and all n-grams
    "chrf": chrf,  # k = 18: n-grams written, right and matched
}


COUNTED = ("bleu",)  # formulas of counts: they are given one more column, the number of items


def _statistic(name: str) -> Callable[[Array], Array]:
    if name not in STATISTICS:
        raise ValueError(f"unknown statistic {name!r}{nearest(name, STATISTICS)}")
    return STATISTICS[name]


def value(statistic: str, scores: Array) -> float:
    """The number that per-item scores give.

    Args:
        statistic: A row of `STATISTICS`.
        scores: (items, k) sufficient statistics.
    Returns:
        The number; ``nan`` where it is undefined (no items, no tokens).
    Raises:
        ValueError: The statistic is unknown or `scores` is not of two dimensions.
    Example:
        >>> value("token_mean", np.array([[6.0, 2.0], [3.0, 1.0]]))
        3.0
    """
    function = _statistic(statistic)
    if scores.ndim != 2:
        raise ValueError(f"scores must be (items, k), got shape {scores.shape}")
    return float(function(_counted(statistic, scores.mean(axis=0), len(scores)))) if len(scores) else math.nan


def _counted(statistic: str, average: Array, items: int) -> Array:
    """The averages, with the number of items behind them where the formula needs counts."""
    if statistic not in COUNTED:
        return average
    return np.concatenate([average, np.full((*average.shape[:-1], 1), float(items))], axis=-1)


def item_weights(key: str, items: int, replicates: int = REPLICATES, seed: int = 0) -> Array:
    """How often each item stands in each resample, as shares.

    The counts are multinomial and depend on nothing but the arguments: every model of a study is resampled alike, so
    that differences between models keep the items they share.

    Args:
        key: Measure and split, such as ``test/abilities.facts``.
        items: Number of items.
    Returns:
        (1 + replicates, items), rows adding up to 1; row 0 is the sample itself.
    """
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.default_rng([seed, *digest])
    counts = np.ones((1 + replicates, items))
    for row in counts[1:]:
        row[:] = np.bincount(generator.integers(items, size=items), minlength=items)
    return counts / items


def draws(statistic: str, scores: Sequence[Array], weights: Array) -> Array:
    """The number of several models on the sample and on every resample.

    Args:
        scores: One (items, k) array a model.
        weights: (1 + replicates, items), from `item_weights`.
    Returns:
        (1 + replicates, models).
    """
    stacked = np.stack(scores, axis=1)  # (items, models, k)
    items, models, k = stacked.shape
    average = (weights @ stacked.reshape(items, models * k)).reshape(-1, models, k)
    return _statistic(statistic)(_counted(statistic, average, items))


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; `None` where undefined, and `why` says the reason (or a caution)."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    why: str | None = None

    def json(self) -> dict[str, Any]:
        """The same as a mapping for files."""
        return asdict(self)

    @property
    def excludes_zero(self) -> bool:
        """True when the interval is known and 0 lies outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def undefined(why: str, n: int = 0) -> Interval:
    """No number, with the reason."""
    return Interval(None, None, None, n, why)


def seed_covariance(*quantities: Array) -> Array:
    """Covariance of the seed means that the spread over seeds shows: that of the seeds, divided by their number.

    Args:
        quantities: Draws (1 + replicates, seeds) with the same seeds in the same order.
    Returns:
        (len(quantities), len(quantities)); zeros with fewer than `FEWEST_SEEDS` seeds, whose spread says nothing.
    """
    seeds = quantities[0].shape[1]
    if seeds < FEWEST_SEEDS:
        return np.zeros((len(quantities), len(quantities)))
    return np.atleast_2d(np.cov(np.stack([quantity[0] for quantity in quantities]))) / seeds


def item_covariance(*quantities: Array) -> Array:
    """Covariance of the seed means over resamples of the items; zeros without resamples."""
    if quantities[0].shape[0] <= 2:
        return np.zeros((len(quantities), len(quantities)))
    return np.atleast_2d(np.cov(np.stack([quantity[1:].mean(axis=1) for quantity in quantities])))


def _reach(*quantities: Array) -> Array:
    """Squares of what 95 % intervals reach: t² times the seeds' covariance plus z² times that of the items."""
    seeds = quantities[0].shape[1]
    t = t_quantile(0.975, seeds - 1) if seeds >= FEWEST_SEEDS else 0.0
    z = NormalDist().inv_cdf(0.975)
    return t * t * seed_covariance(*quantities) + z * z * item_covariance(*quantities)


def _caution(seeds: int) -> str | None:
    return None if seeds >= FEWEST_SEEDS else f"items only, {seeds} seed{'' if seeds == 1 else 's'}"


def student(quantity: Array) -> Interval:
    r"""The seed mean with its 95 % interval.

    .. math:: \bar x \pm \sqrt{t_{0.975, n-1}^2\,s^2/n + z_{0.975}^2\,v}

    with s² the variance over n seeds and v the bootstrap variance of the seed mean over items. Each has its own
    quantile, since v, unlike s², is not known from a handful of values. With fewer than 3 seeds the interval is
    :math:`\bar x \pm 1.96\sqrt v` and says so.

    Args:
        quantity: Draws (1 + replicates, seeds). For a difference between arms: the draws' paired differences.
    Source: Zou & Donner 2008, "Construction of confidence limits about effect measures" (each part's limits by itself).
    """
    seeds = quantity.shape[1]
    if seeds == 0:
        return undefined("no seed has it")
    if not np.isfinite(quantity).all():
        return undefined(NOT_FINITE, seeds)
    mean, half = float(quantity[0].mean()), math.sqrt(float(_reach(quantity)[0, 0]))
    return Interval(mean, mean - half, mean + half, seeds, _caution(seeds))


def p_value(quantity: Array) -> float | None:
    """Two-sided p of "the mean is 0": the level at which the interval of `student` would end at 0; None without one.

    With both kinds of noise none below 2.6e-12 (z = 7) is told from it.
    """
    if student(quantity).mean is None:
        return None
    seeds, mean = quantity.shape[1], abs(float(quantity[0].mean()))
    spread, noise = float(seed_covariance(quantity)[0, 0]), float(item_covariance(quantity)[0, 0])
    if spread == 0 == noise:
        return float(mean == 0)
    if spread == 0:
        return 2 * NormalDist().cdf(-mean / math.sqrt(noise))
    if noise == 0:
        return 2 * t_cdf(-mean / math.sqrt(spread), seeds - 1)
    low, high = 0.0, 7.0
    for _ in range(40):  # on z, to 12 digits
        z = (low + high) / 2
        t = t_quantile(NormalDist().cdf(-z), seeds - 1)
        low, high = (z, high) if t * t * spread + z * z * noise < mean * mean else (low, z)
    return 2 * NormalDist().cdf(-high)


def with_spread(estimate: Array, without: Array) -> Array:
    r"""Draws of an estimate that is no mean over seeds, with the spread that leaving out one seed at a time shows.

    Args:
        estimate: (1 + replicates,), from all n seeds.
        without: (n,), on the items themselves, from all seeds but one.
    Returns:
        (1 + replicates, n), for `student`: row 0 is :math:`\hat\theta + (n - 1)(\bar\theta_{(\cdot)} - \theta_{(j)})`,
        of mean :math:`\hat\theta` and of the jackknife's variance.

    Source: Tukey 1958, "Bias and confidence in not-quite large samples" (pseudo-values); the mean is not corrected.
    """
    found = np.repeat(estimate[:, None], len(without), axis=1)
    found[0] += (len(without) - 1) * (without.mean() - without)
    return found


def fieller(numerator: Array, denominator: Array) -> Interval:
    r"""The ratio of two paired seed means with its 95 % interval.

    The interval is the set of :math:`\rho` for which :math:`\bar x - \rho\bar y` is not clear of 0:

    .. math:: (\bar x - \rho\bar y)^2 \le M_{xx} - 2\rho M_{xy} + \rho^2 M_{yy}, \quad M = t^2 S/n + z^2 V

    with S the covariance over seeds and V that over items, as in `student`. It is bounded exactly when the
    denominator's own `student` interval excludes 0; otherwise there is no ratio to show.

    Args:
        numerator: Draws (1 + replicates, seeds).
        denominator: Draws of the same seeds in the same order.
    Source: Fieller 1954, "Some problems in interval estimation".
    """
    seeds = numerator.shape[1]
    below = student(denominator)
    if not below.excludes_zero:
        return below if below.mean is None else undefined("the denominator is not clear of 0", seeds)
    if not np.isfinite(numerator).all():
        return undefined(NOT_FINITE, seeds)
    x, y = float(numerator[0].mean()), float(denominator[0].mean())
    reach = _reach(numerator, denominator)
    a, b, c = y * y - reach[1, 1], x * y - reach[0, 1], x * x - reach[0, 0]
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(x / y, float(b - root) / float(a), float(b + root) / float(a), seeds, _caution(seeds))

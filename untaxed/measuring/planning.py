"""Before a long run: the least loss that so many items show, and the items that a wanted loss needs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from .statistics import REPLICATES, Array, draws, item_weights, value

POWER, LEVEL = 0.8, 0.05
CORRELATION = 0.5  # of an item's scores before and after alignment, where nothing is known
MOST_ITEMS = 10**12  # that are thought of
WORST = 0.5  # standard deviation of a score between 0 and 1 that is as often one as the other: none is larger


@dataclass(frozen=True)
class Planned:
    """An ability on the items at hand.

    Attributes:
        items: How many there are.
        deviation: Standard deviation over items of one item's loss, in the ability's own unit.
        room: What `initial` has above chance, of which a tax is a share; None where it is not known yet.
        whole: Whether an item is right or wrong, 1 or 0: a loss then flips items, and varies by that alone.
    """

    items: int
    deviation: float
    room: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ValueError(f"at least one item is needed, got {self.items}")
        if not (math.isfinite(self.deviation) and self.deviation >= 0):
            raise ValueError(f"deviation must be 0 or more, got {self.deviation}")
        if self.room is not None and not (math.isfinite(self.room) and self.room > 0):
            raise ValueError(f"room must be above 0, got {self.room}: initial is not above chance, nothing can be lost")


@dataclass(frozen=True)
class Detectable:
    """The least loss that will probably be seen.

    Attributes:
        loss: In the ability's own unit; None for a mean over several abilities.
        tax: As a share of what `initial` has above chance; None where that is not known.
        items: Of all abilities together.
    """

    loss: float | None
    tax: float | None
    items: int
    power: float
    level: float

    def __str__(self) -> str:
        tax = None if self.tax is None else f"a tax of {self.tax:.3f}"
        loss = None if self.loss is None else f"a loss of {self.loss:.3f}"
        what = f"{loss} ({tax})" if loss and tax else loss or tax
        return f"{what} is seen on {self.items} items in {self.power:.0%} of cases".replace("%", " %")


def expected_deviation(statistic: str, scores: Array, correlation: float = CORRELATION) -> float:
    r"""Standard deviation of one item's loss, expected from the initial model's scores alone.

    .. math:: \sigma_d = \sigma \sqrt{2 (1 - r)}

    where :math:`\sigma` is that of one item's score, and r the correlation of an item's scores before and after. A
    statistic that is no mean over items has the :math:`\sigma` that its bootstrap standard error stands for,
    :math:`\sqrt N` times it.

    Args:
        statistic: A row of `untaxed.measuring.statistics.STATISTICS`.
        scores: (items, k) sufficient statistics of `initial`.
        correlation: r, assumed; below 1. Right-or-wrong scores of which alignment flips a share f, as many each way,
            at an accuracy a have r = 1 - f / (2 a (1 - a)).
    Example:
        >>> half = np.arange(400).reshape(-1, 1) % 2.0  # right on every other item
        >>> round(expected_deviation("mean", half, correlation=0.5), 1)
        0.5
    """
    return _deviation(statistic, [scores]) * _factor(correlation)


def worst_deviation(correlation: float = CORRELATION) -> float:
    """The largest that `expected_deviation` can be for scores between 0 and 1: an accuracy of one half."""
    return WORST * _factor(correlation)


def pilot_deviation(statistic: str, before: Array, after: Array) -> float:
    """Standard deviation of one item's loss, from a pilot: both models on the same items, (items, k) each."""
    if before.shape != after.shape:
        raise ValueError(f"the pilot's models need the same items, got shapes {before.shape} and {after.shape}")
    return _deviation(statistic, [before, after])


def planned(statistic: str, scores: Array, *, chance: float = 0.0, correlation: float = CORRELATION) -> Planned:
    """An ability as `initial` scores it, (items, k), ready for `minimum_detectable`.

    Raises:
        ValueError: `initial` is not above chance.
    """
    whole = statistic == "mean" and bool(np.isin(scores, (0.0, 1.0)).all())
    room = value(statistic, scores) - chance
    return Planned(len(scores), expected_deviation(statistic, scores, correlation), room, whole)


def _factor(correlation: float) -> float:
    if not -1 <= correlation < 1:
        raise ValueError(f"correlation must be in [-1, 1), got {correlation}")
    return math.sqrt(2 * (1 - correlation))


def _deviation(statistic: str, scores: Sequence[Array]) -> float:
    items = len(scores[0])
    if items < 2:
        raise ValueError(f"2 items or more are needed, got {items}")
    if not all(np.isfinite(one).all() for one in scores):
        raise ValueError("a score is not finite")
    if statistic == "mean":  # exact
        return float(np.std(scores[-1] - (scores[0] if len(scores) > 1 else 0), ddof=1))
    found = draws(statistic, scores, item_weights("planning", items, REPLICATES))
    change = found[1:, -1] - (found[1:, 0] if len(scores) > 1 else 0)
    return float(np.std(change, ddof=1)) * items / math.sqrt(items - 1)


def minimum_detectable(
    abilities: Planned | Sequence[Planned], *, power: float = POWER, level: float = LEVEL
) -> Detectable:
    r"""The least loss that a comparison on these items finds with the given probability.

    .. math:: \delta = (q_{1 - \alpha/2} + q_{power}) \frac{\sigma_d}{\sqrt N}

    with q the normal quantiles: 2.80 standard errors by default. As a tax it is divided by what `initial` has above
    chance; the tax on several abilities is their mean, and its error
    :math:`\sqrt{\sum_t \sigma_t^2 / (N_t\,room_t^2)} / T`.

    Where items are right or wrong, a loss :math:`\delta` flips a share :math:`\delta` of them at least, which alone
    varies by :math:`\delta (1 - \delta)`: it is never below :math:`q^2 / (N + q^2)`, even where `initial` is
    always right and its scores do not vary at all.

    It counts the noise of items only: trainings that differ from seed to seed need a larger loss still. From about 30
    items on the formula holds.

    Args:
        abilities: One ability, or those whose mean tax is asked for.
        power: Probability of finding it.
        level: Two-sided probability of finding one where there is none.
    Example:
        >>> print(minimum_detectable(Planned(items=400, deviation=0.4, room=0.8)))
        a loss of 0.056 (a tax of 0.070) is seen on 400 items in 80 % of cases

    Source: the usual formula of a paired comparison, Cohen 1988, "Statistical power analysis", chapter 2.
    """
    parts = [abilities] if isinstance(abilities, Planned) else list(abilities)
    if not parts:
        raise ValueError("no ability was given")
    sum_of = quantiles(power, level)
    errors = [_error(part, sum_of) for part in parts]
    loss = sum_of * errors[0] if len(parts) == 1 else None
    rooms = [part.room for part in parts]
    known = [room for room in rooms if room is not None]
    tax = None
    if len(known) == len(rooms):
        tax = sum_of * math.sqrt(sum((error / room) ** 2 for error, room in zip(errors, known))) / len(parts)
    return Detectable(loss, tax, sum(part.items for part in parts), power, level)


def _error(part: Planned, sum_of: float) -> float:
    """Standard error of a mean loss; of right-or-wrong items at least that of the loss which it finds."""
    least = sum_of / (part.items + sum_of**2) if part.whole else 0.0
    return max(part.deviation / math.sqrt(part.items), least)


def items_needed(deviation: float, loss: float, *, power: float = POWER, level: float = LEVEL) -> int:
    r"""How many items an ability needs so that a loss of that size is found: :math:`(q \sigma_d / \delta)^2`.

    Args:
        deviation: Standard deviation over items of one item's loss.
        loss: What is to be found, in the same unit; a tax times what `initial` has above chance.
    Example:
        >>> items_needed(deviation=0.4, loss=0.02)
        3140
    """
    if not (math.isfinite(loss) and loss > 0):
        raise ValueError(f"the loss to be found must be above 0, got {loss}")
    return max(2, math.ceil((quantiles(power, level) * Planned(1, deviation).deviation / loss) ** 2))


def items_for_tax(
    abilities: Planned | Sequence[Planned], tax: float, *, power: float = POWER, level: float = LEVEL
) -> int:
    """How many items in all, shared out among the abilities as they are now, find a tax of that size.

    The inverse of `minimum_detectable`, found by bisection.

    Args:
        abilities: One ability, or those whose mean tax is asked for; what `initial` has of each is known.
        tax: What is to be found, a share of what `initial` has above chance.
    Example:
        >>> items_for_tax(Planned(items=400, deviation=0.4, room=0.8), tax=0.02)
        4906
    """
    parts = [abilities] if isinstance(abilities, Planned) else list(abilities)
    if not (math.isfinite(tax) and tax > 0):
        raise ValueError(f"the tax to be found must be above 0, got {tax}")
    if any(part.room is None for part in parts):
        raise ValueError("a tax is a share of what initial has above chance: give every ability its room")
    now = sum(part.items for part in parts)

    def finds(items: int) -> bool:
        scaled = [replace(part, items=max(1, round(items * part.items / now))) for part in parts]
        least = minimum_detectable(scaled, power=power, level=level).tax
        assert least is not None
        return least <= tax

    return bisect_left(range(MOST_ITEMS), True, lo=2 * len(parts), key=finds)


def quantiles(power: float = POWER, level: float = LEVEL) -> float:
    """The standard errors that a difference must have to be found: 2.80 by default."""
    for name, number in (("power", power), ("level", level)):
        if not 0 < number < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {number}")
    return NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)

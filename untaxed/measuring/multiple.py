"""Many comparisons at once: p values adjusted for their number, and which of many abilities really fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .statistics import Interval

LEVEL = 0.05
Finding = Literal["drop", "gain", "unclear"]


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number, in the order given.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """p values adjusted so that of those below a level at most that share is expected to be false, in the order given.

    The i-th smallest of m becomes the least of p_(j) m / j over j >= i.

    Raises:
        ValueError: A p is outside [0, 1] or no number.
    Source: Benjamini & Hochberg 1995, "Controlling the false discovery rate".
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must be in [0, 1], got {list(p_values)}")
    adjusted, running = [0.0] * len(p_values), 1.0
    for rank, index in reversed(list(enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i]), start=1))):
        running = min(running, p_values[index] * (len(p_values) / rank))
        adjusted[index] = running
    return adjusted


@dataclass(frozen=True)
class Drop:
    """What happened to one of several abilities.

    Attributes:
        loss: Initial minus aligned in the ability's own unit; positive is lost.
        p: Two-sided p of "nothing was lost or won".
        p_adjusted: The same after Benjamini-Hochberg over all abilities that have a p.
        real: ``drop`` or ``gain`` where `p_adjusted` is below the level, ``unclear`` where not, None without a p.
    """

    ability: str
    unit: str
    loss: Interval
    p: float | None
    p_adjusted: float | None
    real: Finding | None


def real_drops(
    losses: Mapping[str, tuple[Interval, float | None]], units: Mapping[str, str] | None = None, level: float = LEVEL
) -> list[Drop]:
    """Which of many abilities really fell: at most a share `level` of those named is expected to be named by chance.

    Args:
        losses: Ability -> (loss with its interval, p): initial minus aligned, paired on the same items. An ability
            whose p is None is listed and not counted.
        units: Ability -> what its loss counts.
        level: The false discovery rate that is accepted.
    Returns:
        One row an ability, in the order given.
    Example:
        >>> lost = {"facts": (Interval(0.2, 0.1, 0.3, 5), 0.004), "sums": (Interval(0.1, 0.0, 0.2, 5), 0.04)}
        >>> [(row.ability, row.p_adjusted, row.real) for row in real_drops(lost)]
        [('facts', 0.008, 'drop'), ('sums', 0.04, 'drop')]

    Source: Benjamini & Hochberg 1995. Abilities that share seeds and items err together; the rate still holds for such
    positive dependence (Benjamini & Yekutieli 2001), and the sign of what is named is right at the same rate
    (Benjamini & Yekutieli 2005, for independent tests).
    """
    tested = {name: p for name, (_, p) in losses.items() if p is not None}
    adjusted = dict(zip(tested, benjamini_hochberg(list(tested.values()))))
    return [
        Drop(name, (units or {}).get(name, ""), loss, p, adjusted.get(name), _real(loss, adjusted.get(name), level))
        for name, (loss, p) in losses.items()
    ]


def _real(loss: Interval, adjusted: float | None, level: float) -> Finding | None:
    if adjusted is None or loss.mean is None:
        return None
    if adjusted >= level:
        return "unclear"
    return "drop" if loss.mean > 0 else "gain"

"""From numbers to pixels: an axis, its round ticks, and the marks of the arms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Outlines about the origin, 10 wide, one an arm: told apart without colour.
MARKERS = (
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z",  # circle
    "M-4,-4h8v8h-8z",  # square
    "M0,-5.5L5.5,0L0,5.5L-5.5,0z",  # diamond
    "M0,-5.2L5.2,4H-5.2z",  # triangle
    "M0,5.2L5.2,-4H-5.2z",  # triangle, point down
    "M-1.7,-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",  # plus
    "M0,-5.5L1.6,-1.8L5.3,-1.7L2.4,0.8L3.3,4.5L0,2.4L-3.3,4.5L-2.4,0.8L-5.3,-1.7L-1.6,-1.8z",  # star
)
COLOURS = 6  # arm-0 … arm-5 in the style sheet


@dataclass(frozen=True)
class Look:
    """How an arm looks: a class of the style sheet (its colour) and an outline."""

    style: str
    marker: str


def looks(arms: Iterable[tuple[str, bool, bool]]) -> dict[str, Look]:
    """A look for every (name, plain, early_stopping): these two in ink, the others each in a colour and a shape."""
    found, index = {}, 0
    for name, plain, stopped in arms:
        if plain or stopped:
            found[name] = Look("arm-plain" if plain else "arm-stopped", MARKERS[0])
        else:
            found[name] = Look(f"arm-{index % COLOURS}", MARKERS[1 + index % (len(MARKERS) - 1)])
            index += 1
    return found


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low`…`high` to pixels `start`…`end`, with (pixel, label) ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[tuple[float, str]]

    def __call__(self, value: float) -> float:
        """The pixel of a value; values outside stay at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def axis(
    values: Iterable[float], start: float, end: float, *, most: int = 6, pad: float = 0.04, share: bool = False
) -> Axis:
    """An axis that holds the values with a little room on both sides and has at most so many round ticks.

    An axis of shares ends at 0 and 1, unless a value lies beyond: there is no room outside.
    """
    found = [value for value in values if math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    room = (high - low) * pad if high > low else abs(low) * 0.5 or 1.0
    least, greatest = (min(low, 0.0), max(high, 1.0)) if share else (-math.inf, math.inf)
    low, high = max(low - room, least), min(high + room, greatest)
    step = _round_step((high - low) / max(1, most))
    first = math.ceil(low / step)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    places += 1 if round(step * 10**places) != round(step * 10**places, 6) else 0  # 0.25 needs two
    scale = Axis(low, high, start, end, [])
    numbers = [index * step for index in range(first, math.floor(high / step) + 1)]
    ticks = [(scale(number), f"{number + 0.0:.{places}f}".replace("-", "−")) for number in numbers]
    return Axis(low, high, start, end, ticks)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-9))

"""What a search of ratios is for: most reward, least tax, or the whole front of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_number
from ._simplex import Array


@dataclass(frozen=True)
class Evaluation:
    """Ratios, and what an evaluator said of their average.

    Attributes:
        ratios: By block.
        values: ``reward`` and ``tax``, None where undefined, and whatever else the evaluator returned.
        seconds: How long it took.
    """

    ratios: dict[str, float]
    values: Mapping[str, Any]
    seconds: float = 0.0


def points(evaluations: Sequence[Evaluation]) -> Array:
    """Reward and tax, ``(evaluations, 2)``; NaN where undefined."""
    rows = [[evaluation.values[name] for name in ("reward", "tax")] for evaluation in evaluations]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def front(values: Array) -> list[int]:
    """Which of the points no other one dominates, from most reward down; of equal points the first.

    Example:
        >>> front(np.array([[1.0, 0.5], [0.5, 0.6], [0.4, 0.1], [1.0, 0.5]]))
        [0, 2]
    """
    found, least = [], np.inf
    for index in np.lexsort((np.arange(len(values)), values[:, 1], -values[:, 0])):
        if np.isfinite(values[index]).all() and values[index, 1] < least:
            found.append(int(index))
            least = values[index, 1]
    return found


class Goal(ABC):
    """Orders ratios by what they come to."""

    @abstractmethod
    def order(self, values: Array, seen: Array) -> list[int]:
        """Indices of the points in ``values`` ``(n, 2)``, the best first, given what was ``seen`` ``(m, 2)`` before."""

    @abstractmethod
    def meets(self, value: Array) -> bool:
        """Whether a point keeps to the goal's limit."""

    def best(self, values: Array) -> int | None:
        """The best point that keeps to the limit; None: there is none."""
        first = self.order(values, values[:0])[:1]
        return first[0] if first and self.meets(values[first[0]]) else None


@dataclass(frozen=True)
class MostReward(Goal):
    """Most reward among averages of little tax.

    Args:
        tax_at_most: The limit; infinite searches for reward alone.
    """

    tax_at_most: float

    def order(self, values: Array, seen: Array) -> list[int]:
        return _by(np.maximum(0.0, values[:, 1] - self.tax_at_most), -values[:, 0])

    def meets(self, value: Array) -> bool:
        return bool(np.isfinite(value).all() and value[1] <= self.tax_at_most)


@dataclass(frozen=True)
class LeastTax(Goal):
    """Least tax among averages of enough reward.

    Args:
        reward_at_least: The limit.
    """

    reward_at_least: float

    @classmethod
    def keeping(cls, share: float, *, initial: float, aligned: float) -> LeastTax:
        """The limit as a share of what alignment won, such as 0.95.

        Example:
            >>> LeastTax.keeping(0.95, initial=1.0, aligned=3.0)
            LeastTax(reward_at_least=2.9)
        """
        for name, value in (("share", share), ("initial", initial), ("aligned", aligned)):
            check_number(name, value)
        return cls(initial + share * (aligned - initial))

    def order(self, values: Array, seen: Array) -> list[int]:
        return _by(np.maximum(0.0, self.reward_at_least - values[:, 0]), values[:, 1])

    def meets(self, value: Array) -> bool:
        return bool(np.isfinite(value).all() and value[0] >= self.reward_at_least)


@dataclass(frozen=True)
class Front(Goal):
    """All trade-offs: the largest area between the front and a reference point.

    Args:
        reward_from: The reference's reward, that of initial; None: the least that was seen.
        reward_to: Reward beyond this wins nothing, that of aligned; None: all does.
        tax_to: The reference's tax; None: the most that was seen.
    """

    reward_from: float | None = None
    reward_to: float | None = None
    tax_to: float | None = None

    def order(self, values: Array, seen: Array) -> list[int]:
        return _by(-self.gains(values, seen), self._behind(values, seen))

    def meets(self, value: Array) -> bool:
        return bool(np.isfinite(value).all())

    def area(self, values: Array) -> float:
        """The area that these points hold."""
        found = values[front(values)]
        return float(sum(self.gains(found[k : k + 1], found[:k], within=values)[0] for k in range(len(found))))

    def gains(self, values: Array, seen: Array, *, within: Array | None = None) -> Array:
        """By how much each point alone would enlarge the area of those seen, ``(n,)``.

        Args:
            values: ``(n, 2)``.
            seen: ``(m, 2)``.
            within: The points that say where the reference lies, where it is not given; None: both.
        """
        corner = self._reference(np.concatenate([values, seen]) if within is None else within)
        steps = seen[front(seen)][::-1]  # rising reward, rising tax
        top = np.inf if self.reward_to is None else self.reward_to
        edges = np.concatenate([[corner[0]], np.clip(steps[:, 0], corner[0], top), [top]])
        ceilings = np.minimum(np.append(steps[:, 1], corner[1]), corner[1])  # least tax held between two edges
        widths = np.minimum(values[:, :1], edges[1:]) - edges[:-1]
        heights = ceilings - values[:, 1:]
        return (np.maximum(widths, 0) * np.maximum(heights, 0)).sum(axis=1)

    def _reference(self, values: Array) -> tuple[float, float]:
        known = values[np.isfinite(values).all(axis=1)]
        least, most = (known[:, 0].min(), known[:, 1].max()) if len(known) else (0.0, 0.0)
        return (
            float(least if self.reward_from is None else self.reward_from),
            float(most if self.tax_to is None else self.tax_to),
        )

    def _behind(self, values: Array, seen: Array) -> Array:
        """How far each point lies behind the front, for those that win nothing."""
        steps = seen[front(seen)]
        if not len(steps):
            return -values[:, 0]
        deficit = np.maximum(0, steps[None, :, 0] - values[:, None, 0])
        excess = np.maximum(0, values[:, None, 1] - steps[None, :, 1])
        return np.minimum(deficit, excess).max(axis=1)


def _by(*keys: Array) -> list[int]:
    """Indices in the order of the first key, then of the second; what is undefined comes last."""
    undefined = np.isnan(np.stack(keys)).any(axis=0)
    return [int(index) for index in np.lexsort((*reversed(keys), undefined))]

"""The test split read once: every measure of every tested point, on the items and on all their resamples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import DataError
from ..measuring.statistics import REPLICATES, Array, Interval, draws, item_weights, student, undefined
from .points import Facts, Point, Setting, retained

NOT_TESTED = "not measured on test"


class Readings:
    """Draws, (1 + replicates, seeds), of whatever is asked about settings; ``nan`` where something was not measured.

    One measure's resampling weights are made, used for all points at once, and dropped.
    """

    def __init__(self, facts: Facts, settings: Iterable[Setting]) -> None:
        points = [point for setting in settings for point in setting.points.values() if point.values.get("test")]
        self.facts = facts
        self._column = {point: column for column, point in enumerate(dict.fromkeys([facts.initial, *points]))}
        self._draws = {key: self._read(key) for key in facts.keys}

    def _read(self, key: str) -> Array:
        """(1 + replicates, points) of one measure."""
        facts = self.facts
        table = np.full((1 + REPLICATES, len(self._column)), np.nan)
        measured = [point for point in self._column if point.value("test", key) is not None]
        if facts.initial in measured:
            items = len(facts.initial.scores("test", key))
            scores = [_scores(point, key, items) for point in measured]
            columns = [self._column[point] for point in measured]
            table[:, columns] = draws(facts.measure(key)["statistic"], scores, item_weights(f"test/{key}", items))
        return table

    def seeds(self, *settings: Setting | None) -> list[int]:
        """The seeds at which all of the settings were tested, in order."""
        tested = [
            {seed for seed, point in setting.points.items() if point in self._column} if setting else set()
            for setting in settings
        ]
        return sorted(set.intersection(*tested)) if tested else []

    def initial(self, key: str) -> Array:
        """A measured number of the initial model, (1 + replicates, 1)."""
        return self._draws[key][:, :1]

    def number(self, setting: Setting | None, key: str, seeds: Sequence[int] | None = None) -> Array:
        """A measured number at the given seeds, or at all that were tested."""
        seeds = self.seeds(setting) if seeds is None else seeds
        points = [setting.points[seed] for seed in seeds] if setting else []
        return self._draws[key][:, [self._column[point] for point in points]]

    def retention(self, setting: Setting | None, ability: str, seeds: Sequence[int] | None = None) -> Array:
        """Share of one ability that is kept; the noise of `initial` on the same items is in it."""
        key = f"abilities.{ability}"
        return retained(self.number(setting, key, seeds), self.initial(key), self.facts.measure(key)["chance"])

    def tax(self, setting: Setting | None, abilities: Sequence[str], seeds: Sequence[int] | None = None) -> Array:
        """1 - mean retention of a group of abilities, which must not be empty."""
        return 1 - np.mean([self.retention(setting, name, seeds) for name in abilities], axis=0)

    def gain(self, setting: Setting | None, key: str, seeds: Sequence[int] | None = None) -> Array:
        """A number above that of `initial`."""
        return self.number(setting, key, seeds) - self.initial(key)


def _scores(point: Point, key: str, items: int) -> Array:
    scores = point.scores("test", key)
    if len(scores) != items:
        raise DataError(
            f"{key}: {len(scores)} test items at seed {point.seed}, point {point.name!r}, but {items} at initial; "
            "the two were not measured with the same suite"
        )
    return scores


def interval(quantity: Array, why: str = NOT_TESTED, *, said: str | None = None) -> Interval:
    """The interval of draws, or the reason why a number in them is missing.

    Args:
        why: That reason.
        said: What the points themselves say of the number: the reason, or what must be known beside it.
    """
    if quantity.shape[1] == 0 or np.isnan(quantity[0]).any():
        return undefined(said or why if quantity.shape[1] else why)
    return beside(student(quantity), said)


def beside(number: Interval, said: str | None) -> Interval:
    """A number with what must be known beside it, before any caution that it has."""
    return replace(number, why="; ".join(filter(None, [said, number.why])) or None)

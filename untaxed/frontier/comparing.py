"""Arms against plain alignment and against early stopping, on test, at the settings that validation chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..measuring.statistics import FEWEST_SEEDS, Array, Interval, fieller, p_value, student, undefined, with_spread
from .area import area
from .choosing import MATCHED, Choice, Choices, matched_name
from .points import Arm, Facts, Setting
from .readings import NOT_TESTED, Readings, interval

STRICTEST = matched_name(MATCHED[-1])
SHIPPED = ("ship", "last")
SEE_EARLY_STOPPING = "see early_stopping"


def _no_gain(plain: Arm | None) -> str:
    """Why plain's gain is not known, where it is not."""
    if plain is None:
        return "there is no plain arm"
    return "plain's shipping point was not measured on test" if plain.settings else "no run of plain is done"


class Comparison:
    """All arms of a study on one footing.

    Attributes:
        select: The select abilities that are measurable; `report` likewise.
        gain: G on test: the reward that plain's shipping point gained.
        no_match: Why taxes cannot be compared at matched reward, for all arms alike; None where they can.
    """

    def __init__(self, arms: Sequence[Arm], facts: Facts, choices: Choices) -> None:
        self.facts, self.choices = facts, choices
        self.select = [name for name in facts.select if name not in choices.left_out]
        self.report = [name for name in facts.report if name not in choices.left_out]
        chosen = [arm.setting(label) for arm in arms for label in choices.arms[arm.name].labels]
        self.read = Readings(facts, [setting for setting in chosen if setting is not None])
        plain = next((arm for arm in arms if arm.plain), None)
        self._ship = self.chosen(plain, "ship") if plain else None
        self._stopped = self.chosen(plain, STRICTEST) if plain else None
        gain = self.read.gain(self._ship, facts.reward) if facts.reward else np.empty((1, 0))
        self.gain = interval(gain, _no_gain(plain))
        self.no_match = self._no_match()

    def _no_match(self) -> str | None:
        if self.gain.low is None:
            return self.gain.why or NOT_TESTED
        return None if self.gain.low > 0 else "plain's reward gain is not clear of 0"

    def choice(self, arm: Arm, name: str) -> Choice:
        """What was chosen, or where it stands instead: plain's checkpoints are two arms, shipped and stopped early."""
        if arm.plain and name not in SHIPPED:
            return Choice(None, SEE_EARLY_STOPPING)
        if arm.early_stopping and name in SHIPPED:
            return Choice(None, "see plain")
        return self.choices.arms[arm.name].named[name]

    def chosen(self, arm: Arm, name: str) -> Setting | None:
        """The setting of a choice, whichever arm shows it."""
        return arm.setting(self.choices.arms[arm.name].named[name].setting)

    def tax(self, arm: Arm, name: str, abilities: Sequence[str]) -> Interval:
        """The tax at a choice; at matched rewards it is undefined where there is no reward to match."""
        choice = self.choice(arm, name)
        setting = arm.setting(choice.setting)
        if setting is None:
            return undefined(choice.how)
        if name not in SHIPPED and self.no_match:
            return undefined(self.no_match)
        return self.group_tax(setting, abilities)

    def group_tax(self, setting: Setting, abilities: Sequence[str]) -> Interval:
        """The tax of one setting on a group of abilities."""
        if not abilities:
            return undefined("no measurable ability")
        return interval(self.read.tax(setting, abilities), said=setting.why("abilities"))

    def _paired(self, arm: Arm, other: Setting | None, abilities: Sequence[str]) -> tuple[Array, Array] | Interval:
        """Taxes of the arm at matched reward 0.95 and of one of plain's settings, at the seeds that both have."""
        choice = self.choice(arm, STRICTEST)
        setting = arm.setting(choice.setting)
        if self.no_match or setting is None or not abilities:
            return undefined(self.no_match or (choice.how if setting is None else "no measurable ability"))
        seeds = self.read.seeds(setting, other)
        own, yardstick = self.read.tax(setting, abilities, seeds), self.read.tax(other, abilities, seeds)
        missing = interval(own - yardstick).mean is None
        return undefined(NOT_TESTED) if missing else (own, yardstick)

    def beyond(self, arm: Arm) -> tuple[Interval, dict[str, Any] | None]:
        """tax(early stopping) - tax(arm) on the select abilities, with its p and the seeds at which it is above 0."""
        if arm.early_stopping:
            return undefined("it is what the others are compared with"), None
        pair = self._paired(arm, self._stopped, self.select)
        if isinstance(pair, Interval):
            return pair, None
        less = pair[1] - pair[0]
        return student(less), {"better": int((less[0] > 0).sum()), "seeds": less.shape[1], "p": p_value(less)}

    def recovered(self, arm: Arm) -> Interval:
        """1 - tax(arm at matched reward 0.95) / tax(plain's shipping point), on the report abilities."""
        pair = self._paired(arm, self._ship, self.report)
        if isinstance(pair, Interval):
            return pair
        denominator = student(pair[1])
        if denominator.low is None or denominator.low <= 0:
            return undefined("no tax to recover", denominator.n)
        ratio = fieller(*pair)
        if ratio.mean is None or ratio.low is None or ratio.high is None:
            return ratio
        return Interval(1 - ratio.mean, 1 - ratio.high, 1 - ratio.low, ratio.n, ratio.why)

    def area(self, arm: Arm) -> Interval:
        """Each seed's own area under the settings of the arm's staircase."""
        settings = [arm.setting(label) for label in self.choices.arms[arm.name].area]
        if arm.plain:
            return undefined(SEE_EARLY_STOPPING)
        if self.no_match:
            return undefined(self.no_match)
        if not settings:
            return undefined(self.choice(arm, STRICTEST).how)
        seeds = self.read.seeds(*settings)
        own = self._areas(settings, seeds)
        if len(seeds) < FEWEST_SEEDS or not np.isfinite(own).all():
            return interval(own)
        # plain's gain is of these seeds too: each is left out of both, for the spread that it gives the ratio
        without = [self._areas(settings, [one for one in seeds if one != seed], seed)[0].mean() for seed in seeds]
        return interval(with_spread(own.mean(axis=1), np.array(without)))

    def _areas(self, settings: Sequence[Setting | None], seeds: Sequence[int], leaving: int | None = None) -> Array:
        """Each seed's own area, (1 + replicates, seeds), plain's mean gain from all seeds but one as its yardstick."""
        every = self.read.seeds(self._ship)
        others = [seed for seed in every if seed != leaving]
        yardstick = self._gain(self._ship, others or every).mean(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may leave plain no gain
            shares = [self._gain(setting, seeds) / yardstick for setting in settings]
        kept = [1 - self.read.tax(setting, self.select, seeds) for setting in settings]
        # (1 + replicates, seeds, settings) -> (1 + replicates, seeds)
        return area(np.stack(shares, axis=-1), np.stack(kept, axis=-1))

    def share(self, setting: Setting | None) -> Interval:
        """Reward gained, as a share of what plain's shipping point gained, at the seeds that both have."""
        if self.no_match is not None:
            return undefined(self.no_match)
        seeds = self.read.seeds(setting, self._ship)
        own, plain = self._gain(setting, seeds), self._gain(self._ship, seeds)
        both = interval(own - plain)
        return both if both.mean is None else fieller(own, plain)

    def _gain(self, setting: Setting | None, seeds: Sequence[int]) -> Array:
        assert self.facts.reward is not None  # without a reward there is nothing to match
        return self.read.gain(setting, self.facts.reward, seeds)

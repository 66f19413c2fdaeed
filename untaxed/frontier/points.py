"""What the frontier is made from: measured points, settings (a point a seed), arms, and the facts of the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..measuring.statistics import Array, draws, item_weights
from ..measuring.suite import SPLITS

CLEAR = 3.0  # standard errors above chance from which on an ability of `initial` can be lost


@dataclass(frozen=True, eq=False)
class Point:
    """One model that was measured: a run at a step, or a variant made from it.

    Attributes:
        values: Split -> ``{"reward": {name: x}, "abilities": {…}, "drift": {…}}``, or None where it was not measured.
        scores: ``scores(split, "abilities.facts")`` reads the (items, k) sufficient statistics.
        found: What its methods searched or learned, such as ratios of blocks.
        why: Why a number is undefined, or what must be known beside it, by key or whole group.
    """

    seed: int
    name: str
    step: int
    variant: Mapping[str, Any] | None
    phase: str | None
    values: Mapping[str, Mapping[str, Any] | None]
    scores: Callable[[str, str], Array]
    found: Sequence[Mapping[str, Any]] = ()
    why: Mapping[str, str] = field(default_factory=dict)

    def value(self, split: str, key: str) -> float | None:
        """One measured number (``"reward.proxy"``); None where it is missing or not finite."""
        group, name = key.split(".", 1)
        found = ((self.values.get(split) or {}).get(group) or {}).get(name)
        return float(found) if found is not None and math.isfinite(found) else None


@dataclass(frozen=True, eq=False)
class Setting:
    """One choice of an arm's swept values, at one step or as one variant: one point a seed.

    Attributes:
        decoding: How many times the decoding of one model it costs.
    """

    label: str
    values: Mapping[str, Any]
    points: Mapping[int, Point]
    decoding: int = 1

    def why(self, key: str) -> str | None:
        """Why a number (or those of a group) is undefined, or what must be known beside it."""
        return next((point.why[key] for point in self.points.values() if key in point.why), None)

    def mean(self, split: str, key: str) -> float | None:
        """The seed mean of a measured number; None unless every seed has it."""
        found = [point.value(split, key) for point in self.points.values()]
        known = [number for number in found if number is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None


@dataclass(frozen=True, eq=False)
class Arm:
    """One remedy (or list of remedies) with all its settings.

    Attributes:
        seconds: Training time of each of its runs, that of its members included.
        members: Trainings that each of these is of.
        early_stopping: The arm without runs that is plain's checkpoints; its settings may be left empty.
        yardstick: Why it is a curve to compare with and no remedy; empty for a remedy.
    """

    name: str
    methods: Sequence[Any]
    settings: Sequence[Setting]
    plain: bool = False
    early_stopping: bool = False
    seconds: Sequence[float] = ()
    members: int = 1
    peak_bytes: int | None = None
    yardstick: str = ""

    def setting(self, label: str | None) -> Setting | None:
        """The setting of that label."""
        return next((setting for setting in self.settings if setting.label == label), None)

    @property
    def candidates(self) -> list[Setting]:
        """The settings that may be chosen: those with most seeds.

        A setting that lost a seed (its run failed) would be judged on the seeds that survived, and look better for it.
        """
        most = max((len(setting.points) for setting in self.settings), default=0)
        return [setting for setting in self.settings if len(setting.points) == most > 0]


@dataclass(frozen=True)
class Facts:
    """What all arms share.

    Attributes:
        measures: ``{"group", "name", "statistic", "chance", "unit"}`` of every measure, in the order they are shown.
        select: Abilities that choices may look at.
        report: Abilities that are shown and never chosen on.
        initial: The model that alignment starts from, measured on both splits.
    """

    measures: Sequence[Mapping[str, Any]]
    select: Sequence[str]
    report: Sequence[str]
    initial: Point
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if both := set(self.select) & set(self.report):
            raise ValueError(f"abilities are select or report, not both: {', '.join(sorted(both))}")

    def measure(self, key: str) -> Mapping[str, Any]:
        """The description of one measure (``"abilities.facts"``)."""
        return next(measure for measure in self.measures if f"{measure['group']}.{measure['name']}" == key)

    @property
    def keys(self) -> list[str]:
        """The keys of all measures."""
        return [f"{measure['group']}.{measure['name']}" for measure in self.measures]

    @property
    def reward(self) -> str | None:
        """The reward that counts: gold where it is known, else the one that was trained on."""
        return next((key for key in ("reward.gold", "reward.proxy") if key in self.keys), None)

    @property
    def proxy(self) -> str | None:
        """The reward that someone without gold sees."""
        return next((key for key in ("reward.proxy", "reward.gold") if key in self.keys), None)


def retention(ability: Any, initial: Any, chance: float) -> Any:
    r"""Share of the ability above chance that is kept: :math:`(a - c) / (a_{initial} - c)`; numbers or arrays.

    Nothing is cut: an ability that fell below chance has less than 0, one that was won more than 1. Near chance the
    denominator is noise, which is why `left_out` names abilities before they come here.
    """
    return (ability - chance) / (initial - chance)


def retained(ability: Array, initial: Array, chance: float) -> Array:
    r"""Draws of `retention`, to first order around what was measured (the delta method).

    .. math:: r + \frac{(a^* - c) - r\,(a_{initial}^* - c)}{a_{initial} - c}, \quad r = retention(a, a_{initial}, c)

    The ratio of a resample itself has no bound where `initial` comes near chance in it, and neither has its variance.

    Args:
        ability: Draws (1 + replicates, ...), row 0 what was measured.
        initial: Draws on the same resamples.
    Returns:
        The shape of both broadcast; not finite where `initial` itself is at chance.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = retention(ability[0], initial[0], chance)
        change = (ability - chance) - share * (initial - chance)
        return np.asarray(share + change / (initial[0] - chance))


def left_out(facts: Facts) -> dict[str, str]:
    """The abilities of which `initial` has too little to lose measurably, on either split, with the reason."""
    reasons = {}
    for name in [*facts.select, *facts.report]:
        reason = _unmeasurable(facts, f"abilities.{name}")
        if reason:
            reasons[name] = reason
    return reasons


def _unmeasurable(facts: Facts, key: str) -> str | None:
    measure = facts.measure(key)
    for split in SPLITS:
        if facts.initial.value(split, key) is None:
            return f"not measured at initial on {split}"
        if (reason := lacks_room(measure, facts.initial.scores(split, key), split)) is not None:
            return reason
    return None


def lacks_room(measure: Mapping[str, Any], scores: Array, split: str) -> str | None:
    """Why `initial` has too little of an ability on one split to lose measurably; None where it has enough."""
    key = f"{measure['group']}.{measure['name']}"
    values = draws(measure["statistic"], [scores], item_weights(f"{split}/{key}", len(scores)))[:, 0]
    above, error = float(values[0]) - measure["chance"], float(values[1:].std())
    if above > 0 and above >= CLEAR * error:
        return None
    side = "above" if above > 0 else "below"
    return (
        f"initial is {abs(above):.3f} {side} chance ({measure['chance']:.3f}) on {split}; "
        f"{CLEAR:g} standard errors ({error:.3f} each) above it are needed"
    )

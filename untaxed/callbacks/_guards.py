"""Guards: what is done when a reading of the drift meter leaves the limits that were set for it."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from ..errors import Unsupported, nearest
from ..measuring.suite import GENERAL
from ..sites import ALONE, Host

log = logging.getLogger(__name__)

Side = Literal["above", "below"]
Action = Literal["warn", "stop", "lower_lr", "reset"]
Limits = Mapping[str, float | Mapping[str, float]]

MEASURES = ("forward_kl", "entropy", "length", "distinct_1", "distinct_2")
BOTH_SETS = (*MEASURES, *(GENERAL + name for name in MEASURES))
SUITES = ("reward.", "abilities.")  # how measures of a suite meter begin, which has a `tax`, too
RISES = ("forward_kl", "general_forward_kl", "tax")  # have one bad direction, so that a bare number says enough
SLACK = 0.1  # share of its limit by which a value must come back before the same limit counts as crossed again


@dataclass(frozen=True)
class Limit:
    """One limit of one measure."""

    measure: str
    side: Side
    at: float

    def crossed(self, value: float) -> bool:
        """True at the limit and beyond it."""
        return value >= self.at if self.side == "above" else value <= self.at

    def left(self, value: float) -> bool:
        """True when a value that was beyond the limit has come back by more than the slack."""
        return value <= self.at * (1 - SLACK) if self.side == "above" else value >= self.at * (1 + SLACK)


def limits(when: Limits) -> tuple[Limit, ...]:
    """Reads limits as users write them.

    Args:
        when: Each measure's limits by its name: ``{"below": 0.3}``, ``{"above": 90, "below": 3}``; for ``forward_kl``
            and ``general_forward_kl``, which can only grow, a number alone is the limit above.
    Raises:
        ValueError: A measure or a side is unknown, or a limit is no number above 0; the nearest known name is said.
    Example:
        >>> limits({"forward_kl": 0.5, "entropy": {"below": 0.3}})[1]
        Limit(measure='entropy', side='below', at=0.3)
    """
    if not isinstance(when, Mapping) or not when:
        raise ValueError(f'limits are given by measure, such as {{"forward_kl": 0.5}}, got {when!r}')
    found = []
    for measure, value in when.items():
        if measure not in (*BOTH_SETS, "tax") and not str(measure).startswith(SUITES):
            raise ValueError(f"the drift meter has no measure {measure!r}{nearest(str(measure), BOTH_SETS)}")
        if not isinstance(value, Mapping):
            if measure not in RISES:
                raise ValueError(
                    f'{measure} may leave its range on both sides; write {{"below": {value}}} or {{"above": {value}}}'
                )
            value = {"above": value}
        if not value:
            raise ValueError(f'{measure} has no limit; write {{"above": …}}, {{"below": …}} or both')
        found += [_limit(measure, side, at) for side, at in value.items()]
    return tuple(found)


def _limit(measure: str, side: Any, at: Any) -> Limit:
    if side not in get_args(Side):
        raise ValueError(f"{measure} has no side {side!r}{nearest(str(side), get_args(Side))}")
    if isinstance(at, bool) or not isinstance(at, Real) or not math.isfinite(at) or at <= 0:
        raise ValueError(f"the limit {side} of {measure} must be a number above 0, got {at!r}")
    return Limit(measure, side, float(at))


@dataclass(frozen=True)
class Guard:
    """Acts when a reading of the drift meter crosses a limit.

    Args:
        when: The limits, by measure (see `limits`); one that is crossed suffices.
        do: ``warn`` says so, once a crossing. ``stop`` ends the training after this step, as the trainer ends it.
            ``lower_lr`` multiplies the learning rate, once a crossing, and once where several limits are crossed at one
            reading. ``reset`` asks the attached method that resets (`ElasticReset`) to do so at the next free step, at
            every reading beyond the limit.
        factor: Of ``lower_lr``, between 0 and 1.

    A limit counts as crossed again only after the value has come back by a tenth of it, so that a value that trembles
    around its limit does not lower the learning rate at every reading.
    """

    when: Limits
    do: Action = "warn"
    factor: float = 0.5

    def __post_init__(self) -> None:
        limits(self.when)
        if self.do not in get_args(Action):
            raise ValueError(f"a guard cannot {self.do!r}{nearest(str(self.do), get_args(Action))}")
        if isinstance(self.factor, bool) or not isinstance(self.factor, Real) or not 0 < float(self.factor) < 1:
            raise ValueError(f"factor must be a number between 0 and 1, got {self.factor!r}")

    def settings(self) -> dict[str, Any]:
        """The settings as plain values; two ways to write one limit are the same."""
        when = [[limit.measure, limit.side, limit.at] for limit in limits(self.when)]
        return {"when": when, "do": self.do, **({"factor": float(self.factor)} if self.do == "lower_lr" else {})}


def check_guards(guards: object, known: Sequence[str] = MEASURES) -> None:
    """Raises `ValueError` unless these are guards in a list, of measures that the meter takes."""
    listed = list(guards) if isinstance(guards, Iterable) and not isinstance(guards, Mapping) else [guards]
    wrong = [one for one in listed if not isinstance(one, Guard)]
    if wrong or not isinstance(guards, Iterable):
        got = wrong[0] if wrong else "one that is in no list"
        raise ValueError(f'guards are a list of Guard(when={{"forward_kl": 0.5}}, do="warn"), got {got!r}')
    for guard in listed:
        assert isinstance(guard, Guard)
        for measure in guard.when:
            if measure not in known:
                second = measure.startswith(GENERAL) and measure.removeprefix(GENERAL) in known
                way = ": give it general_prompts" if second else nearest(measure, known)
                raise ValueError(f"this meter has no measure {measure!r}{way}")


def say(text: str) -> None:
    """One line in the log of the library."""
    log.warning("%s", text)


class Guards:
    """The live half of guards: which limits are crossed at present.

    Args:
        guards: A meter's.
        host: What they act on.
        known: The meter's measures.
        prefix: Of the keys in the log.
    Raises:
        Unsupported: The training around does not offer what a guard is to do.
    """

    def __init__(
        self,
        guards: Sequence[Guard],
        host: Host = ALONE,
        *,
        known: Sequence[str] = MEASURES,
        prefix: str = "drift",
    ) -> None:
        check_guards(guards, known)
        self._prefix = prefix
        self._guards = [(guard, limits(guard.when)) for guard in guards]
        self._host = host
        self.crossed = [False for _, each in self._guards for _ in each]
        for guard, _ in self._guards:
            if guard.do != "warn" and self._means(guard.do) is None:
                raise Unsupported(
                    f"a guard is to {guard.do!r}, which the loop around does not offer: "
                    f"give Host({_FIELDS[guard.do]}=…)"
                )

    def look(self, reading: Mapping[str, float]) -> dict[str, float]:
        """Acts on one reading.

        Returns:
            What acted, for the log: ``<prefix>/guard/<do>/<measure>`` and the value there.
        """
        acted: dict[str, float] = {}
        numbers = itertools.count()
        for guard, each in self._guards:
            now = [self._now(next(numbers), guard, limit, reading.get(limit.measure)) for limit in each]
            if reached := list(itertools.compress(each, now)):
                self._act(guard, reached, reading)
            for limit in reached:
                acted.setdefault(f"{self._prefix}/guard/{guard.do}/{limit.measure}", reading[limit.measure])
        return acted

    def _now(self, number: int, guard: Guard, limit: Limit, value: float | None) -> bool:
        """Keeps account of one limit; True when its guard has to act now."""
        if value is None:
            return False
        before = self.crossed[number]
        self.crossed[number] = limit.crossed(value) or (before and not limit.left(value))
        return limit.crossed(value) and (guard.do == "reset" or not before)

    def _act(self, guard: Guard, reached: Sequence[Limit], reading: Mapping[str, float]) -> None:
        """Acts once, however many of a guard's limits are reached."""
        what = {
            "warn": "nothing is changed",
            "stop": "training stops here",
            "lower_lr": f"the learning rate is multiplied by {guard.factor:g}",
            "reset": "a reset comes at the next free step, if one is left",
        }
        where = "; ".join(
            f"{limit.measure} is {reading[limit.measure]:.4g}, limit {limit.side} {limit.at:g}" for limit in reached
        )
        say(f"{self._prefix} guard at step {int(reading['step'])}: {where}; {what[guard.do]}")
        means = self._means(guard.do)
        if guard.do == "lower_lr":
            means(guard.factor)
        elif means is not None:
            means()

    def _means(self, do: Action) -> Any:
        return getattr(self._host, _FIELDS[do]) if do in _FIELDS else None


_FIELDS: dict[str, str] = {"stop": "stop", "lower_lr": "scale_lr", "reset": "reset"}

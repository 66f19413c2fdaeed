"""Which setting of each arm stands for it, chosen on seed means of the validation split and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .area import staircase
from .points import Arm, Facts, Setting, left_out, retention

MATCHED = (0.5, 0.8, 0.95)  # shares of plain's reward gain at which taxes are compared
ROUNDING = 1e-9  # of reward shares: a setting that is exactly there may come out a last bit below


def matched_name(share: float) -> str:
    """The name of a matched reward in results: ``q0.95``."""
    return f"q{share:g}"


@dataclass(frozen=True)
class Choice:
    """A setting, or None, and how it came about."""

    setting: str | None
    how: str


@dataclass(frozen=True)
class ArmChoices:
    """What was chosen for one arm.

    Attributes:
        named: ``ship``, ``last`` and the matched rewards (``q0.5`` …) -> the choice.
        area: Labels of the settings under the frontier, in the order of `staircase`.
        settings_of: The arm whose settings these are: itself, or plain for early stopping.
        curve: All settings of a reference curve, which is shown whole; none of a remedy.
    """

    named: Mapping[str, Choice]
    area: tuple[str, ...]
    settings_of: str
    curve: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Every chosen label once."""
        found = [choice.setting for choice in self.named.values() if choice.setting is not None]
        return list(dict.fromkeys([*found, *self.area, *self.curve]))


@dataclass(frozen=True)
class Choices:
    """The choices of every arm, by its name, and the abilities that nothing was chosen on, with the reason."""

    arms: Mapping[str, ArmChoices]
    left_out: Mapping[str, str]

    @property
    def to_test(self) -> list[tuple[str, str]]:
        """(arm, label of a setting) of everything that is to be measured on test."""
        pairs = ((chosen.settings_of, label) for chosen in self.arms.values() for label in chosen.labels)
        return list(dict.fromkeys(pairs))


def with_plain_settings(arms: Sequence[Arm]) -> list[Arm]:
    """The arms, with plain's settings in the place of early stopping's."""
    plain = next((arm for arm in arms if arm.plain), None)
    settings = plain.settings if plain else ()
    return [replace(arm, settings=settings) if arm.early_stopping else arm for arm in arms]


def choose(arms: Sequence[Arm], facts: Facts) -> Choices:
    """Chooses every arm's settings on validation.

    - ``ship``: highest proxy reward, what someone without ability data ships.
    - ``last``: highest proxy reward among the settings of the last step.
    - matched reward q: least tax on the select abilities among the settings with at least r(initial) + q·G, where G is
      the gain of plain's shipping point and r the gold reward where it is known. Among equal taxes the setting that
      decodes least, then the one with most reward.
    - area: the settings that are best at some reward share.
    """
    arms = with_plain_settings(arms)
    out = left_out(facts)
    select = [name for name in facts.select if name not in out]
    plain = next((arm for arm in arms if arm.plain), None)
    ship = plain.setting(_ship(plain, facts).setting) if plain else None
    chosen = {}
    for arm in arms:
        named = {"ship": _ship(arm, facts), "last": _last(arm, facts)}
        front, matched = _on_the_frontier(arm, facts, select, ship)
        owner = plain if plain and arm.early_stopping else arm
        curve = tuple(setting.label for setting in arm.candidates) if arm.yardstick else ()
        chosen[arm.name] = ArmChoices({**named, **matched}, front, owner.name, curve)
    return Choices(chosen, out)


def _most_rewarded(settings: Sequence[Setting], facts: Facts, of: str) -> Choice:
    if facts.proxy is None:
        return Choice(None, "no reward was measured")
    rated = [(setting, setting.mean("validation", facts.proxy)) for setting in settings]
    known = [(setting, number) for setting, number in rated if number is not None]
    if not known:
        return Choice(None, "no finished runs")
    best, number = max(known, key=lambda pair: pair[1])
    among = f"among {len(known)} {of}" if len(known) > 1 else f"of {of.replace('settings', 'the one setting')}"
    return Choice(best.label, f"highest {facts.proxy.split('.')[1]} reward on validation ({number:.3f}) {among}")


def _ship(arm: Arm, facts: Facts) -> Choice:
    return _most_rewarded(arm.candidates, facts, of="settings")


def _last(arm: Arm, facts: Facts) -> Choice:
    steps = {setting: min(point.step for point in setting.points.values()) for setting in arm.candidates}
    end = max(steps.values(), default=0)
    settings = [setting for setting, step in steps.items() if step == end and not _before_a_reset(setting)]
    return _most_rewarded(settings, facts, of="settings of the last step")


def _before_a_reset(setting: Setting) -> bool:
    return any(point.phase == "before" for point in setting.points.values())


def _on_the_frontier(
    arm: Arm, facts: Facts, select: Sequence[str], ship: Setting | None
) -> tuple[tuple[str, ...], dict[str, Choice]]:
    """The staircase under the arm's area and its choices at matched rewards."""
    names = [matched_name(share) for share in MATCHED]
    key = facts.reward
    start = facts.initial.value("validation", key) if key else None
    goal = ship.mean("validation", key) if ship and key else None
    why = _no_frontier(select, start, goal)
    if why is not None or start is None or goal is None or key is None:
        return (), {name: Choice(None, why or "no reward was measured") for name in names}
    rated = [
        (setting, (reward - start) / (goal - start), kept)
        for setting in arm.candidates
        if (reward := setting.mean("validation", key)) is not None
        and (kept := validation_retention(setting, facts, select)) is not None
    ]
    front = staircase([share for _, share, _ in rated], [kept for _, _, kept in rated])
    matched = {matched_name(share): _matched(rated, share) for share in MATCHED}
    return tuple(rated[index][0].label for index in front), matched


def _no_frontier(select: Sequence[str], start: float | None, goal: float | None) -> str | None:
    if not select:
        return "no select ability is measurably above chance at initial"
    if goal is None:
        return "plain has no shipping point to match: no plain arm, no finished runs, or no reward"
    if start is None:
        return "the reward of initial was not measured"
    if goal <= start:
        return f"plain's shipping point gained no reward on validation ({start:.3f} to {goal:.3f})"
    return None


def _matched(rated: Sequence[tuple[Setting, float, float]], share: float) -> Choice:
    if not rated:
        return Choice(None, "no finished runs")
    enough = [(setting, reached, kept) for setting, reached, kept in rated if reached >= share - ROUNDING]
    if not enough:
        best = max(reached for _, reached, _ in rated)
        return Choice(None, f"never got there: at most {_below(best, share)} of plain's gain on validation")
    setting, _, kept = max(enough, key=lambda triple: (triple[2], -triple[0].decoding, triple[1]))
    among = f"{len(enough)} setting{'' if len(enough) == 1 else 's'} with at least {share:g} of plain's gain"
    return Choice(setting.label, f"least select tax on validation ({1 - kept:.3f}) among {among}")


def _below(number: float, limit: float) -> str:
    """A number with as many digits, two or more, as show that it is below a limit."""
    return next(text for digits in range(2, 20) if float(text := f"{number:.{digits}f}") < limit)


def validation_retention(setting: Setting, facts: Facts, abilities: Sequence[str]) -> float | None:
    """Mean retention of a group of abilities on validation; None where one was not measured."""
    kept = []
    for name in abilities:
        key = f"abilities.{name}"
        mean, start = setting.mean("validation", key), facts.initial.value("validation", key)
        if mean is None or start is None:
            return None
        kept.append(retention(mean, start, facts.measure(key)["chance"]))
    return sum(kept) / len(kept) if kept else None

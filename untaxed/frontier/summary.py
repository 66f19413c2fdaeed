"""What `summary.json` holds: the numbers of a study, read on test at the settings that validation chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..measuring.multiple import real_drops
from ..measuring.statistics import FEWEST_SEEDS, Interval, p_value, undefined
from ..measuring.suite import per_token
from .choosing import Choices, with_plain_settings
from .comparing import STRICTEST, Comparison
from .points import Arm, Facts, Setting
from .readings import beside, interval
from .verdict import verdict

VERSION = 1
REFERENCE = "a reference curve, left out of the verdict"
_UNTESTED = {"p": None, "p_adjusted": None, "real": None}


def summarise(arms: Sequence[Arm], facts: Facts, choices: Choices) -> dict[str, Any]:
    """The summary of a study, clean for JSON; every number is ``{"mean", "low", "high", "n", "why"}``.

    ``beyond_early_stopping`` is tax(early stopping) - tax(arm): positive means less tax than early stopping.

    Args:
        choices: From `choose` on the same arms; the settings it names are read on test where test was measured.
    """
    arms = [arm for arm in with_plain_settings(arms) if arm.name in choices.arms]
    study = Comparison(arms, facts, choices)
    summary = {
        "version": VERSION,
        "arms": [_entry(study, arm) for arm in arms],
        "initial": _initial(study),
        "seeds": len(facts.seeds),
        "reward": facts.reward.split(".")[1] if facts.reward else None,
        "gain": study.gain.json(),
        "select": list(facts.select),
        "report": list(facts.report),
        "measures": [dict(measure) for measure in facts.measures],
        "left_out": [{"ability": name, "why": why} for name, why in choices.left_out.items()],
    }
    return {**summary, **verdict(summary)}


def _initial(study: Comparison) -> dict[str, dict[str, Any]]:
    """Numbers of the initial model; there is one, so that its intervals are those of the items.

    A mean over tokens says how many there are: ``tokens``.
    """
    groups: dict[str, dict[str, Any]] = {"reward": {}, "abilities": {}, "drift": {}}
    for measure, key in zip(study.facts.measures, study.facts.keys):
        number = interval(study.read.initial(key), "not measured")
        why = number.why if number.mean is None else "items only"
        found = Interval(number.mean, number.low, number.high, number.n, why).json()
        if number.mean is not None and per_token(measure["statistic"], measure["unit"]):
            found["tokens"] = round(study.facts.initial.scores("test", key)[:, 1].sum())
        groups[measure["group"]][measure["name"]] = found
    return groups


def _entry(study: Comparison, arm: Arm) -> dict[str, Any]:
    names = list(study.choices.arms[arm.name].named)
    beyond, against = study.beyond(arm)
    shown = next((name for name in (STRICTEST, "ship") if study.choice(arm, name).setting is not None), None)
    setting = arm.setting(study.choice(arm, shown).setting) if shown else None
    return {
        "arm": arm.name,
        "methods": list(arm.methods),
        "plain": arm.plain,
        "early_stopping": arm.early_stopping,
        **({"yardstick": arm.yardstick} if arm.yardstick else {}),
        "runs": len(arm.seconds) * arm.members,
        "members": arm.members,
        "settings": len(arm.settings),
        "tax": {name: study.tax(arm, name, study.select).json() for name in names},
        "report_tax": {name: study.tax(arm, name, study.report).json() for name in names},
        "recovered": _of(arm, study.recovered(arm)).json(),
        "beyond_early_stopping": _of(arm, beyond).json(),
        "against_early_stopping": against,
        "area": _of(arm, study.area(arm)).json(),
        "shown": {"choice": shown, "setting": setting.label if setting else None},
        "decoding": _decoding(setting).json(),
        "reward": _group(study, "reward", setting),
        "share": study.share(setting).json(),
        "abilities": _abilities(study, setting),
        "drift": _group(study, "drift", setting),
        "seconds": _seconds(arm).json(),
        "peak_bytes": arm.peak_bytes,
        "chosen": {name: _choice(study, arm, name) for name in names},
        "points": _points(study, arm),
    }


def _of(arm: Arm, number: Interval) -> Interval:
    """A comparison; that of a reference curve says what it is."""
    return beside(number, REFERENCE) if arm.yardstick and number.mean is not None else number


def _decoding(setting: Setting | None) -> Interval:
    """How many times the decoding of one model the shown setting costs; it is known, so there is no interval."""
    return Interval(setting.decoding, n=len(setting.points)) if setting else undefined("no setting is shown")


def _seconds(arm: Arm) -> Interval:
    """Training time of a run; too few runs give no interval, since nothing but their spread makes one."""
    seconds = interval(np.array([arm.seconds], dtype=float), "no run of its own")
    few = 0 < seconds.n < FEWEST_SEEDS
    return Interval(seconds.mean, None, None, seconds.n, f"fewer than {FEWEST_SEEDS} runs") if few else seconds


def _measures(study: Comparison, group: str) -> list[Mapping[str, Any]]:
    return [measure for measure in study.facts.measures if measure["group"] == group]


def _group(study: Comparison, group: str, setting: Setting | None) -> dict[str, Any]:
    names = [measure["name"] for measure in _measures(study, group)]
    keys = [(name, f"{group}.{name}") for name in names]
    said = {key: setting.why(key) if setting else None for _, key in keys}
    return {name: interval(study.read.number(setting, key), said=said[key]).json() for name, key in keys}


def _abilities(study: Comparison, setting: Setting | None) -> dict[str, Any]:
    """Every ability, and which of them really fell: p values adjusted for the number that initial can lose of."""
    measures = {measure["name"]: measure for measure in _measures(study, "abilities")}
    losses = {}
    for name in [*study.select, *study.report]:
        lost = -study.read.gain(setting, f"abilities.{name}")
        losses[name] = (interval(lost), p_value(lost) if interval(lost).mean is not None else None)
    found = {name: {**_ability(study, one, setting), **_UNTESTED} for name, one in measures.items()}
    for row in real_drops(losses):
        found[row.ability] |= {"p": row.p, "p_adjusted": row.p_adjusted, "real": row.real}
    return found


def _ability(study: Comparison, measure: Mapping[str, Any], setting: Setting | None) -> dict[str, Any]:
    """One ability: its number, what was lost of it in its own unit, and the share that is kept."""
    name = measure["name"]
    value, loss = study.read.number(setting, f"abilities.{name}"), -study.read.gain(setting, f"abilities.{name}")
    clear = name in study.select or name in study.report
    kept = study.read.retention(setting, name) if clear else value[:, :0]
    numbers = {"value": interval(value), "loss": interval(loss)}
    said = setting.why("abilities") if setting else None
    why = "left out: initial is too close to chance"
    numbers["retention"] = interval(kept, said=said) if clear else interval(kept, why)
    return {key: number.json() for key, number in numbers.items()}


def _choice(study: Comparison, arm: Arm, name: str) -> dict[str, Any]:
    choice = study.choice(arm, name)
    return {"setting": choice.setting, "how": choice.how}


def _points(study: Comparison, arm: Arm) -> list[dict[str, Any]]:
    """The settings that are this arm's to draw, on test: a curve's all, and not plain's stopped ones."""
    chosen = study.choices.arms[arm.name]
    roles: dict[str, list[str]] = {}
    for name in chosen.named:
        if (label := study.choice(arm, name).setting) is not None:
            roles.setdefault(label, []).append(name)
    for label in () if arm.plain else chosen.area:
        roles.setdefault(label, []).append("area")
    for label in chosen.curve:
        roles.setdefault(label, []).append("curve")
    return [_point(study, arm.setting(label), role) for label, role in roles.items()]


def _point(study: Comparison, setting: Setting | None, roles: Sequence[str]) -> dict[str, Any]:
    assert setting is not None  # choices name settings that exist
    found = {str(seed): list(point.found) for seed, point in sorted(setting.points.items()) if point.found}
    return {
        "setting": setting.label,
        "values": dict(setting.values),
        "names": {str(seed): point.name for seed, point in sorted(setting.points.items())},
        "chosen_as": list(roles),
        "reward": _group(study, "reward", setting),
        "share": study.share(setting).json(),
        "tax": {
            "select": study.group_tax(setting, study.select).json(),
            "report": study.group_tax(setting, study.report).json(),
        },
        **({"found": found} if found else {}),
    }

"""Which drops are real, in words: the losses of each arm that stand after correction for the number of abilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .numbers import Summary, decimals, plain_number

WORDS = {"drop": "fell", "gain": "rose"}
LEVEL = "Benjamini-Hochberg at 0.05"


def drops(summary: Summary, *, short: bool = False) -> list[tuple[str, str]]:
    """(arm, what fell and rose) of every arm whose abilities were tested; empty for summaries from before they were.

    Args:
        short: Changes alone, without interval and p.
    """
    found = [(entry["arm"], _tested(entry["abilities"])) for entry in summary["arms"]]
    return [(arm, _said(tested, short)) for arm, tested in found if tested]


def finding(ability: Mapping[str, Any]) -> str:
    """``fell`` or ``rose`` where that is real, else nothing."""
    return WORDS.get(ability.get("real") or "", "")


def drops_title(summary: Summary) -> str:
    """What the list is, with the caution that belongs to few seeds."""
    few = {ability["loss"]["why"] for entry in summary["arms"] for ability in _tested(entry["abilities"]).values()}
    caution = "; over test items only" if any(why and why.startswith("items only") for why in few) else ""
    return f"Abilities that really fell or rose ({LEVEL} over each arm's abilities{caution})"


def _tested(abilities: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ability for name, ability in abilities.items() if ability.get("p_adjusted") is not None}


def _said(tested: Mapping[str, Any], short: bool) -> str:
    real = {name: ability for name, ability in tested.items() if finding(ability)}
    if not real:
        return f"none of {len(tested)}"
    ordered = sorted(real.items(), key=lambda pair: -pair[1]["loss"]["mean"])
    changes = [_change(name, ability) if short else _one(name, ability) for name, ability in ordered]
    return f"{(', ' if short else '; ').join(changes)}; {len(real)} of {len(tested)}"


def _change(name: str, ability: Mapping[str, Any]) -> str:
    change = -ability["loss"]["mean"]
    return f"{name} {'+' if change > 0 else ''}{plain_number(change)}"


def _one(name: str, ability: Mapping[str, Any]) -> str:
    loss = ability["loss"]
    low, mean, high = (loss[key] for key in ("low", "mean", "high"))
    if mean < 0:
        low, mean, high = -high, -mean, -low
    places = decimals(low, mean, high)
    span = f"{plain_number(low, places)} to {plain_number(high, places)}"
    return f"{name} {finding(ability)} by {plain_number(mean, places)} ({span}, {p_in_words(ability['p_adjusted'])})"


def p_in_words(p: float) -> str:
    """``p 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"

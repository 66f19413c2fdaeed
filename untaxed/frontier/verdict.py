"""What the numbers say, in one plain sentence and what must be known beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..measuring.multiple import LEVEL, holm
from ..measuring.statistics import FEWEST_SEEDS

NONE = "No verdict"


def verdict(summary: Mapping[str, Any]) -> dict[str, Any]:
    """``{"verdict": sentence, "caveats": [sentences]}`` of a summary without them; writes Holm's p beside each p.

    An arm beats early stopping when the interval of tax(early stopping) - tax(arm), at matched reward 0.95, is above 0
    and its p, adjusted by Holm's rule for the number of arms compared, below 0.05: the best of many is often lucky.
    Reference curves are no arms that could win: a caveat says so of each.
    """
    compared = [entry for entry in _remedies(summary) if entry["against_early_stopping"] is not None]
    known = [entry for entry in compared if entry["against_early_stopping"]["p"] is not None]
    for entry, p in zip(known, holm([entry["against_early_stopping"]["p"] for entry in known])):
        entry["against_early_stopping"]["p_holm"] = p
    sentence = _sentence(summary, known)
    return {"verdict": sentence, "caveats": _caveats(summary, known)}


def _remedies(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The arms that a study is about: not those that they are compared with."""
    others = ("plain", "early_stopping", "yardstick")
    return [entry for entry in summary["arms"] if not any(entry.get(what) for what in others)]


def so_far(sentence: str) -> str:
    """The verdict of a study that has runs or tests to go."""
    if sentence.startswith(NONE):
        return sentence.replace(NONE, "No verdict yet", 1)
    return f"So far, {sentence[0].lower() + sentence[1:] if sentence.startswith('Nothing ') else sentence}"


def number(value: float, digits: int = 3) -> str:
    """A number for readers, with a true minus sign: ``−0.012``."""
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def _between(interval: Mapping[str, Any]) -> str:
    of_items = " over test items only" if interval["n"] < FEWEST_SEEDS else ""
    return f"95 % interval {number(interval['low'])} to {number(interval['high'])}{of_items}"


def _sentence(summary: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> str:
    gain = summary["gain"]
    if gain["mean"] is None:
        return f"{NONE}: {gain['why']}."
    if gain["low"] <= 0:
        return (
            f"{NONE}: plain alignment's reward gain is not clear of zero "
            f"({number(gain['mean'])}, {_between(gain)}), so there is no reward to match."
        )
    if not known:
        return f"{NONE}: no arm can be compared with early stopping at matched reward 0.95{_reasons(summary)}."
    winners = _winners(known)
    best = max(winners or known, key=lambda entry: entry["beyond_early_stopping"]["mean"])
    beyond, against = best["beyond_early_stopping"], best["against_early_stopping"]
    if not winners:
        less = beyond["mean"] >= 0
        lucky = f" by itself, and not clear of zero after Holm's correction for {len(known)} compared"
        return (
            f"Nothing beats early stopping at matched reward 0.95: {_best_of(known)}, {best['arm']}, has a tax "
            f"{number(abs(beyond['mean']))} {'lower' if less else 'higher'} "
            f"({_difference(beyond, less)}{lucky if beyond['low'] > 0 else ''})."
        )
    others = f"; {len(winners)} of {len(known)} arms beat it after Holm's correction" if len(known) > 1 else ""
    return (
        f"{best['arm']} beats early stopping at matched reward 0.95: its tax is {number(beyond['mean'])} lower "
        f"({_between(beyond)}; in {against['better']} of {_seeds(against['seeds'])}){others}."
    )


def _winners(known: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        entry
        for entry in known
        if entry["beyond_early_stopping"]["low"] > 0 and entry["against_early_stopping"]["p_holm"] < LEVEL
    ]


def _difference(beyond: Mapping[str, Any], less: bool) -> str:
    sign = 1 if less else -1
    low, high = sorted((sign * beyond["low"], sign * beyond["high"]))
    between = _between({**beyond, "low": low, "high": high})
    return between if low > 0 else f"{between}, which includes no difference"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _best_of(known: Sequence[Mapping[str, Any]]) -> str:
    return "the only arm compared" if len(known) == 1 else f"the best of {len(known)} arms"


def _reasons(summary: Mapping[str, Any]) -> str:
    others = _remedies(summary)
    return f" ({'; '.join(_reason(entry) for entry in others)})" if others else ""


def _reason(entry: Mapping[str, Any]) -> str:
    return f"{entry['arm']}: {entry['beyond_early_stopping']['why']}"


def _caveats(summary: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> list[str]:
    plain = next((entry for entry in summary["arms"] if entry["plain"]), None)
    tax = plain["tax"]["ship"] if plain else None
    return [
        *_about_plain(tax),
        *_about_multiplicity(known),
        *_about_missing(summary),
        *(f"{entry['arm']} is {entry['yardstick']}." for entry in summary["arms"] if entry.get("yardstick")),
        *_about_seeds(summary),
    ]


def _about_plain(tax: Mapping[str, Any] | None) -> list[str]:
    if tax is None or tax["mean"] is None:
        return []
    clear = "" if tax["low"] > 0 else ", not clear of zero"
    size = f"{number(tax['mean'])} ({_between(tax)}{clear})"
    return [f"Plain alignment, shipped at its highest proxy reward, pays a tax of {size}."]


def _about_multiplicity(known: Sequence[Mapping[str, Any]]) -> list[str]:
    alone = [entry["arm"] for entry in known if entry["beyond_early_stopping"]["low"] > 0]
    clear = [entry["arm"] for entry in _winners(known)]
    if len(known) < 2 or not alone:
        return []
    said = [f"still clear of zero after Holm's correction for that number: {', '.join(clear) or 'none'}"]
    if lost := [arm for arm in alone if arm not in clear]:
        said.append(f"only by themselves: {', '.join(lost)}")
    return [f"{len(known)} arms were compared with early stopping; {'; '.join(said)}."]


def _about_missing(summary: Mapping[str, Any]) -> list[str]:
    others = _remedies(summary)
    missing = [entry for entry in others if entry["beyond_early_stopping"]["mean"] is None]
    if not missing or len(missing) == len(others):
        return []
    return [f"Not compared: {'; '.join(_reason(entry) for entry in missing)}."]


def _about_seeds(summary: Mapping[str, Any]) -> list[str]:
    seeds = summary["seeds"]
    if seeds >= FEWEST_SEEDS:
        return []
    return [
        f"With {_seeds(seeds)} the intervals cover the noise of the test items only, not the spread between trainings."
    ]

"""What was found, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .numbers import LEVEL, real_losses

Entry = Mapping[str, Any]
MOST = 4  # numbers that a verdict without reward and tax names
REWARDS = ("gold", "proxy")


def verdict(entries: Sequence[Entry], chosen: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """The verdict on one model, or on several: those that no other beats in reward and tax at once.

    Args:
        entries: The models with their numbers.
        chosen: By model what validation says: ``reward``, ``tax``; None where unknown. The front is chosen by it.
    Returns:
        ``verdict``, and for several models ``front``: their names by falling reward.
    """
    if len(entries) == 1:
        return {"verdict": f"{entries[0]['name']}: {_sentence(entries[0])}"}
    known = {name: one for name, one in chosen.items() if one["reward"] is not None and one["tax"] is not None}
    front = sorted((name for name in known if not _beaten(known, name)), key=lambda name: -(known[name]["reward"] or 0))
    if not front:
        return {"verdict": " ".join(f"{one['name']}: {_sentence(one)}" for one in entries), "front": []}
    best = sum(known[name]["reward"] == known[front[0]]["reward"] for name in front)  # in tax they are equal, too
    return {"verdict": _of_front(front, best, {one["name"]: one for one in entries}), "front": front}


def _beaten(known: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    own = known[name]
    return any(
        other["reward"] >= own["reward"]
        and other["tax"] <= own["tax"]
        and (other["reward"], other["tax"]) != (own["reward"], own["tax"])
        for other in known.values()
    )


def _of_front(front: Sequence[str], best: int, entries: Mapping[str, Entry]) -> str:
    """`best` models at the front's begin are equal on validation."""
    have = "has the most reward" if best == 1 else "are equal in reward and tax, with the most reward"
    on_test = {name: f"on test {_gain(entries[name])}, {_cost(entries[name])}" for name in front}
    first = "; ".join(on_test[name] if best == 1 else f"{name} {on_test[name]}" for name in front[:best])
    said = f"On validation {' and '.join(front[:best])} {have}; {first}."
    if rest := front[best:]:
        listed = "; ".join(f"{name}, {on_test[name]}" for name in rest)
        said += f" Less tax at less reward, on validation: {listed}."
    beaten = [name for name in entries if name not in front]
    return said + (f" Behind one of these in both, on validation: {', '.join(beaten)}." if beaten else "")


def _sentence(entry: Entry) -> str:
    said = [part for part in (_gain(entry), _cost(entry)) if part] or _others(entry)
    losses = [_losses(entry)] if entry["abilities"] else []
    found = [", ".join(said), *losses]
    return ("; ".join(filter(None, found)) or f"nothing could be measured: {_why(entry)}") + "."


def _why(entry: Entry) -> str:
    measures = (one for group in ("reward", "abilities", "drift") for one in entry[group].values())
    return next((one["why"] for one in measures if "why" in one), "the suite has nothing for it")


def _gain(entry: Entry) -> str:
    for name in REWARDS:
        if (one := entry["reward"].get(name)) and one["change"]["mean"] is not None:
            return f"{name} reward {_spanned(one['change'], '+.3f')}"
    return ""


def _cost(entry: Entry) -> str:
    tax = entry["tax"]["select"]
    return "" if tax["mean"] is None else f"a tax of {_spanned(tax, '.3f')}"


def _others(entry: Entry) -> list[str]:
    """What there is to say without a reward and a tax: what each model was compared with initial by."""
    values = [(name, one["value"]) for group in ("reward", "drift") for name, one in entry[group].items()]
    known = [(name, value) for name, value in values if value["mean"] is not None]
    return [f"{name} {_spanned(value, '.3f' if abs(value['mean']) >= 1 else '.3g')}" for name, value in known[:MOST]]


def _losses(entry: Entry) -> str:
    known = [name for name, one in entry["abilities"].items() if one.get("q") is not None]
    real = real_losses(entry["abilities"])
    if not known and all("why" in one for one in entry["abilities"].values()):
        return f"no ability could be measured: {_why({**entry, 'reward': {}})}"
    if not known:
        return "no ability was measured of which initial has enough to lose"
    if not real and len(known) == 1:
        return f"{known[0]} has lost nothing that is clear of zero"
    if not real:
        return f"of {len(known)} abilities none has lost anything that is clear of zero"
    if len(known) == 1:
        return f"{real[0]} has lost something that is clear of zero"
    return f"losses clear of zero, of {len(known)} abilities (false discoveries below {LEVEL:.0%}): {', '.join(real)}"


def _spanned(number: Entry, form: str) -> str:
    mean, low, high = (f"{number[key]:{form}}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"

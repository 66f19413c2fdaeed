"""What alignment cost one model: every measure against the initial model's, item by item, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from ..frontier import retained
from ..frontier.points import CLEAR
from ..measuring.multiple import LEVEL, benjamini_hochberg
from ..measuring.paired import paired_difference
from ..measuring.statistics import NOT_FINITE, Array, Interval, draws, item_weights, undefined
from ..measuring.suite import Measure, Suite, per_token
from .scores import Splits

HALF = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Scored:
    """One model's scores, by measure; a measure that cannot be taken of it has a reason instead.

    Attributes:
        scores: By measure and split, (items, k).
        why: By measure.
        notes: What was left out or had no answer, by measure and split; most have none.
        other_tokens: Why what counts tokens cannot be compared with initial's; None where it can.
    """

    scores: Mapping[str, Splits]
    why: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    other_tokens: str | None = None


def numbers(suite: Suite, initial: Scored, model: Scored, splits: Sequence[str]) -> dict[str, Any]:
    """Every measure of a model beside the initial model's, and the tax.

    Args:
        splits: Which items: those of test, or all of them where nothing was chosen on validation.
    Returns:
        ``reward``, ``drift`` -> name -> ``{"value", "initial", "change", "p"}``, and of a mean over tokens ``tokens``,
        how many those of ``value`` are; ``abilities`` -> name ->
        ``{"value", "initial", "loss", "kept", "p", "q", "lost", "won", "items"}``; ``tax`` -> ``select``, ``report``.
        ``loss`` is initial minus model, ``q`` is ``p`` adjusted for the number of abilities that can be lost
        (Benjamini-Hochberg); None of others.
    """
    found: dict[str, Any] = {"reward": {}, "abilities": {}, "drift": {}}
    out = left_out(suite, initial, splits)
    for one in suite.measures:
        if why := model.why.get(one.key):
            found[one.group][one.name] = {"value": undefined(why).json(), "why": why}
            continue
        ours, theirs = (pooled(each.scores.get(one.key), splits) for each in (model, initial))
        if one.group == "abilities":
            found["abilities"][one.name] = _ability(one, ours, theirs, out.get(one.name))
        else:
            found[one.group][one.name] = _other(one, ours, theirs, model.other_tokens if one.in_tokens else None)
    _adjust([one for name, one in found["abilities"].items() if name not in out])
    groups = {"select": suite.select, "report": suite.report}
    found["tax"] = {
        name: _tax(suite, [k for k in keys if k not in out], initial, model, splits).json()
        for name, keys in groups.items()
    }
    return found


def on_validation(suite: Suite, initial: Scored, model: Scored) -> dict[str, float | None]:
    """Reward and tax on validation: what a choice among models goes by."""
    found = numbers(suite, initial, model, ["validation"])
    rewards = [found["reward"][name]["value"]["mean"] for name in ("gold", "proxy") if name in found["reward"]]
    return {"reward": rewards[0] if rewards else None, "tax": found["tax"]["select"]["mean"]}


def left_out(suite: Suite, initial: Scored, splits: Sequence[str]) -> dict[str, str]:
    """Abilities that the initial model has too little of to lose, with the reason; of those that were measured."""
    found = {}
    for one in (one for one in suite.group("abilities") if one.key in initial.scores):
        quantity = _draws(one, pooled(initial.scores[one.key], splits))
        value, error = float(quantity[0, 0]), float(quantity[1:, 0].std(ddof=1))
        if not value > one.chance + CLEAR * error:
            found[one.name] = (
                f"initial has {value:.3f} at a chance of {one.chance:.3f}; {CLEAR:g} standard errors "
                f"({error:.3f} each) above it are needed"
            )
    return found


def pooled(scores: Splits | None, splits: Sequence[str]) -> Array | None:
    """One array of the items of these splits."""
    return None if scores is None else np.concatenate([scores[split] for split in splits])


def _draws(one: Measure, *scores: Array | None) -> Array:
    """(1 + replicates, models): the same resamples of the items for all."""
    given = [each for each in scores if each is not None]
    return draws(one.statistic, given, item_weights(one.key, len(given[0])))


def _interval(quantity: Array, items: int) -> Interval:
    if not np.isfinite(quantity).all():
        return undefined(NOT_FINITE, items)
    mean, half = float(quantity[0]), HALF * float(quantity[1:].std(ddof=1))
    return Interval(mean, mean - half, mean + half, items)


def _value(one: Measure, quantity: Array, scores: Array) -> Interval:
    """The interval of a number; that of a share ends where shares do.

    Where no item has any of it, or every item all of it, no resample differs: the other end is then Clopper and
    Pearson's.
    """
    found = _interval(quantity, len(scores))
    share = one.unit.startswith("share") or (one.group == "abilities" and one.statistic == "mean")
    if not share or one.statistic not in ("mean", "token_mean") or found.low is None or found.high is None:
        return found
    whole = scores[:, 1] if one.statistic == "token_mean" else np.ones(len(scores))
    part, whole = scores[whole > 0, 0], whole[whole > 0]
    if (part < 0).any() or (part > whole).any():
        return found
    unseen = 1 - 0.025 ** (1 / len(whole))
    low = 1 - unseen if (part == whole).all() else max(found.low, 0.0)
    high = unseen if not part.any() else min(found.high, 1.0)
    return replace(found, low=low, high=high)


def _p(quantity: Array) -> float | None:
    """Two-sided p of "the difference is 0", from the bootstrap's standard error."""
    if not np.isfinite(quantity).all():
        return None
    error = float(quantity[1:].std(ddof=1))
    if error == 0:
        return 1.0 if quantity[0] == 0 else 0.0
    return 2 * NormalDist().cdf(-abs(float(quantity[0])) / error)


def _other(one: Measure, ours: Array | None, theirs: Array | None, why: str | None) -> dict[str, Any]:
    """`why` says why the two cannot be compared, where each has a number all the same."""
    assert ours is not None
    items = len(ours)
    tokens = {"tokens": round(ours[:, 1].sum())} if per_token(one.statistic, one.unit) else {}
    if theirs is None:  # a comparison with initial, which has nothing to be compared with itself
        counted = {} if one.outcomes is None else {**one.outcomes(ours), "items": items}
        return {"value": _value(one, _draws(one, ours)[:, 0], ours).json(), **counted, **tokens}
    both = _draws(one, ours, theirs)
    change = both[:, 0] - both[:, 1]
    return {
        "value": _value(one, both[:, 0], ours).json(),
        "initial": _value(one, both[:, 1], theirs).json(),
        "change": (_interval(change, items) if why is None else undefined(why, items)).json(),
        "p": _p(change) if why is None else None,
        **tokens,
    }


def _ability(one: Measure, ours: Array | None, theirs: Array | None, why: str | None) -> dict[str, Any]:
    assert ours is not None
    assert theirs is not None
    both, items = _draws(one, ours, theirs), len(ours)
    kept = retained(both[:, 0], both[:, 1], one.chance)
    lost = paired_difference(one.statistic, [ours], [theirs], over="items", key=one.key)
    counted = {"lost": int((theirs[:, 0] > ours[:, 0]).sum()), "won": int((ours[:, 0] > theirs[:, 0]).sum())}
    return {
        "value": _value(one, both[:, 0], ours).json(),
        "initial": _value(one, both[:, 1], theirs).json(),
        "loss": replace(lost.interval, n=items, why=None if lost.p is not None else lost.interval.why).json(),
        "kept": (_interval(kept, items) if why is None else undefined(why, items)).json(),
        "p": lost.p,
        "q": None,
        "items": items,
        **(counted if one.statistic == "mean" else {}),
    }


def _adjust(abilities: Sequence[dict[str, Any]]) -> None:
    """Writes Benjamini and Hochberg's adjusted p into the abilities that have one."""
    known = [one for one in abilities if one.get("p") is not None]
    for one, adjusted in zip(known, benjamini_hochberg([one["p"] for one in known])):
        one["q"] = adjusted


def _tax(suite: Suite, names: Sequence[str], initial: Scored, model: Scored, splits: Sequence[str]) -> Interval:
    chosen = [one for one in suite.group("abilities") if one.name in names]
    if not chosen:
        return undefined("no ability of this group counts")
    if missing := [one for one in chosen if one.key in model.why]:
        return undefined(model.why[missing[0].key])
    kept, items = [], 0
    for one in chosen:
        ours, theirs = (pooled(each.scores[one.key], splits) for each in (model, initial))
        both = _draws(one, ours, theirs)
        items += len(ours) if ours is not None else 0
        kept.append(retained(both[:, 0], both[:, 1], one.chance))
    return _interval(1 - np.mean(kept, axis=0), items)


def real_losses(abilities: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The abilities whose loss stands after adjustment for their number."""
    return [
        name
        for name, one in abilities.items()
        if one.get("q") is not None and one["q"] < LEVEL and (one["loss"]["mean"] or 0) > 0 and not math.isnan(one["q"])
    ]

"""What a study's items can show, before it starts: the least loss of each ability that will probably be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frontier import lacks_room
from ..measuring.planning import CORRELATION, LEVEL, POWER, Planned, minimum_detectable, planned
from .sound import scores_of
from .store import Store

Scores = Mapping[str, NDArray[np.float64]]


def of_store(store: Store, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """From the initial model's scores on test, where they are on disk; else nothing."""
    if store.initial_result() is None:
        return []
    start = "initial/test/"
    scores = scores_of(store.initial / "scores.npz")
    return detectable(
        facts, {key.removeprefix(start): one for key, one in scores.items() if key.startswith(start)}, "test"
    )


def detectable(facts: Mapping[str, Any], scores: Scores, split: str) -> list[dict[str, Any]]:
    """The least loss of each ability, and the least tax on select and on report abilities together.

    Args:
        facts: Of the prepared task.
        scores: ``abilities.<name>`` -> (items, k) of the initial model.
        split: Whose items these are.
    Returns:
        ``{"what", "kind", "split", "items", "loss", "tax", "unit", "why"}`` a row; without a number `why` says the
        reason. `kind` is ability or group.
    """
    rows: list[dict[str, Any]] = []
    parts: dict[str, Planned] = {}
    for measure in (one for one in facts["measures"] if one["group"] == "abilities"):
        found = scores[f"abilities.{measure['name']}"]
        why = lacks_room(measure, found, split)
        row = _row(measure["name"], "ability", split, len(found), measure["unit"], why)
        if why is None:
            parts[measure["name"]] = planned(measure["statistic"], found, chance=measure["chance"])
            least = minimum_detectable(parts[measure["name"]])
            row |= {"loss": least.loss, "tax": least.tax}
        rows.append(row)
    groups = [_group(group, facts[group], parts, split) for group in ("select", "report")]
    return [*rows, *filter(None, groups)]


def _group(group: str, names: Sequence[str], parts: Mapping[str, Planned], split: str) -> dict[str, Any] | None:
    found = [parts[name] for name in names if name in parts]
    if len(found) < 2:
        return None
    least = minimum_detectable(found)
    return {**_row(group, "group", split, least.items, "", None), "tax": least.tax}


def _row(what: str, kind: str, split: str, items: int, unit: str, why: str | None) -> dict[str, Any]:
    about = {"what": what, "kind": kind, "split": split, "items": items, "unit": unit}
    return {**about, "loss": None, "tax": None, "why": why}


def in_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines for readers; none where nothing is known."""
    if not rows:
        return []
    whose = "test items" if rows[0]["split"] == "test" else "validation items, test has its own"
    head = (
        f"the least that is found in {POWER * 100:.0f} % of cases at level {LEVEL:g}, by the noise of {whose}, where an"
        f" item's scores before and after correlate by {CORRELATION:g}:"
    )
    return [head, *(_line(row) for row in rows)]


def _line(row: Mapping[str, Any]) -> str:
    if row["why"] is not None:
        return f"{row['what']}: nothing: {row['why']}"
    if row["kind"] == "group":
        return f"{row['what']} abilities together: a tax of {row['tax']:.3f}"
    return f"{row['what']}: a loss of {row['loss']:.3f} {row['unit']}, a tax of {row['tax']:.3f} ({row['items']} items)"

"""What items can show, before a long run: the least loss of each ability that will probably be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frontier import lacks_room
from ..measuring.planning import (
    CORRELATION,
    LEVEL,
    POWER,
    Planned,
    items_for_tax,
    items_needed,
    minimum_detectable,
    planned,
    worst_deviation,
)
from .sound import scores_of
from .store import Store

Scores = Mapping[str, NDArray[np.float64]]
SOUGHT = (0.05, 0.02)  # taxes, or losses, for which the items that they need are told
UNKNOWN = "the tax is not known before initial is measured"


def of_store(store: Store, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """From the initial model's scores on test, where they are on disk; else nothing."""
    if store.initial_result() is None:
        return []
    start = "initial/test/"
    scores = scores_of(store.initial / "scores.npz")
    return detectable(
        facts, {key.removeprefix(start): one for key, one in scores.items() if key.startswith(start)}, "test"
    )


def detectable(
    facts: Mapping[str, Any], scores: Scores, split: str, *, out: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The least loss of each ability, and the least tax on select and on report abilities together.

    An ability that has no scores yet is taken at its worst: right on half of its items. Then a loss is known, no tax.

    Args:
        facts: Of the prepared task; a measure's ``items`` are asked for where it has no scores.
        scores: ``abilities.<name>`` -> (items, k) of the initial model, as far as they are known.
        split: Whose items these are: validation, test, or all.
        out: Abilities that are left out, with the reason; None: those that `lacks_room` says.
    Returns:
        ``{"what", "kind", "split", "items", "loss", "tax", "unit", "from", "needed", "why"}`` a row; without a number
        `why` says the reason. `kind` is ability or group, `from` is scores or worst case, `needed` says how many items
        show taxes of `SOUGHT` (losses, where no tax is known): ``[{"tax", "loss", "items"}]``.
    """
    rows: list[dict[str, Any]] = []
    parts: dict[str, Planned] = {}
    for measure in (one for one in facts["measures"] if one["group"] == "abilities"):
        name, found = measure["name"], scores.get(f"abilities.{measure['name']}")
        if found is None:
            row, part = _at_worst(measure, split)
        else:
            why = lacks_room(measure, found, split) if out is None else out.get(name)
            row, part = _of_scores(measure, found, split, why)
        rows.append(row)
        if part is not None:
            parts[name] = part
    groups = [_group(group, facts[group], parts, split) for group in ("select", "report")]
    return [*rows, *filter(None, groups)]


def _of_scores(
    measure: Mapping[str, Any], found: NDArray[np.float64], split: str, why: str | None
) -> tuple[dict[str, Any], Planned | None]:
    row = _row(measure["name"], "ability", split, len(found), measure["unit"], why)
    if why is not None:
        return row, None
    part = planned(measure["statistic"], found, chance=measure["chance"])
    assert part.room is not None
    least = minimum_detectable(part)
    needed = [{"tax": tax, "loss": tax * part.room, "items": items_for_tax(part, tax)} for tax in SOUGHT]
    return {**row, "loss": least.loss, "tax": least.tax, "needed": needed}, part


def _at_worst(measure: Mapping[str, Any], split: str) -> tuple[dict[str, Any], Planned | None]:
    row = {**_row(measure["name"], "ability", split, measure.get("items"), measure["unit"], None), "from": "worst case"}
    if row["items"] is None or measure["statistic"] != "mean":
        what = "it is no mean over items" if row["items"] is not None else "its items are not counted"
        return {**row, "why": f"{what}, so that nothing is known before initial is measured"}, None
    part = Planned(row["items"], worst_deviation())
    needed = [{"tax": None, "loss": loss, "items": items_needed(part.deviation, loss)} for loss in SOUGHT]
    return {**row, "loss": minimum_detectable(part).loss, "needed": needed, "why": UNKNOWN}, part


def _group(group: str, names: Sequence[str], parts: Mapping[str, Planned], split: str) -> dict[str, Any] | None:
    found = [parts[name] for name in names if name in parts]
    if len(found) < 2:
        return None
    least = minimum_detectable(found)
    row = _row(group, "group", split, least.items, "", UNKNOWN if least.tax is None else None)
    if least.tax is None:
        return {**row, "from": "worst case"}
    needed = [{"tax": tax, "loss": None, "items": items_for_tax(found, tax)} for tax in SOUGHT]
    return {**row, "tax": least.tax, "needed": needed}


def _row(what: str, kind: str, split: str, items: int | None, unit: str, why: str | None) -> dict[str, Any]:
    about = {"what": what, "kind": kind, "split": split, "items": items, "unit": unit}
    return {**about, "loss": None, "tax": None, "from": "scores", "needed": [], "why": why}


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
    wanted = ", ".join(f"{one['items']:,} for {one['tax']:g}" for one in row["needed"])
    if row["kind"] == "group":
        return f"{row['what']} abilities together: a tax of {row['tax']:.3f} ({row['items']:,} items; {wanted})"
    loss = f"a loss of {row['loss']:.3f} {row['unit']}"
    return f"{row['what']}: {loss}, a tax of {row['tax']:.3f} ({row['items']:,} items; {wanted})"

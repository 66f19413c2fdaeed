"""What the items of a suite can show of a tax, from the initial model's scores where they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..measuring.planning import LEVEL, POWER
from ..measuring.suite import Measure, Split, Suite
from ..studies.detectable import detectable
from .numbers import Scored, left_out, pooled

Row = Mapping[str, Any]


def least(suite: Suite, initial: Scored, splits: Sequence[Split]) -> list[dict[str, Any]]:
    """The least loss of each ability and the least tax that these items will probably show.

    Args:
        suite: What is measured.
        initial: The initial model's scores, as far as they are known.
        splits: Which items count.
    Returns:
        Rows of `untaxed.studies.detectable`.
    """
    measures = [_fact(one, splits) for one in suite.measures]
    facts = {"measures": measures, "select": suite.select, "report": suite.report}
    known = {key: found for key in initial.scores if (found := pooled(initial.scores[key], splits)) is not None}
    split = splits[0] if len(splits) == 1 else "all"
    return detectable(facts, known, split, out=left_out(suite, initial, splits))


def _fact(one: Measure, splits: Sequence[Split]) -> dict[str, Any]:
    items = None if one.items is None else sum(one.items[split] for split in splits)
    told = {"group": one.group, "name": one.name, "statistic": one.statistic, "chance": one.chance, "unit": one.unit}
    return {**told, "items": items}


def in_a_line(suite: Suite, rows: Sequence[Row]) -> str:
    """The least tax on select and on report abilities, for who waits; empty where there is none to find."""
    parts = []
    for group, names in (("select", suite.select), ("report", suite.report)):
        together = [row for row in rows if row["kind"] == "group" and row["what"] == group]
        alone = [row for row in rows if row["kind"] == "ability" and row["what"] in names]
        known = [row for row in (*together, *alone) if row["tax"] is not None]
        if known:
            parts.append(f"{known[0]['tax']:.3f} on {group} abilities")
    if not parts:
        return ""
    return f"the least tax found in {POWER * 100:.0f} % of cases at level {LEVEL:g}: {', '.join(parts)}"

"""The summary as Markdown, for issues and pages."""

from __future__ import annotations

import re

from .drops import drops, drops_title
from .numbers import Cell, Summary
from .tables import arm_name, arms_table, drift_tokens


def markdown(summary: Summary) -> str:
    """Verdict, caveats, the table of arms with its notes, and the abilities that were left out."""
    table = arms_table(summary)
    head = ["arm", *(column.title for column in table.columns)]
    rows = [[escaped(arm_name(entry)), *map(flat, cells)] for entry, cells in table.rows]
    lines = [
        *([f"Unfinished: {escaped(summary['unfinished'])}.", ""] if summary.get("unfinished") else []),
        f"**{escaped(summary['verdict'])}**",
        "",
        *(f"- {escaped(line)}" for line in summary["caveats"]),
        "",
        row(head),
        row(["---", *("--:" for _ in table.columns)]),
        *map(row, rows),
        "",
        *(f"{number}. {escaped(reason)}" for number, reason in enumerate(table.notes, start=1)),
        *(["", _left_out(summary)] if summary["left_out"] else []),
        *_drops(summary),
        "",
        "Chosen on validation, read on test; 95 % intervals"
        f" from {summary['seeds']} seed{'' if summary['seeds'] == 1 else 's'}.",
        *(["", escaped(said)] if (said := drift_tokens(summary)) else []),
    ]
    return "\n".join(lines) + "\n"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def flat(cell: Cell) -> str:
    """A number with its interval and the number of its note, in one line."""
    span = f" ({cell.span})" if cell.span else ""
    return f"{cell.mean}{span}" + (f" [{cell.note}]" if cell.note is not None else "")


def _drops(summary: Summary) -> list[str]:
    told = [f"- {escaped(arm)}: {escaped(said)}" for arm, said in drops(summary)]
    return ["", f"{drops_title(summary)}:", "", *told] if told else []


def _left_out(summary: Summary) -> str:
    return "Left out: " + "; ".join(f"{escaped(out['ability'])} ({escaped(out['why'])})" for out in summary["left_out"])


def escaped(text: str) -> str:
    """Text of others as text: no tags, no links, no table borders, no line breaks."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""The summary on a terminal, as wide as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from .drops import drops, drops_title
from .numbers import Cell, Summary, mark
from .tables import Column, Table, arm_name, arms_table, drift_tokens

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 100  # columns from which on there is room for what fell


def terminal(summary: Summary, console: Console) -> None:
    """Prints verdict, table of arms and what must be known beside them; drops columns that do not fit."""
    table = arms_table(summary)
    console.print()
    if summary.get("unfinished"):
        console.print(Text(f"Unfinished: {summary['unfinished']}."))
    console.print(Text(summary["verdict"], style="bold"))
    console.print()
    fits = arms_table(summary, fitting(table, console.width))  # its notes numbered without those of other columns
    console.print(_drawn(fits))
    for number, reason in enumerate(fits.notes, start=1):
        console.print(Text(f"{mark(number)} {reason}", style="dim"))
    told = drops(summary, short=True)
    hidden = [column.title for column in table.columns if column not in fits.columns]
    hidden += ["which abilities really fell"] if told and console.width < WIDE else []
    if hidden:
        console.print(Text(f"In a wider window, in --json and in the report: {'; '.join(hidden)}.", style="dim"))
    if told and console.width >= WIDE:
        console.print(Text(f"{drops_title(summary)}:"))
        for arm, said in told:
            console.print(Text(f"  {arm}: {said}"))
    tokens = [said] if (said := drift_tokens(summary)) else []
    for line in [
        *summary["caveats"],
        *tokens,
        *(f"Left out: {out['ability']} ({out['why']})." for out in summary["left_out"]),
    ]:
        console.print(Text(line))


def fitting(table: Table, width: int) -> list[Column]:
    """The columns that fit beside the names of the arms, the most telling first to stay."""
    names = min(max((len(arm_name(entry)) for entry, _ in table.rows), default=3), max(12, width // 3))
    kept: set[Column] = set()
    room = width - names - 3
    for index, column in sorted(enumerate(table.columns), key=lambda pair: pair[1].rank):
        room -= 2 + max([len(two_lines(cells[index]).plain.split("\n")[1]) for _, cells in table.rows] + [9])
        if room < 0 and kept:
            break
        kept.add(column)
    return [column for column in table.columns if column in kept]


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    drawn.add_column("arm", overflow="fold", vertical="top")
    for column in table.columns:
        title = "\n".join(column.title.rsplit(" ", 1)) if len(column.title) > 14 else column.title
        drawn.add_column(title, justify="right", vertical="top", no_wrap=False)
    for entry, cells in table.rows:
        drawn.add_row(Text(arm_name(entry)), *map(two_lines, cells))
    return drawn


def two_lines(cell: Cell, style: str = "") -> Text:
    """A number with its note's, and its interval below."""
    noted = "" if cell.note is None else mark(cell.note)
    return Text(cell.mean, style=style).append(noted, style="dim").append(f"\n{cell.span}", style="dim")

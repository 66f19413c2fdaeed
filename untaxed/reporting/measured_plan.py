"""What `untaxed measure` would do and can find, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ..studies.detectable import SOUGHT
from .numbers import NOTHING

if TYPE_CHECKING:
    from rich.console import Console

Plan = Mapping[str, Any]
WORST = "*"


def terminal(plan: Plan, console: Console) -> None:
    """Prints what is to be done, and the least loss and tax of every ability."""
    for line in to_do(plan):
        console.print(Text(line))
    if not plan["detectable"]:
        return
    console.print()
    console.print(_drawn(plan))
    console.print()
    for line in footnotes(plan):
        console.print(Text(line, style="dim"))


def to_do(plan: Plan) -> list[str]:
    """A line a model, then what texts are drawn from and what endpoints may be asked."""
    lines = [_model("initial", plan["initial"]), *(_model("model", one) for one in plan["models"])]
    for kind, called in (("prompts", "prompts"), ("general_prompts", "general prompts")):
        if plan[kind]:
            counts = " and ".join(f"{count:,} {split}" for split, count in plan[kind].items())
            lines.append(f"prompts  {counts} {called} that each model writes after")
    return [*lines, *(f"asked    {line}" for line in plan["asked"])]


def _model(role: str, one: Mapping[str, Any]) -> str:
    count, kept = len(one["to_measure"]), len(one["kept"])
    said = "nothing, all of it is kept" if not count else f"{count} of {count + kept} measures to take"
    if count and kept:
        said += f", {kept} kept"
    if one["why"]:
        said += f"; not taken: {', '.join(key.partition('.')[2] for key in one['why'])}"
    name = one["path"] if role == "initial" else one["name"]
    return f"{role:<8} {name}: {said}"


def footnotes(plan: Plan) -> list[str]:
    """What must be known beside the table."""
    rows, assumed = plan["detectable"], plan["assumed"]
    items = "all items, since of one model nothing is chosen" if plan["items"] == "all" else "the items of test"
    said = [
        f"Least: found in {assumed['power'] * 100:.0f} % of cases at level {assumed['level']:g} on {items}, where an "
        f"item's scores before and after correlate by {assumed['correlation']:g}. Other seeds of a training vary more.",
        "Needed: items in all, of the splits that count, for a tax of that size.",
    ]
    if any(_worst(row) for row in rows):
        said.append(
            f"{WORST} Worst case: initial is not measured yet, and is taken to be right on half of the items. Its tax, "
            "a share of what it has above chance, is known when it is; needed is for a loss of that size."
        )
    return said + [f"{row['what']}: {row['why']}." for row in rows if row["why"] and row["loss"] is None and _own(row)]


def _own(row: Mapping[str, Any]) -> bool:
    """Whether a row is an ability's."""
    return bool(row["kind"] == "ability")


def _worst(row: Mapping[str, Any]) -> bool:
    return bool(row["from"] == "worst case" and row["loss"] is not None)


def _drawn(plan: Plan) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    drawn.add_column("ability", overflow="fold")
    drawn.add_column("items,\nvalidation + test", justify="right")
    for title in ("least\nloss", "least\ntax", *(f"needed\nfor {size:g}" for size in SOUGHT)):
        drawn.add_column(title, justify="right", no_wrap=True)
    for row in plan["detectable"]:
        if _own(row) or row["tax"] is not None:
            drawn.add_row(*_cells(row, plan["abilities"].get(row["what"]) if _own(row) else None))
    return drawn


def _cells(row: Mapping[str, Any], items: Mapping[str, int] | None) -> list[Text]:
    name = row["what"] if _own(row) else f"{row['what']} together"
    counts = f"{items['validation']:,} + {items['test']:,}" if items else ""
    loss = (_number(row["loss"]) + (f" {WORST}" if _worst(row) else "")) if _own(row) else ""
    needed = [f"{one['items']:,}" for one in row["needed"]] or [NOTHING] * len(SOUGHT)
    return [Text(cell) for cell in (name, counts, loss, _number(row["tax"]), *needed)]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"

"""What `untaxed measure` found, as rows of cells that terminal, Markdown and page draw."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from ..comparison.numbers import LEVEL, real_losses
from .markdown import escaped, flat, row
from .numbers import NOTHING, Cell, Notes, Summary, mark
from .terminal import two_lines

if TYPE_CHECKING:
    from rich.console import Console

Entry = Mapping[str, Any]
GROUPS = ("reward", "abilities", "drift")
DIVERGENCES = {"forward_kl": "forward KL", "general_forward_kl": "general KL"}  # drifts of the overview, and titles
NARROWEST, WIDEST = 12, 20  # letters of a name that a terminal keeps on one line


@dataclass(frozen=True)
class Line:
    """One measure of one model.

    Attributes:
        group: reward, abilities or drift; tax for what is lost of abilities together.
        name: The measure's.
        unit: What it counts.
        initial, value, change: What the initial model has, what this one has, and the difference.
        adjusted: p of no difference, adjusted for the number of abilities that can be lost; a dash elsewhere.
        items: "12 lost, 3 won of 200", of a win rate also "tied" and "undefined"; "1,234 tokens" that a mean is over;
            empty where items are neither.
        real: Whether an ability's loss stands after the adjustment.
    """

    group: str
    name: str
    unit: str
    initial: Cell
    value: Cell
    change: Cell
    adjusted: str
    items: str
    real: bool


@dataclass(frozen=True)
class Overview:
    """One model in a row."""

    name: str
    reward: Cell
    tax: Cell
    report_tax: Cell
    drift: Sequence[Cell]
    losses: str


def lines(summary: Summary, entry: Entry, notes: Notes) -> list[Line]:
    """Every measure of a model, in the suite's order by group."""
    out = {left["ability"] for left in summary["left_out"]}
    real = real_losses(entry["abilities"])
    found = []
    for group in GROUPS:
        for measure in (one for one in summary["measures"] if one["group"] == group):
            name = measure["name"]
            one = entry[group].get(name)
            if one is None:
                continue
            unit = measure["unit"] + (", not enough of it to lose" if group == "abilities" and name in out else "")
            change = negative(one["loss"]) if group == "abilities" and "loss" in one else one.get("change")
            start, value = (notes.cell(one[key]) if key in one else Cell(NOTHING) for key in ("initial", "value"))
            difference = Cell(NOTHING) if change is None else notes.cell(change, signed=True)
            found.append(Line(group, name, unit, start, value, difference, _adjusted(one), _items(one), name in real))
        if group == "abilities":
            found += [_tax_line(name, entry["tax"][name], notes) for name in ("select", "report") if summary[name]]
    return found


def _tax_line(name: str, tax: Mapping[str, Any], notes: Notes) -> Line:
    nothing = Cell(NOTHING)
    return Line("tax", f"tax, {name}", "share not kept", nothing, notes.cell(tax), nothing, NOTHING, "", real=False)


def overview(summary: Summary, notes: Notes) -> list[Overview]:
    """The models in one table; drift in the order of `divergences`."""
    found, drifts = [], divergences(summary)
    for entry in summary["models"]:
        reward = next((entry["reward"][name] for name in ("gold", "proxy") if name in entry["reward"]), None)
        found.append(
            Overview(
                entry["name"],
                notes.cell(reward["change"], signed=True) if reward else Cell(NOTHING),
                notes.cell(entry["tax"]["select"]),
                notes.cell(entry["tax"]["report"]) if summary["report"] else Cell(NOTHING),
                [notes.cell(entry["drift"][name]["value"]) for name in drifts],
                ", ".join(real_losses(entry["abilities"])) or "none",
            )
        )
    return found


def divergences(summary: Summary) -> dict[str, str]:
    """The drifts that an overview shows, name -> title: those that the suite measures."""
    measured = [one["name"] for one in summary["measures"] if one["group"] == "drift"]
    return {name: title for name, title in DIVERGENCES.items() if name in measured}


def negative(number: Mapping[str, Any]) -> dict[str, Any]:
    """A loss as the change that it is."""
    if number["mean"] is None:
        return dict(number)
    return {**number, "mean": -number["mean"], "low": -number["high"], "high": -number["low"]}


def _adjusted(one: Mapping[str, Any]) -> str:
    q = one.get("q")
    return NOTHING if q is None else "< 0.001" if q < 0.001 else f"{q:.3f}"


def _items(one: Mapping[str, Any]) -> str:
    if "tokens" in one:
        return f"{one['tokens']:,} tokens"
    if "lost" not in one:
        return ""
    said = [
        f"{one[kind]} {kind}"
        for kind in ("lost", "won", "tied", "undefined")
        if one.get(kind) or (kind in one and kind != "undefined")
    ]
    return f"{', '.join(said)} of {one['items']}"


# --- terminal ------------------------------------------------------------------------------------------------------


def terminal(summary: Summary, console: Console) -> None:
    """Prints the verdict and, of one model, every measure; of several a row each."""
    notes = Notes()
    console.print(Text(summary["verdict"], style="bold"))
    console.print()
    if len(summary["models"]) == 1:
        console.print(_measures_drawn(lines(summary, summary["models"][0], notes)))
    else:
        titles = ["reward", "tax", *(["report tax"] if summary["report"] else []), *divergences(summary).values()]
        console.print(_models_drawn(overview(summary, notes), titles))
    reasons = [f"{mark(number)} {reason}" for number, reason in enumerate(notes.reasons, start=1)]
    for text in [*reasons, *footnotes(summary), *remarks(summary, summary["models"])]:
        console.print(Text(text, style="dim"))


def footnotes(summary: Summary) -> list[str]:
    """What must be known beside the tables."""
    items = "all items" if summary["items"] == "all" else "the items of test"
    return [
        f"95 % intervals over {items}, the same for all models; other seeds of a training may do otherwise.",
        "A loss is clear of zero when its p, adjusted for the number of abilities that can be lost "
        f"(Benjamini-Hochberg), is below {LEVEL:g}.",
        *(f"Left out of the tax: {left['ability']} ({left['why']})." for left in summary["left_out"]),
    ]


def remarks(summary: Summary, entries: Sequence[Entry]) -> list[str]:
    """What was left out or had no answer, of initial and these models: a line each, with all that it is true of."""
    splits = ("validation", "test") if summary["items"] == "all" else ("test",)
    found: dict[tuple[str, str, str], list[str]] = {}
    for measure in summary["measures"]:
        key = f"{measure['group']}.{measure['name']}"
        for one in (summary["initial"], *entries):
            for split in splits:
                for text in one["notes"].get(key, {}).get(split, ()):
                    found.setdefault((measure["name"], split, text), []).append(one["name"])
    return [f"{name} ({split}), {', '.join(who)}: {text}." for (name, split, text), who in found.items()]


def _measures_drawn(found: Sequence[Line]) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    longest = min(max([NARROWEST, *(len(line.name) for line in found)]), WIDEST)
    drawn.add_column("measure", overflow="fold", vertical="top", no_wrap=True)
    for title in ("initial", "model", "change"):
        drawn.add_column(title, justify="right", vertical="top", no_wrap=True)
    drawn.add_column("adjusted p,\nitems", vertical="top")
    for line in found:
        name, unit = ("\n".join(textwrap.wrap(text, longest)) for text in (line.name, line.unit))
        style = "bold" if line.real else ""
        cells = [two_lines(line.initial), two_lines(line.value), two_lines(line.change, style)]
        first = Text(name).append(f"\n{unit}", style="dim")
        drawn.add_row(first, *cells, Text(line.adjusted).append(f"\n{line.items}", style="dim"))
    return drawn


def _models_drawn(found: Sequence[Overview], titles: Sequence[str]) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    drawn.add_column("model", overflow="fold", vertical="top")
    for title in titles:
        drawn.add_column(title, justify="right", vertical="top", no_wrap=True)
    drawn.add_column("lost, clear of zero", overflow="fold", vertical="top")
    for one in found:
        cells = [one.reward, one.tax, *([one.report_tax] if "report tax" in titles else []), *one.drift]
        drawn.add_row(Text(one.name), *map(two_lines, cells), Text(one.losses))
    return drawn


# --- Markdown ----------------------------------------------------------------------------------------------


def markdown(summary: Summary) -> str:
    """Verdict and tables for a pull request or a model card."""
    notes = Notes()
    parts = [f"**{escaped(summary['verdict'])}**", ""]
    if len(summary["models"]) > 1:
        numbers = ["reward", "tax", "report tax", *divergences(summary).values()]
        parts += [row(["model", *numbers, "lost, clear of zero"])]
        parts += [row(["---", *(["--:"] * len(numbers)), "---"])]
        for one in overview(summary, notes):
            cells = [flat(cell) for cell in (one.reward, one.tax, one.report_tax, *one.drift)]
            parts.append(row([escaped(one.name), *cells, escaped(one.losses)]))
        parts.append("")
    for entry in summary["models"]:
        parts += [f"{escaped(entry['name'])} against {escaped(summary['initial']['name'])}:", ""]
        parts += [row(["measure", "unit", "initial", "model", "change", "adjusted p", "items"])]
        parts += [row(["---", "---", "--:", "--:", "--:", "--:", "---"])]
        for line in lines(summary, entry, notes):
            bold = "**" if line.real else ""
            cells = [
                flat(line.initial),
                flat(line.value),
                f"{bold}{flat(line.change)}{bold}",
                line.adjusted,
                line.items,
            ]
            parts.append(row([escaped(line.name), escaped(line.unit), *cells]))
        parts.append("")
    reasons = [f"{number}. {escaped(reason)}" for number, reason in enumerate(notes.reasons, start=1)]
    parts += [*reasons, *([""] if reasons else []), *map(escaped, footnotes(summary))]
    if said := remarks(summary, summary["models"]):
        parts += ["", *(f"- {escaped(text)}" for text in said)]
    return "\n".join(parts) + "\n"

"""The table of arms and the table of abilities, as rows of cells; terminal, Markdown and HTML draw the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .drops import finding, p_in_words
from .numbers import Cell, Notes, Summary, notes_of

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One number of every arm.

    Attributes:
        title: Its heading.
        read: Takes it from an arm of the summary; None where the study does not measure it.
        rank: Which columns stay where there is little room: the lowest.
        signed: Whether it is a difference.
    """

    title: str
    read: Callable[[Entry], Mapping[str, Any] | None]
    rank: int
    signed: bool = False


COLUMNS = (
    Column("gold reward", lambda entry: entry["reward"].get("gold"), 3),
    Column("proxy reward", lambda entry: entry["reward"].get("proxy"), 7),
    Column("tax, shipped", lambda entry: entry["tax"]["ship"], 2),
    Column("tax, last step", lambda entry: entry["tax"]["last"], 8),
    Column("tax at 0.95", lambda entry: entry["tax"]["q0.95"], 0),
    Column("recovered", lambda entry: entry["recovered"], 4),
    Column("beyond early stopping", lambda entry: entry["beyond_early_stopping"], 1, signed=True),
    Column("area", lambda entry: entry["area"], 5),
    Column("drift, KL", lambda entry: entry["drift"].get("forward_kl"), 6),
    Column("drift, general KL", lambda entry: entry["drift"].get("general_forward_kl"), 12),
    Column("seconds a seed", lambda entry: entry["seconds"], 9),
)
BESIDE_REFERENCES = (  # what tells reference curves from remedies; other studies are spared the columns
    Column("drift, reverse KL", lambda entry: entry["drift"].get("reverse_kl"), 11),
    Column("times the decoding", lambda entry: entry.get("decoding"), 10),
)


@dataclass(frozen=True)
class Table:
    """Columns, one row of cells an arm, and the reasons behind the dashes."""

    columns: list[Column]
    rows: list[tuple[Entry, list[Cell]]]
    notes: list[str]


def arm_name(entry: Entry) -> str:
    """An arm's name in tables; that of a reference curve says so."""
    return f"{entry['arm']} (reference)" if entry.get("yardstick") else str(entry["arm"])


def arms_table(summary: Summary, columns: Sequence[Column] | None = None) -> Table:
    """The table of arms with these columns, without those that the study does not measure."""
    entries, notes = summary["arms"], notes_of(summary)
    if columns is None:
        beside = BESIDE_REFERENCES if any(entry.get("yardstick") for entry in entries) else ()
        columns = (*COLUMNS, *beside, *_more_rewards(summary))
    columns = [column for column in columns if any(column.read(entry) is not None for entry in entries)]
    rows = [(entry, [notes.cell(column.read(entry), signed=column.signed) for column in columns]) for entry in entries]
    return Table(columns, rows, notes.reasons)


def drift_tokens(summary: Summary) -> str:
    """How many tokens the means of drift are over, in a sentence; empty where that is not known."""
    known = {name: one["tokens"] for name, one in summary["initial"]["drift"].items() if "tokens" in one}
    said = ", ".join(f"{name} {tokens:,}" for name, tokens in known.items())
    return f"Tokens of test that drift is averaged over, of initial: {said}." if said else ""


def _more_rewards(summary: Summary) -> list[Column]:
    """Rewards and win rates that nothing is chosen by: shown where there is room."""
    names = [one["name"] for one in summary["measures"] if one["group"] == "reward"]
    others = [name for name in names if name not in ("gold", "proxy")]

    def read(name: str) -> Callable[[Entry], Mapping[str, Any] | None]:
        return lambda entry: entry["reward"].get(name)

    return [Column(name, read(name), 100 + at) for at, name in enumerate(others)]


@dataclass(frozen=True)
class Kept:
    """One ability of one arm: the share that is kept (None where unknown), and the numbers behind it.

    Attributes:
        finding: ``fell`` or ``rose`` where that stands after correction for the number of abilities.
        p: The corrected p in words; empty where there is none.
    """

    share: float | None
    retention: Cell
    value: Cell
    loss: Cell
    finding: str
    p: str


@dataclass(frozen=True)
class AbilityTable:
    """Abilities by arms; ``initial`` holds the number each ability starts from."""

    names: list[str]
    groups: dict[str, str]
    units: dict[str, str]
    initial: list[Cell]
    rows: list[tuple[Entry, list[Kept]]]


def abilities_table(summary: Summary) -> AbilityTable:
    """What is kept of each ability at the setting that an arm is shown at; left-out abilities come last."""
    notes, out = notes_of(summary), [left["ability"] for left in summary["left_out"]]
    measured = [measure for measure in summary["measures"] if measure["group"] == "abilities"]
    units = {measure["name"]: measure["unit"] for measure in measured}
    names = sorted(units, key=lambda name: (name in out, name not in summary["select"]))
    groups = {
        name: "left out" if name in out else "select" if name in summary["select"] else "report" for name in names
    }
    initial = [notes.cell(summary["initial"]["abilities"].get(name)) for name in names]
    rows = [(entry, [_kept(entry["abilities"][name], notes) for name in names]) for entry in summary["arms"]]
    return AbilityTable(names, groups, units, initial, rows)


def _kept(ability: Mapping[str, Any], notes: Notes) -> Kept:
    share = ability["retention"]["mean"]
    kept, value, loss = (notes.cell(ability[key]) for key in ("retention", "value", "loss"))
    p = ability.get("p_adjusted")
    return Kept(share, kept, value, loss, finding(ability), "" if p is None else p_in_words(p))

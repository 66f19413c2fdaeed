"""Numbers as readers see them: rounded, with their interval, and a note where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NOTHING = "–"
Summary = Mapping[str, Any]


def decimals(*values: float | None) -> int:
    """How many decimals tell numbers of this size apart: three below 10, fewer above, more below 0.001."""
    size = max((abs(value) for value in values if value is not None), default=0.0)
    if 1e-6 <= size < 1e-3:
        return 1 - math.floor(math.log10(size))  # two digits
    return 3 if size < 10 else 1 if size < 1000 else 0


def plain_number(value: float | None, places: int | None = None) -> str:
    """A rounded number with a true minus sign and no negative zero."""
    if value is None:
        return NOTHING
    places = decimals(value) if places is None else places
    rounded = round(value, places) + 0.0  # -0.0 + 0.0 = 0.0
    return f"{rounded:.{places}f}".replace("-", "−")


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        mean: The number, or a dash.
        span: ``low to high``; empty where there is no interval.
        note: Number of the note that belongs to it; None: none.
    """

    mean: str
    span: str = ""
    note: int | None = None


SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def mark(note: int) -> str:
    """The number of a note, as a terminal shows it beside what it belongs to."""
    return str(note).translate(SUPERSCRIPT)


@dataclass
class Notes:
    """The reasons behind a table's dashes, numbered in the order in which they come up.

    Attributes:
        seeds: A number from fewer seeds than these says so; None: nothing is said.
        silent: Cautions that are said elsewhere for the whole table.
    """

    seeds: int | None = None
    silent: tuple[str, ...] = ()
    reasons: list[str] = field(default_factory=list)

    def number(self, why: str | None) -> int | None:
        """The number of a reason."""
        for quiet in self.silent:
            why = None if why is None or why == quiet else why.removesuffix(f"; {quiet}")
        if why is None:
            return None
        if why not in self.reasons:
            self.reasons.append(why)
        return self.reasons.index(why) + 1

    def cell(self, interval: Mapping[str, Any] | None, *, signed: bool = False) -> Cell:
        """A number of the summary as a cell; `signed` writes a plus before positive ones."""
        if interval is None or interval["mean"] is None:
            return Cell(NOTHING, note=self.number("not measured" if interval is None else interval["why"]))
        low, mean, high = interval["low"], interval["mean"], interval["high"]
        places = 0 if isinstance(mean, int) else decimals(low, mean, high)  # a count is no measured number
        sign = "+" if signed and round(mean, places) > 0 else ""
        span = "" if low is None else f"{plain_number(low, places)} to {plain_number(high, places)}"
        fewer = self.seeds is not None and interval["n"] < self.seeds
        why = interval["why"] or (f"from {interval['n']} of {self.seeds} seeds" if fewer else None)
        return Cell(sign + plain_number(mean, places), span, self.number(why))


def notes_of(summary: Summary) -> Notes:
    """Notes for a table of a summary; with few seeds its caveats say once that all intervals are of items only."""
    seeds = summary["seeds"]
    return Notes(seeds, silent=(f"items only, {seeds} seed{'' if seeds == 1 else 's'}", "items only"))

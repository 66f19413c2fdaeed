"""What `untaxed measure` found, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from .measured import GROUPS, negative
from .numbers import Summary

OF_ITEMS = ("lost", "won", "tied", "undefined")
ENDS = ("", "_low", "_high")
HEADER = (
    *("model", "group", "measure", "unit"),
    *(f"{number}{end}" for number in ("initial", "value", "change", "kept") for end in ENDS),
    *("p", "q", *OF_ITEMS, "items", "tokens", "why"),
)


def as_csv(summary: Summary) -> str:
    """One row a model and measure, every number in full."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(_csv_rows(summary))
    return stream.getvalue()


def _csv_rows(summary: Summary) -> Iterator[list[Any]]:
    units = {(one["group"], one["name"]): one["unit"] for one in summary["measures"]}
    for entry in summary["models"]:
        for group in GROUPS:
            for name, one in entry[group].items():
                yield [_safe(entry["name"]), group, _safe(name), units[group, name], *_numbers(one)]
        for name, tax in entry["tax"].items():
            own = {"value": tax, "items": None}
            yield [_safe(entry["name"]), "tax", name, "share not kept", *_numbers(own)]


def _numbers(one: Mapping[str, Any]) -> list[Any]:
    """The cells of a row from ``initial`` on."""
    change = negative(one["loss"]) if "loss" in one else one.get("change", {})
    numbers = [one.get("initial", {}), one["value"], change, one.get("kept", {})]
    why = dict.fromkeys(filter(None, (one.get("why"), *(number.get("why") for number in numbers))))
    return [
        *(number.get(key) for number in numbers for key in ("mean", "low", "high")),
        *(one.get(key) for key in ("p", "q", *OF_ITEMS)),
        *(one.get("items", one["value"]["n"]), one.get("tokens"), "; ".join(why)),
    ]


def _safe(text: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text

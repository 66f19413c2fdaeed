"""The data that only some methods read: general prompts, reference sets, texts of an earlier training."""

from __future__ import annotations

from typing import Any

from ..errors import DataError
from ..rows import Row, read_rows
from ..training.data import COLUMNS, pair_check
from .sources import DataSpec

ANSWERED = ("prompt", "completion")


def read_inputs(data: DataSpec) -> dict[str, Any]:
    """Reads what a spec gives to such methods, as the fields of a `Task`.

    Raises:
        DataError: A row lacks a field, or has one that is empty or no text; a reference set mixes forms.
    """
    given: dict[str, Any] = {}
    if data.general_prompts is not None:
        rows = read_rows(data.general_prompts, lambda row: _check_texts(row, ("prompt",)))
        given["general_prompts"] = [row["prompt"] for row in rows]
    if data.replay is not None:
        rows = read_rows(data.replay, lambda row: _check_texts(row, _form(row, "text", ANSWERED)))
        given["replay"] = [row["text"] if "text" in row else row["prompt"] + row["completion"] for row in rows]
    if data.reference_sets is not None:
        if not data.reference_sets:
            raise DataError("data.reference_sets is empty; name at least one set, or leave it out")
        given["reference_sets"] = {name: _reference_set(source) for name, source in data.reference_sets.items()}
    return given


def _reference_set(source: Any) -> list[Row]:
    """The rows of one set, with the columns of their form and no others."""
    forms: list[tuple[str, ...]] = []
    pairs = pair_check()

    def check(row: Row) -> None:
        forms.append(_form(row, "text", ANSWERED, COLUMNS))
        if forms[-1] != forms[0]:
            raise ValueError(f"the row gives {' and '.join(forms[-1])} where others give {' and '.join(forms[0])}")
        if forms[0] == COLUMNS:
            pairs(row)
        else:
            _check_texts(row, forms[0])

    rows = read_rows(source, check)
    return [{column: row[column] for column in forms[0]} for row in rows]


def _form(row: Row, *forms: str | tuple[str, ...]) -> tuple[str, ...]:
    """The first of these forms whose columns the row has; those with more columns go first."""
    known = sorted(((form,) if isinstance(form, str) else form for form in forms), key=len, reverse=True)
    for form in known:
        if all(column in row for column in form):
            return form
    ways = " or ".join(" and ".join(map(repr, form)) for form in reversed(known))
    raise ValueError(f"expected the fields {ways}, got {', '.join(map(repr, row))}; `columns:` renames them")


def _check_texts(row: Row, columns: tuple[str, ...]) -> None:
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column].strip():
            what = "missing" if column not in row else "empty" if row[column] == "" else f"{row[column]!r:.40}"
            raise ValueError(f"expected a text in the field {column!r}, it is {what}")

"""Rows become test items: prompts, choices and answers, divided into validation and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import DataError, nearest
from ..rows import Row, RowsSource, read_rows, split_by_hash, subset
from ..templates import check_template, filled
from .abilities import Choice, Item
from .suite import SPLITS, Split

HALVES: Mapping[str, float] = {"validation": 0.5, "test": 0.5}


class AbilitySpec(BaseModel):
    """A task with known answers. Rows have ``prompt`` and ``answer``, multiple choice also ``choices``.

    Attributes:
        name: The ability's name in results.
        kind: How it is scored.
        rows: Where the items come from; ``rows.columns`` renames.
        template: How a row becomes the prompt, with the row's fields in braces.
        choices: Columns that hold one choice each, where the rows have no list ``choices``.
        split_by: The field whose hash says whether a row is for validation or test; None: the prompt.
        limit: At most so many items a split.
        normalise: Multiple choice: what a choice's log-probability is divided by (bytes, tokens, none).
        eos: Exact match: whether the model must also stop after the answer.

    The answer of a multiple choice is a position from 0, one of the row's ``labels`` where it has such a list (as
    ``A`` to ``D``), or the right choice's text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w-]+$")
    kind: Literal["multiple_choice", "exact_match"]
    rows: RowsSource
    template: str = "{prompt}"
    choices: list[str] | None = None
    split_by: str | None = None
    limit: int | None = Field(default=None, ge=1)
    normalise: Literal["bytes", "tokens", "none"] = "bytes"
    eos: bool = False

    _plain_template = field_validator("template")(check_template)


def items_of(spec: AbilitySpec, directory: Path) -> dict[Split, list[Item | Choice]]:
    """The ability's items by split; relative paths start at `directory`."""

    def check(row: Row) -> None:
        row["item"] = _choice(spec, row) if spec.kind == "multiple_choice" else _item(spec, row)
        row["part"] = row["item"].prompt if spec.split_by is None else field_of(row, spec.split_by)

    parts = rows_by_split(spec.rows, directory, check, "part", spec.limit)
    return {split: [row["item"] for row in rows] for split, rows in parts.items()}


def rows_by_split(
    source: RowsSource, directory: Path, check: Callable[[Row], None], field: str, limit: int | None
) -> dict[Split, list[Row]]:
    """Reads rows and divides them in halves by the hash of a field.

    Args:
        source: Which rows; a relative path starts at `directory`.
        directory: Where the spec stands.
        check: Raises `ValueError` for a row that cannot be used.
        field: The field that is hashed; rows with equal fields stay together.
        limit: At most so many rows a split.
    """
    source = located(source, directory)
    parts = split_by_hash(read_rows(source, check), field, HALVES)
    for split, rows in parts.items():
        if not rows:
            raise DataError(f"{source.label}: too few rows, none fell to {split}")
    return {split: subset(parts[split], limit) for split in SPLITS}


def located(source: RowsSource, directory: Path) -> RowsSource:
    """The source with a relative path made to start at `directory`."""
    file = source.file()
    if file is None or file.is_absolute():
        return source
    return source.model_copy(update={"path": str(directory / file)})


def field_of(row: Row, name: str) -> Any:
    """A row's value, which must be there."""
    if row.get(name) is None:
        raise ValueError(f"no value in column {name!r}{nearest(name, row)}")
    return row[name]


def _item(spec: AbilitySpec, row: Row) -> Item:
    return Item(filled(spec.template, row), str(field_of(row, "answer")))


def _choice(spec: AbilitySpec, row: Row) -> Choice:
    raw = [field_of(row, name) for name in spec.choices] if spec.choices else field_of(row, "choices")
    if not isinstance(raw, Sequence) or isinstance(raw, str) or len(raw) < 2:
        raise ValueError(f"choices: expected a list of at least two, got {raw!r}")
    choices = tuple(str(one).strip() for one in raw)
    position = _position(field_of(row, "answer"), choices, row.get("labels", ()))
    return Choice(filled(spec.template, row), choices, position)


def _position(answer: Any, choices: Sequence[str], labels: Sequence[Any]) -> int:
    named = [str(label) for label in labels]
    if str(answer) in named:
        return named.index(str(answer))
    if str(answer).isdigit() and int(answer) < len(choices):
        return int(answer)
    if str(answer).strip() in choices:
        return choices.index(str(answer).strip())
    raise ValueError(f"answer: expected a position below {len(choices)}, a label or a choice's text, got {answer!r}")

"""What an ability is, as written in a suite or in a task file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import nearest
from ..rows import RowsSource
from ..templates import check_template
from .generated import METRICS

Kind = Literal["multiple_choice", "exact_match", "last_word", "generated"]
OF_KIND: Mapping[str, tuple[str, ...]] = {
    "choices": ("multiple_choice",),
    "options": ("multiple_choice",),
    "letters": ("multiple_choice",),
    "normalise": ("multiple_choice",),
    "eos": ("exact_match", "last_word"),
    "metric": ("generated",),
    "max_new_tokens": ("generated",),
    "stop": ("generated",),
    "extract": ("generated",),
    "take": ("generated",),
    "answer_pattern": ("generated",),
}


class ShotsSpec(BaseModel):
    """Worked examples before every prompt; a row that is shown is no item.

    Attributes:
        rows: Where they come from, with the columns that the ability's template names.
        count: How many; always the same ones.
        answer: How a row becomes the example's answer, with the row's fields in braces.
        between: What stands after every example.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: RowsSource
    count: int = Field(ge=1)
    answer: str = "{answer}"
    between: str = "\n\n"

    _plain_answer = field_validator("answer")(check_template)


class AbilitySpec(BaseModel):
    """A task with known answers. Rows have what the template names, and ``answer``; multiple choice also ``choices``.

    Attributes:
        name: The ability's name in results.
        kind: How it is scored.
        rows: Where the items come from; ``rows.columns`` renames.
        template: How a row becomes the prompt, with the row's fields in braces; of a list, the first whose fields are
            there. ``last_word``: the whole text.
        remove: A regular expression; what it finds is cut out of prompts and choices.
        shots: Worked examples before every prompt.
        chat: Whether the prompt is a user's message in the model's chat template; None: as the suite says.
        split_by: The field whose hash says whether a row is for validation or test; None: the prompt.
        limit: At most so many items a split.
        chance: What guessing gets; None: for multiple choice one over the number of choices, else 0.
        choices: Multiple choice: columns that hold one choice each, where the rows have no list ``choices``.
        options: Multiple choice: the choices themselves, where they are the same for every row.
        letters: Multiple choice: ``{lettered}`` in the template shows the choices as A., B., …; the letter is scored.
        normalise: Multiple choice: what a choice's log-probability is divided by.
        eos: Exact match: whether the model must also stop after the answer.
        metric: Generated: a row of `untaxed.measuring.generated.METRICS`.
        max_new_tokens: Generated: at most so many tokens; 256 where nothing is given.
        stop: Generated: texts at which the answer ends.
        extract: Generated: a regular expression that finds the answer in what was written, its first group if any.
        take: Generated: the first or the last place that it finds.
        answer_pattern: Generated: the same for the right answers of the rows.

    The answer of a multiple choice is a position from 0, one of the row's ``labels`` where it has such a list (as
    ``A`` to ``D``), a truth value where there are two choices, or the right choice's text. Right answers of a generated
    one stand in a list ``answers`` or in ``answer``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w-]+$")
    kind: Kind
    rows: RowsSource
    template: str | list[str] = "{prompt}"
    remove: str | None = None
    shots: ShotsSpec | None = None
    chat: bool | None = None
    split_by: str | None = None
    limit: int | None = Field(default=None, ge=1)
    chance: float | None = Field(default=None, ge=0, lt=1)
    choices: list[str] | None = None
    options: list[str] | None = None
    letters: bool = False
    normalise: Literal["bytes", "characters", "tokens", "none"] = "bytes"
    eos: bool = False
    metric: str | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] = []
    extract: str | None = None
    take: Literal["first", "last"] = "last"
    answer_pattern: str | None = None

    @field_validator("template")
    @classmethod
    def _plain(cls, template: str | list[str]) -> str | list[str]:
        if not template:
            raise ValueError("is empty; write the prompt with the row's fields in braces")
        for one in [template] if isinstance(template, str) else template:
            check_template(one)
        return template

    @field_validator("remove", "extract", "answer_pattern")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: list[str]) -> list[str]:
        if not all(stop):
            raise ValueError("an empty text would stop every answer before it begins")
        return stop

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}{nearest(metric, METRICS)}")
        return metric

    @model_validator(mode="after")
    def _fits_its_kind(self) -> AbilitySpec:
        for name, kinds in OF_KIND.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` belongs to kind {' or '.join(kinds)}, and {self.name!r} is {self.kind}")
        if self.kind == "generated" and self.metric is None:
            raise ValueError(f"{self.name!r} is generated and needs a `metric`: {', '.join(METRICS)}")
        if self.choices is not None and self.options is not None:
            raise ValueError("`choices` (columns) and `options` (texts) exclude each other")
        return self


def without_nulls(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A task's plain values with those that a setting took back (``shots: null``) left out."""
    return {key: value for key, value in raw.items() if value is not None}

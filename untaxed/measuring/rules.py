"""Rewards by rules: the share of them that a completion keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

KINDS = ("regex", "json", "max_words", "min_words", "contains", "excludes")
Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class Rule(BaseModel):
    """One rule; exactly one of its fields, and how much it counts.

    Attributes:
        regex: An expression of Python's `re` that is found somewhere in the completion.
        is_json: Written ``json: true``: the whole completion is a JSON value (white space around it is allowed).
        max_words: At most so many words, as white space divides them.
        min_words: At least so many.
        contains: All of these stand in it, capitals or not.
        excludes: None of these stands in it, capitals or not.
        weight: Of this rule among the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    regex: str | None = None
    is_json: Literal[True] | None = Field(default=None, alias="json")
    max_words: int | None = Field(default=None, ge=0)
    min_words: int | None = Field(default=None, ge=1)
    contains: Words | None = None
    excludes: Words | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @field_validator("regex")
    @classmethod
    def _compiles(cls, expression: str | None) -> str | None:
        if expression is not None:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression: {error}") from None
        return expression

    @model_validator(mode="after")
    def _one_kind(self) -> Rule:
        given = [kind for kind in KINDS if getattr(self, "is_json" if kind == "json" else kind) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"a rule has exactly one of {', '.join(KINDS)}, got {got}; write several rules")
        return self

    def kept(self, text: str) -> bool:
        """Whether a completion keeps the rule."""
        if self.regex is not None:
            return re.search(self.regex, text) is not None
        if self.is_json is not None:
            return _is_json(text)
        if self.max_words is not None:
            return len(text.split()) <= self.max_words
        if self.min_words is not None:
            return len(text.split()) >= self.min_words
        found = [word.casefold() in text.casefold() for word in self.contains or self.excludes or ()]
        return all(found) if self.contains is not None else not any(found)


def _is_json(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN and Infinity are Python's own

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


class Rules:
    """The weighted share of rules that a completion keeps, in [0, 1]; the prompt is not looked at.

    Args:
        rules: At least one.
    Example:
        >>> Rules([Rule(max_words=3), Rule(regex=r"[.]$", weight=3)])(["p"], ["Yes, of course, gladly."])
        [0.75]
    """

    __name__ = "rules"  # TRL names its metrics after a reward

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One number a completion; further columns, which TRL passes, are ignored."""
        total = sum(rule.weight for rule in self.rules)
        return [sum(rule.weight for rule in self.rules if rule.kept(text)) / total for text in completions]

"""How a merge stands in recipes: the numbers that it takes, how many models, and what its base is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import SpecError, nearest, short
from ._rule import Rule
from ._settings import Setting, Value

Base = Literal["needed", "optional", "first", "unused"]


@dataclass(frozen=True)
class Parameter:
    """A number that a recipe may give.

    Attributes:
        each: Every model has its own; else there is one for all.
        required: The recipe has to say it; else it has the default.
        default: May be None: the method then does without.
        least, most: What it may be; with ``above`` the least itself is too little.
        whole: It is an integer.
        words: What it may be instead of a number, and what that means.
        only: The one value that is supported, and what to do about another.
    """

    each: bool = False
    required: bool = False
    default: Value | None = None
    least: float = float("-inf")
    most: float = float("inf")
    above: bool = False
    whole: bool = False
    words: Mapping[Value, Value] | None = None
    only: tuple[Value, str] | None = None

    def fault(self, value: Value) -> str | None:
        """What is wrong with a value, as the tail of an error message."""
        if self.words is not None:
            known = ", ".join(str(word).lower() for word in self.words)
            if not any(value is word or value == word for word in self.words):
                return f"should be one of {known}, got {short(value)}"
        elif isinstance(value, bool | str):
            return f"should be a number, got {short(value)}"
        elif not self.least <= value <= self.most or (self.above and value == self.least):
            return f"should be in {'(' if self.above else '['}{self.least:g}, {self.most:g}], got {value:g}"
        elif self.whole and value != int(value):
            return f"should be an integer, got {value:g}"
        if self.only and value != self.only[0]:
            return f"{str(value).lower()} is not supported; {self.only[1]}"
        return None

    @property
    def flows(self) -> bool:
        """Whether it can change from layer to layer in a straight line."""
        return self.words is None and not self.whole

    def meaning(self, value: Value) -> Value:
        """A value as the rule wants it."""
        return self.words[value] if self.words else int(value) if self.whole else value


@dataclass(frozen=True)
class Numbers:
    """A method's numbers for one tensor: ``numbers["weight"]`` is a tuple where every model has its own.

    Attributes:
        models: How many are merged.
        based: Whether there is a base that they are compared with.
        values: By parameter.
    """

    models: int
    based: bool
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Row:
    """A merge as recipes know it.

    Attributes:
        name: As recipes write it.
        parameters: The numbers it takes.
        rule: Makes the rule of one tensor from its numbers; None: the one model's tensor is copied.
        base: What ``base_model`` is: "needed" or "optional", where deltas are taken from it; "first", where it is the
            first of the models that are merged; "unused", where it gives the config and other files only.
        least, most: How many models are merged, the base not counted.
    """

    name: str
    parameters: Mapping[str, Parameter]
    rule: Callable[[Numbers], Rule | None]
    base: Base = "unused"
    least: int = 1
    most: int | None = None

    def check(self, settings: Mapping[str, Setting], at: str, *, of_model: bool) -> None:
        """Raises `SpecError` for a parameter that the merge does not take, or a value that it cannot have."""
        for key, setting in settings.items():
            if key not in self.parameters:
                raise SpecError(f"{at}: {self.name} has no parameter {key!r}{nearest(key, self.parameters)}")
            parameter = self.parameters[key]
            if of_model and not parameter.each:
                raise SpecError(f"{at}.{key}: is one for all models; write it under the recipe's `parameters`")
            for fault in filter(None, map(parameter.fault, setting.values)):
                raise SpecError(f"{at}.{key}: {fault}")
            if not parameter.flows and any(len(case.values) > 1 for case in setting.cases):
                raise SpecError(f"{at}.{key}: has no gradient over the layers; give one value")

    def check_models(self, at: str, names: list[str], base: str | None) -> None:
        """Raises `SpecError` where these are too few or too many models."""
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SpecError(f"{at}: {twice} stands twice; give it once, with the weight that it has in all")
        others = sum(name != base for name in names)
        if others == 0 and self.least == 1:
            return  # the base merged with nothing
        if others < self.least or (self.most is not None and others > self.most):
            bound = "exactly" if self.least == self.most else "at least"
            besides = " besides base_model" if base is not None else ""
            models = "1 model" if self.least == 1 else f"{self.least} models"
            raise SpecError(f"{at}: {self.name} merges {bound} {models}{besides}, got {others}")

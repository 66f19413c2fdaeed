"""A number of a recipe that may differ from tensor to tensor: one value, a gradient over the layers, or by filters."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import nearest, short

Value = float | bool | str
KEYS = ("filter", "value")
EVERYTHING = "*"


@dataclass(frozen=True)
class Case:
    """The values of those tensors whose name contains `filter`; None is every tensor."""

    values: tuple[Value, ...]
    filter: str | None = None

    def holds(self, name: str) -> bool:
        return self.filter is None or self.filter in name


@dataclass(frozen=True)
class Setting:
    """What a recipe says of one number: the first case that holds for a tensor gives it.

    Example:
        >>> setting = Setting.read([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}])
        >>> setting.at("model.layers.1.mlp.up_proj.weight", 0.25), setting.at("model.norm.weight", 0.0)
        (0.25, 0.5)
    """

    cases: tuple[Case, ...]

    @classmethod
    def read(cls, raw: Any) -> Setting:
        """A setting as YAML has it: a value, a list of values, a ``{filter, value}`` or a list of those.

        Raises:
            ValueError: It is none of them.
        """
        rows = raw if isinstance(raw, list) and any(isinstance(row, Mapping) for row in raw) else [raw]
        if plain := [row for row in rows if len(rows) > 1 and not isinstance(row, Mapping)]:
            raise ValueError(f"a value beside filters should be written {{value: {short(plain[0])}}}")
        return cls(tuple(_case(row) for row in rows))

    def at(self, name: str, t: float) -> Value | None:
        """The value for a tensor at depth ``t``, from 0 (first layer) to 1 (last); None where no case holds."""
        found = next((case for case in self.cases if case.holds(name)), None)
        return None if found is None else gradient(found.values, t)

    @property
    def values(self) -> tuple[Value, ...]:
        """Every value that is written anywhere in it."""
        return tuple(value for case in self.cases for value in case.values)


def gradient(values: tuple[Value, ...], t: float) -> Value:
    """Equally spaced values, read at ``t`` in [0, 1] with straight lines between them.

    Example:
        >>> gradient((0.0, 1.0, 0.0), 0.25)
        0.5
    """
    if len(values) == 1:
        return values[0]
    place = t * (len(values) - 1)
    left = min(int(place), len(values) - 2)
    low, high, share = float(values[left]), float(values[left + 1]), place - left
    return high if share == 1 else low + share * (high - low)  # the ends are exact


def _case(raw: Any) -> Case:
    if not isinstance(raw, Mapping):
        return Case(_values(raw))
    for key in raw:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}{nearest(str(key), KEYS)}")
    if "value" not in raw:
        raise ValueError("a filter needs a `value` beside it")
    wanted = raw.get("filter")
    if wanted is not None and (not isinstance(wanted, str) or not wanted):
        raise ValueError(f"filter should be a part of tensors' names, got {short(wanted)}")
    return Case(_values(raw["value"]), None if wanted == EVERYTHING else wanted)


def _values(raw: Any) -> tuple[Value, ...]:
    values = tuple(map(_number, raw)) if isinstance(raw, list) else (_number(raw),)
    if not values:
        raise ValueError("is an empty list; give at least one value")
    return values


def _number(raw: Any) -> Value:
    """A number, also one in quotes; a truth value or a word, which some parameters have."""
    if isinstance(raw, str):
        try:
            raw = float(raw)
        except ValueError:
            return str(raw)
    if not isinstance(raw, int | float) or not abs(raw) <= sys.float_info.max:  # an int may be beyond it
        raise ValueError(f"should be a number, a list of numbers over the layers, or filters, got {short(raw)}")
    return raw

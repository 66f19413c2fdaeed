"""A value that a user wrote, in the type that its field has: "1e-6" is a number, and `true` is none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from .errors import SpecError


def typed(where: str, hint: Any, value: Any) -> Any:
    """The value in its field's type, so that equal settings are equal however they were written.

    Args:
        where: The field, as the error names it.
        hint: Its annotation.
        value: As YAML reads it.
    Raises:
        SpecError: It does not fit, is a truth value in place of a number, or is not finite.
    Example:
        >>> typed("kl.beta", float, 1), typed("kl.beta", float, "1e-6")
        (1.0, 1e-06)
    """
    try:
        made = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise SpecError(f"{where}: {_ways(error)}, got {value!r}") from None
    if next(truth_values(value, made), None) is not None:
        raise SpecError(f"{where} must be a number, got {value!r}")
    if isinstance(made, float) and not math.isfinite(made):
        raise SpecError(f"{where} must be finite, got {made}")
    return made


def _ways(error: ValidationError) -> str:
    """What the value should be; of a field of several types, each of them: the first alone would hide the others."""
    said = [one["msg"].replace("Input should", "should").split("\n")[0] for one in error.errors()]
    return " or ".join(dict.fromkeys([said[0], *(one.removeprefix("should ") for one in said[1:])]))


def truth_values(raw: Any, made: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where `raw` has a truth value and `made`, which pydantic made of it, a number."""
    if isinstance(raw, bool):
        if isinstance(made, int | float) and not isinstance(made, bool):
            yield at
    elif isinstance(raw, Mapping):
        inner = dict(made) if isinstance(made, Mapping | BaseModel) else {}
        for key in raw.keys() & inner.keys():
            yield from truth_values(raw[key], inner[key], (*at, str(key)))
    elif isinstance(raw, list | tuple) and isinstance(made, list | tuple):
        for index, pair in enumerate(zip(raw, made)):
            yield from truth_values(*pair, (*at, str(index)))

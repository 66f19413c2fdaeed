"""Turns pydantic's errors into one line: the dotted key, what is wrong, and the nearest known key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from ..errors import SpecError, nearest
from ..values import truth_values

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], value: Any, where: str = "", at: str = "") -> Model:
    """Validates `value`, which stands at the dotted key `at` of the file that `where` names.

    Raises:
        SpecError: The first thing that is wrong, in one line.
    """
    if not isinstance(value, Mapping | model):
        raise SpecError(f"{where}{at or 'a study'}: expected keys and values, got {_shown(value)}")
    try:
        made = model.model_validate(value)
    except ValidationError as error:
        found = sorted(
            error.errors(), key=lambda one: one["type"] != "extra_forbidden"
        )  # a typo explains what is missing
        raise SpecError(where + _line(model, found[0], at)) from None
    for keys in truth_values(value, made):  # pydantic takes true for 1
        raise SpecError(f"{where}{'.'.join(filter(None, [at, *keys]))}: should be a number, got a truth value")
    return made


def _line(model: type[BaseModel], error: Any, at: str) -> str:
    keys, known = _walk(model, error["loc"])
    if error["type"] == "extra_forbidden":
        parent = ".".join(filter(None, [at, *keys[:-1]]))
        return f"unknown key {keys[-1]!r}{f' in {parent}' if parent else ''}{nearest(keys[-1], known)}"
    path = ".".join(filter(None, [at, *keys]))
    if error["type"] == "missing":
        return f"key `{path}` is required"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should", "should").split("\n")[0]
    got = "" if error["type"] in ("value_error", "assertion_error") else f", got {_shown(error['input'])}"
    return f"{path}: {message}{got}" if path else f"{message}{got}"


def _walk(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The dotted key of an error without the tags of unions, and the keys known where it ends."""
    models, keys, known = [model], [], list(model.model_fields)
    for part in loc:
        field = next((m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields), None)
        if field is not None:
            models = list(_models(field.annotation)) or models
        elif isinstance(part, str) and part != loc[-1]:
            continue  # the tag of a union
        keys.append(str(part))
        if part != loc[-1]:
            known = sorted({name for m in models for name in m.model_fields})
    return keys, known


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside an annotation, such as ``list[A | B] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Turns pydantic's errors into one line: the dotted key, what is wrong, and the nearest known key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from .errors import SpecError, nearest, short
from .values import truth_values

Model = TypeVar("Model", bound=BaseModel)
KEYS_OR_LIST = ("dict_type", "list_type", "tuple_type", "model_type", "model_attributes_type")  # pydantic's errors


def validated(model: type[Model], value: Any, where: str = "", at: str = "", what: str = "a study") -> Model:
    """Validates `value`, which stands at the dotted key `at` of the file that `where` names; `what` is the whole file.

    Raises:
        SpecError: The first thing that is wrong, in one line.
    """
    if not isinstance(value, Mapping | model):
        raise SpecError(f"{where}{at or what}: expected keys and values, got {short(value, 60)}")
    try:
        made = model.model_validate(value)
    except ValidationError as error:
        found = sorted(error.errors(), key=_says_least)
        raise SpecError(where + _line(model, value, found[0], at)) from None
    for keys in truth_values(value, made):  # pydantic takes true for 1
        raise SpecError(f"{where}{'.'.join(filter(None, [at, *keys]))}: should be a number, got a truth value")
    return made


def _says_least(error: Any) -> tuple[bool, bool, bool]:
    """A typo explains what is missing; of a union, the member that takes keys explains a value that has keys; a list
    whose items are wrong is called too short as well."""
    named = error["type"] in ("literal_error", "string_type") and isinstance(error["input"], Mapping)
    return error["type"] != "extra_forbidden", error["type"] == "too_short", named


def _line(model: type[BaseModel], value: Any, error: Any, at: str) -> str:
    keys, inside, known = _walk(model, value, error)
    path = ".".join(filter(None, [at, *keys]))
    if error["type"] == "extra_forbidden":
        parent = ".".join(filter(None, [at, *keys[:-1]]))
        return f"unknown key {keys[-1]!r}{f' in {parent}' if parent else ''}{nearest(keys[-1], known)}"
    if error["type"] == "missing":
        return f"key `{path}` is required"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        names = [*re.findall(r"'([^']+)'", error["ctx"]["expected"]), *(f"{{{name}: …}}" for name in inside)]
        return f"{path}: unknown name {error['input']!r}{nearest(error['input'], names)}"
    if error["type"] in ("too_short", "string_too_short"):
        return f"{path}: is empty; give at least {error['ctx']['min_length']}"
    if error["input"] is None and path and error["type"] in KEYS_OR_LIST:
        return f"{path}: has no value; give one, or leave out the key where it is not required"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r"^(Input|String|List|Tuple) should", "should", message).split("\n")[0]
    got = "" if error["type"] in ("value_error", "assertion_error") else f", got {short(error['input'], 60)}"
    return f"{path}: {message}{got}" if path else f"{message}{got}"


def _walk(model: type[BaseModel], value: Any, error: Any) -> tuple[list[str], list[str], list[str]]:
    """The dotted key of an error, the fields of the models that may stand there, and the keys known where it ends.

    What pydantic puts between the keys to tell the members of a union apart is no key of the value, and left out.
    """
    models, keys, known = [model], [], _names([model])
    for part in error["loc"]:
        around = _names(models)
        if part in around:
            fields = [one.model_fields[part] for one in models if part in one.model_fields]
            models = [inner for field in fields for inner in _models(field.annotation)]
        if isinstance(value, Mapping) and (part in value or (error["type"] == "missing" and part == error["loc"][-1])):
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int):
            value = value[part]
        elif isinstance(value, BaseModel) and part in type(value).model_fields:
            value = getattr(value, str(part))
        else:
            continue
        keys.append(str(part))
        known = around
    return keys, _names(models), known


def _names(models: list[type[BaseModel]]) -> list[str]:
    """The keys of models as they are written."""
    return sorted({field.alias or name for one in models for name, field in one.model_fields.items()})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside an annotation, such as ``list[A | B] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)

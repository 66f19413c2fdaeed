"""Arms as a spec writes them, each value in its setting's type.

plain | {kl: {beta: 0.3}} | {kl: {beta: {sweep: [0.3, 1]}}} | [{elastic_reset: {…}}, {averaging: {…}}]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import methods as table
from ..errors import SpecError
from ..method import Method

SWEEP = "{sweep: [value, …]}"


@dataclass(frozen=True)
class Part:
    """One method of an arm: its row, its settings as the spec gives them, and its place there (``methods.2.kl``)."""

    name: str
    row: type[Method]
    given: dict[str, Any]
    where: str


def parts_of(item: Any, where: str) -> list[Part]:
    """The methods of one arm; every value, those of sweeps too, has its setting's type: equal settings are the same.

    Args:
        item: An item of a spec's `methods`.
        where: Its place there: ``methods.2``.
    Raises:
        SpecError: It has another form, or a method, a setting or a value is wrong; its place is named.
    """
    if isinstance(item, list) and item:
        return [_part(inner, f"{where}.{index}") for index, inner in enumerate(item)]
    return [_part(item, where)]


def _part(item: Any, where: str) -> Part:
    if isinstance(item, str):
        return _typed(item, {}, where)
    if isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict | None):
        [(name, given)] = item.items()
        return _typed(str(name), given or {}, where)
    raise SpecError(f"{where}: expected a method's name or {{name: settings}}, got {item!r}")


def _typed(name: str, given: dict[str, Any], where: str) -> Part:
    try:
        row = table.get(name)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    at = f"{where}.{name}"
    return Part(name, row, {key: _value(row, key, value, at) for key, value in given.items()}, at)


def _value(row: type[Method], key: str, value: Any, where: str) -> Any:
    sweep = sweep_of(value, f"{where}.{key}")
    if sweep is not None:
        values = [row.setting(key, one, where) for one in sweep]
        if any(values.count(one) > 1 for one in values):
            raise SpecError(f"{where}.{key}: a value stands twice in the sweep {values!r}")
        return {"sweep": values}
    try:
        return row.setting(key, value, where)
    except SpecError as error:
        raise SpecError(f"{error}; a sweep is written {SWEEP}" if isinstance(value, dict) else str(error)) from None


def sweep_of(value: Any, where: str) -> list[Any] | None:
    """The values of a sweep; None where the value is none."""
    if not isinstance(value, dict) or "sweep" not in value:
        return None
    values = value["sweep"]
    if set(value) != {"sweep"} or not isinstance(values, list) or not values:
        raise SpecError(f"{where}: a sweep is written {SWEEP}, got {value!r}")
    return values

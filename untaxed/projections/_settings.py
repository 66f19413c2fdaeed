"""Checks of settings that the projections share."""

from __future__ import annotations

from typing import Any, get_args


def check_count(name: str, value: object, *, least: int = 1, none: bool = False) -> None:
    """Raises `ValueError` unless a setting is a whole number of at least `least`, or None where that is allowed."""
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")


def check_choices(**given: tuple[object, Any]) -> None:
    """Raises `ValueError` where a setting is not one of its literal type's words."""
    for name, (value, known) in given.items():
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")

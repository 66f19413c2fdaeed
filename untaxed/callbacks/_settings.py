"""Settings of methods between steps: as plain values, and the checks that several of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from ..method import Method


def settings_of(method: Method, *, hidden: Collection[str]) -> dict[str, Any]:
    """A method's settings as plain values for keys and files.

    Args:
        method: Whose.
        hidden: Settings that are said only where they are not at their defaults, so that one that is added later leaves
            the keys of runs without it as they were.
    """
    values = {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name not in hidden or getattr(method, field.name) != field.default
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def check_flag(name: str, value: object) -> None:
    """Raises `ValueError` unless a setting is a truth value: the text "false" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_patterns(name: str, value: object) -> None:
    """Raises `ValueError` unless a setting is a list of shell patterns, or None: a text would be read by letters."""
    if value is None:
        return
    texts = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value)
    if not texts:
        raise ValueError(f'{name} must be a list of shell patterns, such as ["lm_head.*"], or None, got {value!r}')

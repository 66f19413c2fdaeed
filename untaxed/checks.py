"""Checks of numbers that a user gives as settings."""

from __future__ import annotations

import math
from numbers import Real


def check_fraction(name: str, value: object, *, beyond: str = "") -> None:
    """Raises `ValueError` unless a setting is a number in [0, 1]; `beyond` says what a number outside would mean."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}{beyond}")


def check_number(name: str, value: object) -> None:
    """Raises `ValueError` unless a setting is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")

"""Checks a saved state before any of it is taken up, so that one that does not fit changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import StoreError

Check = Callable[[Any], bool]


def check_state(state: Any, kinds: Mapping[str, tuple[str, Check]], *, of: str) -> None:
    """Raises `StoreError` that lists every key of a saved state that is missing or holds another kind of value.

    Args:
        state: What somebody hands to `load_state_dict`.
        kinds: What each key holds, in words and as a test.
        of: Whose state it should be, for the message.
    """
    if not isinstance(state, Mapping):
        faults = [f"it is {type(state).__name__}, no mapping"]
    else:
        faults = [f"{key!r} is missing" for key in kinds if key not in state]
        faults += [
            f"{key!r} must be {words}, got {_short(state[key])}"
            for key, (words, holds) in kinds.items()
            if key in state and not holds(state[key])
        ]
    if faults:
        raise StoreError(f"this is no state of {of}: {'; '.join(faults)}; give what its state_dict() returned")


def is_count(value: Any) -> bool:
    """True for a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_tensors(value: Any) -> bool:
    """True for a mapping of names to tensors."""
    return isinstance(value, Mapping) and all(isinstance(tensor, Tensor) for tensor in value.values())


def is_fraction(value: Any) -> bool:
    """True for a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


FRACTION = ("a number from 0 to 1", is_fraction)
COUNT = ("a whole number from 0 on", is_count)
TENSORS = ("tensors by name", is_tensors)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{type(value).__name__} {text[:30]}…"

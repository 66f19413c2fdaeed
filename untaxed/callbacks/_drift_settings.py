"""The settings of a drift meter: what they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, Literal, get_args

from ..errors import DataError, nearest
from ._guards import BOTH_SETS, MEASURES

NonFinite = Literal["raise", "stop"]


def measures(general_prompts: object) -> Sequence[str]:
    """What a meter reads, with these prompts as its second set or None."""
    return MEASURES if general_prompts is None else BOTH_SETS


def check_settings(every: Any, samples: Any, max_new_tokens: Any, temperature: Any, non_finite: Any, seed: Any) -> None:
    """Raises `ValueError` for settings of a drift meter that are out of range."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    for name, value in (("every", every), ("samples", samples), ("max_new_tokens", max_new_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number, at least 0, got {temperature!r}")
    if non_finite not in get_args(NonFinite):
        raise ValueError(f"non_finite cannot be {non_finite!r}{nearest(str(non_finite), get_args(NonFinite))}")


def check_prompts(prompts: Any, kind: str = "prompt") -> None:
    """Raises `DataError` unless these are texts or conversations in a list, one at least.

    Args:
        prompts: What was given.
        kind: What messages call one of them.
    """
    listed = isinstance(prompts, Sized) and isinstance(prompts, Iterable) and not isinstance(prompts, str | Mapping)
    if not listed or not len(prompts):
        what = "there are none" if listed else f"got {type(prompts).__name__}"
        raise DataError(f"the drift meter takes a list of {kind}s, texts or conversations; {what}")
    for number, prompt in enumerate(prompts):
        if not is_prompt(prompt):
            raise DataError(f"{kind} {number} is neither a text nor a conversation: {prompt!r}")


def is_prompt(value: Any) -> bool:
    """True for a text and for a list of messages."""
    talks = not isinstance(value, str | Mapping) and isinstance(value, Sequence) and len(value)
    return isinstance(value, str) or bool(talks and all(isinstance(one, Mapping) for one in value))

"""The saved form of a `Pipeline`: the base's, every parameter's state split into ``base`` and ``pipeline``.

This is torch's own form (``state`` and ``param_groups``), so whatever handles an optimizer's state handles ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import nearest
from ._groups import check_saved_names
from ._place import as_placed, local_part
from ._sites import Live


def nest(saved: Mapping[str, Any], lives: Iterable[Live]) -> dict[str, Any]:
    """Joins our state to the base's.

    Args:
        saved: The base's `state_dict()`.
        lives: All parameters, in the groups' order. Our tensors of sharded ones become DTensors.
    """
    state: dict[Any, dict[str, Any]] = {key: {"base": value} for key, value in saved["state"].items()}
    for key, live in zip(_keys(saved), lives, strict=True):
        if live.own:
            own = {part: _mapped(value, as_placed, live.parameter) for part, value in live.own.items()}
            state.setdefault(key, {})["pipeline"] = own
    return {**saved, "state": state}


def base_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The base's part of a saved state."""
    return {
        **state_dict,
        "state": {key: value["base"] for key, value in state_dict["state"].items() if "base" in value},
    }


def own_of(state_dict: Mapping[str, Any], lives: Iterable[Live]) -> dict[str, dict[str, Any]]:
    """Our part of a saved state, by name; copies, on the parameters' devices."""
    found = {}
    for key, live in zip(_keys(state_dict), lives, strict=True):
        if own := state_dict["state"].get(key, {}).get("pipeline"):
            kept = {part: _mapped(value, local_part, live.parameter) for part, value in own.items()}
            found[live.place.name] = {**kept, "step": int(own["step"])}
    return found


def check_saved(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], functions: Iterable[str]) -> None:
    """Raises `ValueError` where a saved state is not a Pipeline's, or has other parameters or functions."""
    if any(not set(value) <= {"base", "pipeline"} for value in state_dict["state"].values()):
        raise ValueError("the saved state is not a Pipeline's; load a base's own with pipeline.base.load_state_dict")
    check_saved_names(state_dict["param_groups"], groups)
    owns = [value.get("pipeline", {}) for value in state_dict["state"].values()]
    if unknown := sorted({key for own in owns for key in own} - {*functions, "step", "initial"}):
        raise ValueError(f"the saved state has the function {unknown[0]!r}{nearest(unknown[0], functions)}")


def _keys(saved: Mapping[str, Any]) -> Iterable[Any]:
    """What stands for the parameters in a saved state: numbers, or names where a tool put them."""
    return itertools.chain.from_iterable(group["params"] for group in saved["param_groups"])


def _mapped(value: Any, function: Callable[[Any, Tensor], Any], parameter: Tensor) -> Any:
    """A function over the tensors of a nested state."""
    if isinstance(value, dict):
        return {key: _mapped(one, function, parameter) for key, one in value.items()}
    return function(value, parameter)

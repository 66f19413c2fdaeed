"""One parameter at one step, as the ways of a step take it: local tensors, its state and its settings."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..weights import local
from ._merge import Merging, Place, merging_of
from ._place import place_of

MOMENTS = ("exp_avg", "exp_avg_sq")
NONE = torch.empty(0)


@dataclass(slots=True)
class Item:
    """One parameter at one step."""

    parameter: Tensor
    place: Place
    weights: Tensor
    gradient: Tensor
    state: MutableMapping[str, Any]
    group: MutableMapping[str, Any]
    merging: Merging
    step: int = 0
    moments: tuple[Tensor, Tensor] = (NONE, NONE)  # the first and the second, from `advance` on


def items_of(
    groups: Sequence[MutableMapping[str, Any]], states: MutableMapping[Tensor, Any], *, without_gradient: bool = False
) -> list[Item]:
    """The parameters that have a gradient; with `without_gradient` all, which get no state by being looked at.

    Raises:
        RuntimeError: A gradient is sparse.
    """
    items = []
    for group in groups:
        merging = merging_of(group)
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            gradient = parameter.grad
            if gradient is None and not without_gradient:
                continue
            state = states[parameter] if gradient is not None else states.get(parameter, {})
            gradient = parameter if gradient is None else gradient
            if gradient.is_sparse:
                raise RuntimeError(f"the gradient of {name!r} is sparse, which merged AdamW does not take")
            weights = local(parameter.detach())
            items.append(Item(parameter, place_of(name, parameter), weights, local(gradient), state, group, merging))
    return items


def advance(items: Sequence[Item]) -> None:
    """Makes or counts on the parameters' states: moments in float32 or better, sharded as the parameter is."""
    for item in items:
        if "step" not in item.state:
            _begin(item)
    steps = [item.state["step"] for item in items]
    torch._foreach_add_(steps, 1)
    for item, step in zip(items, steps):
        item.step = int(step.item())
        item.moments = moments_of(item)


def moments_of(item: Item) -> tuple[Tensor, Tensor]:
    """Both moments' local parts."""
    return local(item.state[MOMENTS[0]]), local(item.state[MOMENTS[1]])


def _begin(item: Item) -> None:
    state = item.state
    state["step"] = torch.tensor(0.0)
    wide = torch.promote_types(item.weights.dtype, torch.float32)
    for name in MOMENTS:
        state[name] = torch.zeros_like(item.parameter, dtype=wide, memory_format=torch.preserve_format)
    if item.group["master"] is not None and item.weights.dtype.itemsize < 4:
        state["master"] = item.parameter.detach().to(torch.float32, copy=True)


def by_group(items: Sequence[Item]) -> list[tuple[Mapping[str, Any], list[Item]]]:
    """Items with the group that they belong to."""
    groups: dict[int, tuple[Mapping[str, Any], list[Item]]] = {}
    for item in items:
        groups.setdefault(id(item.group), (item.group, []))[1].append(item)
    return list(groups.values())

"""The sites inside a step: what their functions are told, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..weights import local
from ._merge import Place

SITES = ("gradient", "update", "displacement")
PART = 1 << 18  # entries


@dataclass(frozen=True)
class Entry:
    """What a site's function is told about the parameter at hand.

    Attributes:
        place: Its name, and which part of it the local tensor is.
        shape: Of the whole parameter.
        group: Its group, the learning rate among others.
        settings: The function's own hyperparameters, as they stand in the group now.
        step: The parameter's own steps, this one included: from 1.
        momentum: The base optimizer's first moment (local part), or None. Not to be written to.
        dtype: The parameter's, which may be narrower than that of the tensors handed to the function.
        device: The parameter's.
    """

    place: Place
    shape: tuple[int, ...]
    group: Mapping[str, Any]
    settings: Mapping[str, Any]
    step: int
    momentum: Tensor | None
    dtype: torch.dtype
    device: torch.device


Rule = Callable[..., Tensor]
"""A function of a site: ``f(gradient, entry, state)``, ``f(update, old, entry, state)``, ``f(displacement, entry,
state)``. It returns a new tensor; ``state`` is its own dict for this parameter, saved with the optimizer.

It may have ``defaults`` (hyperparameters for the groups), ``check(entries)`` (raises before anything is changed) and,
at site update, ``flush(old, entry, state)`` (the update that is still owed, or None) and ``restart(state)`` (somebody
replaced the weights: nothing is owed any more). At site displacement it may say ``elementwise = True``: each entry's
answer depends on that entry alone and nothing is kept in ``state``, so that it is handed flat parts; it returns what it
was handed itself where it changes nothing."""


class Function(NamedTuple):
    key: str  # "update.0": of its state
    rule: Any
    settings: dict[str, str]  # its hyperparameter -> the group's key


class Live(NamedTuple):
    """One parameter in one step."""

    place: Place
    parameter: Tensor
    group: dict[str, Any]
    own: dict[str, Any]

    @property
    def local(self) -> Tensor:
        return local(self.parameter.detach())

    @property
    def wide(self) -> Tensor:
        """The local weights in float32 where they are narrower."""
        return self.local.to(wide_of(self.parameter.dtype))


def called(function: Function, live: Live, values: Tensor, *rest: Any) -> Tensor:
    """A function's answer; its state is kept from the first thing that it puts there."""
    state = live.own.get(function.key, {})
    answer: Tensor = function.rule(values, *rest, state)
    if state:
        live.own[function.key] = state
    if answer.shape != values.shape:
        raise ValueError(
            f"{function.key} returned shape {tuple(answer.shape)} for {live.place.name!r}, expected "
            f"{tuple(values.shape)}"
        )
    return answer.to(values.dtype)


def parts_of(live: Live, origin: Tensor) -> Iterator[tuple[Live, Tensor]]:
    """A parameter and another tensor of its shape cut into flat parts that stay in the cache while they are worked on.

    A step of elementwise functions is several passes over the weights; whole tensors would each time go to memory.
    """
    if not (live.local.is_contiguous() and origin.is_contiguous()):
        yield live, origin
        return
    for number, (weights, other) in enumerate(zip(live.local.view(-1).split(PART), origin.view(-1).split(PART))):
        place = replace(live.place, offset=live.place.offset + number * PART)
        yield Live(place, weights, live.group, live.own), other


def functions_of(given: Mapping[str, Any]) -> dict[str, list[Function]]:
    """The sites' functions with their keys; every hyperparameter gets a key of its own in the groups."""
    taken: set[str] = set()
    sites: dict[str, list[Function]] = {}
    for site in SITES:
        rules = [given[site]] if callable(given[site]) else list(given[site])
        sites[site] = []
        for index, rule in enumerate(rules):
            if not callable(rule):
                raise ValueError(f"{site} takes functions, got {rule!r}")
            key = f"{site}.{index}"
            settings = {name: f"{key}.{name}" if name in taken else name for name in getattr(rule, "defaults", {})}
            taken |= set(settings)
            sites[site].append(Function(key, rule, settings))
    return sites


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else torch.float32

"""The sites inside a step: what their functions are told, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

It may also have

- ``defaults``: hyperparameters for the groups;
- ``check(entries)``: raises before anything is changed;
- ``bind(model, host)``: takes what it needs to run the model; `attach` calls it when training begins;
- ``begin(entries, states)``: at the beginning of every step, for all parameters, those without a gradient too; it may
  raise, and what it puts into the states stays;
- ``read()``: values of the last step for the log; all processes call it;
- ``flush(old, entry, state)`` at site update: the update that is still owed, or None; at site displacement
  ``flush(displacement, entry, state)``;
- ``restart(state)``: somebody replaced the weights; at site update nothing is owed any more;
- ``promises = True`` at site update: what functions before it flush goes through it, too;
- ``settled(displacement, state)`` at site displacement: what it makes of any weights' displacement, and ``owes(entry,
  state)``: whether the policy's own are still to become that (`Pipeline.settled`);
- ``elementwise = True`` at site displacement: each entry's answer depends on that entry alone and nothing is kept in
  ``state``, so that it is handed flat parts; it returns what it was handed itself where it changes nothing;
- ``follows(entry)`` at site displacement: whether it acts on this parameter, whose initial weights are kept then; and
  ``due(entry)``: whether it acts at this step.

With ``together`` true it is called once a step with lists of all parameters' tensors, entries and states, at the sites
gradient and update; it may write into the tensors, and returns a list."""


class Function(NamedTuple):
    key: str  # "update.0": of its state
    rule: Any
    settings: dict[str, str]  # its hyperparameter -> the group's key

    @property
    def together(self) -> bool:
        return bool(getattr(self.rule, "together", False))


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


def called(function: Function, lives: Sequence[Live], values: Sequence[Tensor], *rest: Sequence[Any]) -> list[Tensor]:
    """A function's answers; its states are kept from the first thing that it puts there.

    Args:
        function: One that acts together gets the lists, another its parameters one by one.
        lives: The parameters.
        values: One tensor a parameter.
        rest: What else it is told, one a parameter, the entries last.
    """
    states = [live.own.get(function.key, {}) for live in lives]
    if function.together:
        answers = list(function.rule(list(values), *map(list, rest), states))
    else:
        answers = [function.rule(*given) for given in zip(values, *rest, states, strict=True)]
    keep(function, lives, states)
    for live, value, answer in zip(lives, values, answers, strict=True):
        if answer.shape != value.shape:
            raise ValueError(
                f"{function.key} returned shape {tuple(answer.shape)} for {live.place.name!r}, expected "
                f"{tuple(value.shape)}"
            )
    return [answer.to(value.dtype) for answer, value in zip(answers, values)]


def keep(function: Function, lives: Sequence[Live], states: Sequence[dict[str, Any]]) -> None:
    """Keeps a function's states that hold something."""
    for live, state in zip(lives, states, strict=True):
        if state:
            live.own[function.key] = state


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

"""From a recipe and its parents' tensors to one rule for every tensor of the output.

1. The recipe becomes runs of output layers, each with its sources (`_runs`).
2. Every output tensor belongs to a run: a layer's to the one that makes it; what lies before the layers (embeddings)
   to the first, what lies after them (norm, head) to the last.
3. Its numbers are read at its depth in the run, from the innermost scope that says them, and make the rule. What lies
   outside the layers has depth 0, after them too; a run of one layer has depth 1. This is mergekit's arithmetic.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..errors import SpecError
from ._layers import natural, place, stacks
from ._recipe import Recipe
from ._recipe_row import Numbers, Row
from ._rule import Rule
from ._runs import Run, Scope, runs
from ._settings import Value

log = logging.getLogger(__name__)

BEFORE = re.compile(r"(^|\.)(wte|wpe|project_in|[^.]*embed(?!_out)[^.]*)(\.|$)", re.IGNORECASE)
COMPUTED = (
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
)  # buffers of older checkpoints: the model makes them


class Parent(Protocol):
    """What is asked of a parent; the sources of `checkpoints` have it."""

    @property
    def kinds(self) -> Mapping[str, Any]:
        """Its tensors, by name."""

    def tied_to(self, name: str) -> str | None:
        """The tensor that stands for a head or an embedding that is not stored."""


class Taken(NamedTuple):
    """A tensor of a parent."""

    parent: str
    name: str


@dataclass(frozen=True)
class Resolved:
    """A tensor of the output.

    Attributes:
        name: In the output.
        rule: The merge with its numbers; None: ``models`` has one tensor, which is copied.
        models: What is merged, in the rule's order.
        base: The base's tensor, where the rule needs one.
    """

    name: str
    rule: Rule | None
    models: tuple[Taken, ...]
    base: Taken | None = None


class _Target(NamedTuple):
    """A tensor that a run makes: its name in the output, its depth, and its name in every source."""

    run: Run
    name: str
    depth: float
    there: list[str]


def resolve(recipe: Recipe, parents: Mapping[str, Parent]) -> list[Resolved]:
    """What to do for every tensor of the output.

    Args:
        recipe: As read.
        parents: By the names in ``recipe.parents``.
    Returns:
        One a tensor, sorted by name, layers by number.
    Raises:
        SpecError: The recipe does not fit the parents, or does not say a number; names the key or the tensor.
    """
    try:
        made = list(_made(recipe, parents))
    except SpecError as error:
        raise SpecError(f"{recipe.where}{error}") from None
    _warn_of_idle_filters(recipe, made)
    return sorted(made, key=lambda one: natural(one.name))


def _made(recipe: Recipe, parents: Mapping[str, Parent]) -> Iterator[Resolved]:
    layers = {label: stacks(parent.kinds) for label, parent in parents.items()}
    for target in _targets(runs(recipe, layers), parents):
        if _everywhere(target, parents):
            yield _resolved(recipe.method, target)


def _warn_of_idle_filters(recipe: Recipe, made: Iterable[Resolved]) -> None:
    """A filter that no name contains is most likely misspelt; mergekit's recipes may have one and still be meant so."""
    names = {name for one in made for name in (one.name, *(taken.name for taken in one.models))}
    for said in recipe.said:
        for key, setting in said.settings.items():
            for case in setting.cases:
                if not any(map(case.holds, names)):
                    log.warning("%s%s.%s: no tensor's name contains %r", recipe.where, said.at, key, case.filter)


def _targets(made: list[Run], parents: Mapping[str, Parent]) -> Iterator[_Target]:
    """Every tensor that at least one source of its run has."""
    known = {stack for run in made for stack in run.lengths}
    outside: dict[bool, set[str]] = defaultdict(set)
    for parent in parents.values():
        for name in parent.kinds:
            where = place(name)
            if where is None or where.stack not in known:
                outside[bool(BEFORE.search(name))].add(name)
    for before, run in ((True, made[0]), (False, made[-1])):
        for name in sorted(outside[before]):
            if any(name in parents[source.model].kinds for source, _ in run.sources):
                yield _Target(run, name, 0.0, [name] * len(run.sources))
    for run in made:
        yield from _of_layers(run, parents)


def _of_layers(run: Run, parents: Mapping[str, Parent]) -> Iterator[_Target]:
    inner: dict[str, dict[str, dict[int, set[str]]]] = {
        source.model: _by_layer(parents[source.model].kinds) for source, _ in run.sources
    }
    for stack, length in run.lengths.items():
        for step in range(length):
            depth = step / (length - 1) if length > 1 else 1.0
            inside = set.union(*(inner[source.model][stack][first + step] for source, first in run.sources))
            for name in sorted(inside):
                there = [f"{stack}.{first + step}.{name}" for _, first in run.sources]
                yield _Target(run, f"{stack}.{run.first + step}.{name}", depth, there)


def _by_layer(names: Iterable[str]) -> dict[str, dict[int, set[str]]]:
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for where in filter(None, map(place, names)):
        found[where.stack][where.layer].add(where.inner)
    return found


def _everywhere(target: _Target, parents: Mapping[str, Parent]) -> bool:
    """Whether every source has the tensor, itself or tied; False for a buffer that need not be stored."""
    labels = [source.model for source, _ in target.run.sources]
    has = [name in parents[label].kinds for label, name in zip(labels, target.there)]
    lacks = [
        index
        for index, own in enumerate(has)
        if not own and parents[labels[index]].tied_to(target.there[index]) is None
    ]
    if not lacks or target.name.endswith(COMPUTED):
        return not lacks
    one, other = lacks[0], has.index(True)
    raise SpecError(
        f"{target.run.key}: {labels[one]} has no tensor {target.there[one]!r} to merge with {target.there[other]!r} of"
        f" {labels[other]}; merge models of one architecture"
    )


def _resolved(row: Row, target: _Target) -> Resolved:
    """The rule of one tensor: the base apart where it is what deltas are taken from, in front where it is merged."""
    run = target.run
    taken = [Taken(source.model, name) for (source, _), name in zip(run.sources, target.there)]
    order = [index for index in range(len(taken)) if run.base is None or taken[index].parent != taken[run.base].parent]
    if not order:  # the base alone: there is no delta
        return Resolved(target.name, None, (taken[run.base or 0],))
    if run.base is not None and row.base == "first":
        order.insert(0, run.base)
    values: dict[str, Any] = {}
    for key, parameter in row.parameters.items():
        if parameter.each:
            values[key] = tuple(_own_number(row, target, key, taken[index], index) for index in order)
        else:
            values[key] = _number(row, target, key, run.scopes, target.name)
    try:
        rule = row.rule(Numbers(len(order), run.base is not None, values))
    except ValueError as error:
        raise SpecError(f"{run.key}: {target.name!r}: {error}") from None
    base = taken[run.base] if run.base is not None and rule is not None and rule.needs_base else None
    return Resolved(target.name, rule, tuple(taken[index] for index in order), base)


def _own_number(row: Row, target: _Target, key: str, taken: Taken, index: int) -> Value | None:
    """A number of one source: its own scope comes first, and filters see the tensor's name in that source."""
    scopes = (target.run.sources[index][0].parameters, *target.run.scopes)
    return _number(row, target, key, scopes, taken.name, f" of {taken.parent}")


def _number(row: Row, target: _Target, key: str, scopes: Iterable[Scope], name: str, of: str = "") -> Value | None:
    """What the innermost scope that speaks of the tensor says; the default where none does."""
    parameter = row.parameters[key]
    for scope in scopes:
        if key in scope and (value := scope[key].at(name, target.depth)) is not None:
            return parameter.meaning(value)
    if parameter.required:
        raise SpecError(f"{target.run.key}: `{key}` is required and not said for {name!r}{of}; add it to `parameters`")
    return parameter.default

"""A recipe as runs of output layers: which layers of which parents make them, and what is said of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import SpecError
from ._recipe import Recipe
from ._recipe_parts import Cut, Input, Source
from ._settings import Setting

Layers = Mapping[str, Mapping[str, int]]  # by parent: the stacks of layers that it has, and how many each
Scope = Mapping[str, Setting]


class Run(NamedTuple):
    """Output layers that are merged alike.

    Attributes:
        key: Where the recipe speaks of it.
        first: Number of its first layer in the output.
        lengths: How many layers it makes, by stack.
        sources: What it is made from, and the number of the first layer there.
        base: Place of the base among the sources; None where the method wants none.
        scopes: What the recipe says of all its sources, the innermost first.
    """

    key: str
    first: int
    lengths: Mapping[str, int]
    sources: tuple[tuple[Input, int], ...]
    base: int | None
    scopes: tuple[Scope, ...]


def runs(recipe: Recipe, layers: Layers) -> list[Run]:
    """The runs, in the order of their output layers.

    Raises:
        SpecError: The parents' layers are not those that the recipe speaks of.
    """
    if not recipe.body.slices:
        return [_whole(recipe, layers)]
    made: list[Run] = []
    for number, cut in enumerate(recipe.body.slices):
        before = sum(next(iter(run.lengths.values())) for run in made)
        made.append(_slice(recipe, f"{recipe.at}slices.{number}", cut, before, layers))
    return made


def _whole(recipe: Recipe, layers: Layers) -> Run:
    """The run of a recipe of whole models, which all have the same layers; the base joins unasked."""
    entries, base = list(recipe.body.models or ()), recipe.base_of()
    if base is not None and base not in (entry.model for entry in entries):
        entries.insert(0, Input(model=base))
    expected = layers[entries[0].model]
    for entry in entries:
        if layers[entry.model] != expected:
            raise SpecError(
                f"{recipe.at}models: {entries[0].model} has {_told(expected)}, {entry.model} has"
                f" {_told(layers[entry.model])}; merge models of one shape, or layers of them with `slices`"
            )
    sources = tuple((entry, 0) for entry in entries)
    return Run(f"{recipe.at}models", 0, expected, sources, _index(entries, base), recipe.scopes)


def _slice(recipe: Recipe, key: str, cut: Cut, before: int, layers: Layers) -> Run:
    stack = _stack(cut.sources[0].model, layers)
    for number, source in enumerate(cut.sources):
        _check_range(f"{key}.sources.{number}", source, stack, layers)
    base = recipe.base_of(cut)
    found = _index(cut.sources, base)
    if base is not None and found is None:
        raise SpecError(f"{key}.sources: the base model {base} is missing; add it with the layers to compare with")
    first, stop = cut.sources[0].layer_range
    sources = tuple((source, source.layer_range[0]) for source in cut.sources)
    return Run(key, before, {stack: stop - first}, sources, found, (cut.parameters, *recipe.scopes))


def _index(entries: Sequence[Input], base: str | None) -> int | None:
    return next((index for index, entry in enumerate(entries) if entry.model == base), None)


def _stack(label: str, layers: Layers) -> str:
    """The one stack of layers that a model to be sliced has."""
    if len(layers[label]) != 1:
        raise SpecError(f"slices need models with one stack of layers; {label} has {_told(layers[label])}")
    return next(iter(layers[label]))


def _check_range(key: str, source: Source, stack: str, layers: Layers) -> None:
    own = _stack(source.model, layers)
    if own != stack:
        raise SpecError(f"{key}: {source.model} keeps its layers in {own!r}, the first source in {stack!r}")
    if source.layer_range[1] > layers[source.model][own]:
        count = layers[source.model][own]
        raise SpecError(f"{key}.layer_range: {source.model} has {count} layers, got {list(source.layer_range)}")


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} layers in {stack!r}" for stack, count in counts.items()) or "no layers"

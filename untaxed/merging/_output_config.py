"""The config.json of a merged model: the main parent's, with as many layers as the output has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import SpecError
from ._layers import stacks
from ._recipe import Recipe
from ._resolve import Parent, Resolved
from ._runs import Run, runs

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("lm_head.weight", "embed_out.weight")


class Configured(Parent, Protocol):
    """A parent whose config is known too."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json."""


def output_config(recipe: Recipe, parents: Mapping[str, Configured], resolved: list[Resolved]) -> dict[str, Any]:
    """The main parent's config, made to fit the output's tensors; dtypes are left as they are.

    - The number of layers is the output's. A list with one entry a layer (``layer_types``) is put together from the
      lists of the first sources.
    - Where some parent stores a head and another ties it to its embedding, the output stores it and is not tied.
    """
    config = copy.deepcopy(dict(parents[recipe.main].config))
    if recipe.body.slices:
        try:
            _cut(config, runs(recipe, {label: stacks(parent.kinds) for label, parent in parents.items()}), parents)
        except SpecError as error:
            raise SpecError(f"{recipe.where}{error}") from None
    if config.get("tie_word_embeddings") is not False and any(one.name.endswith(HEADS) for one in resolved):
        config["tie_word_embeddings"] = False
    return config


def _cut(config: dict[str, Any], made: list[Run], parents: Mapping[str, Configured]) -> None:
    """Writes the number of layers, and every list that has one entry a layer."""
    part, key = _counted(config)
    had = part[key]
    part[key] = sum(next(iter(run.lengths.values())) for run in made)
    for name, value in part.items():
        if isinstance(value, list) and len(value) == had and name != "architectures":
            part[name] = [entry for run in made for entry in _entries(name, run, parents)]


def _entries(name: str, run: Run, parents: Mapping[str, Configured]) -> list[Any]:
    source, first = run.sources[0]
    part, key = _counted(parents[source.model].config)
    values = part.get(name)
    if not isinstance(values, list) or len(values) != part[key]:
        raise SpecError(f"{run.key}: {source.model} says no {name!r} in config.json, which the output needs")
    return values[first : first + next(iter(run.lengths.values()))]


def _counted(config: Mapping[str, Any]) -> tuple[Any, str]:
    """The part of a config that says how many layers there are, and the key that it says it with."""
    for part in (config, config.get("text_config") or {}):
        for key in COUNTS:
            if isinstance(part.get(key), int):
                return part, key
    raise SpecError(f"slices: config.json says no number of layers ({', '.join(COUNTS)}), so it cannot be changed")

"""What a recipe comes to before anything is read or written: every tensor's rule, the bytes, the memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import Kind, Source, check_tokenizer, common_kind, fit, layout, open_source
from ..errors import SpecError
from ._layers import place
from ._output_config import output_config
from ._recipe import Recipe, parse_recipe, read_recipe
from ._resolve import Resolved, Taken, resolve
from ._rule import BLOCK, Rule

MOST_WORKERS = 8
BESIDE = 6  # blocks that a worker has beside those of the parents: intermediate results, what is written
KEPT = 2  # times what is in use: what malloc keeps for the next block, in pieces that do not fit
COUNTED = 8 * 2**20  # bytes of histograms and lists of the largest entries, a model that is trimmed
SUMMED = 4096  # entries a sum


@dataclass(frozen=True)
class Plan:
    """A merge, resolved.

    Attributes:
        recipe: As read.
        parents: Opened and made to fit each other, by their names in the recipe.
        tensors: What to do for every tensor of the output, in its order.
        kinds: Dtype and shape of every tensor of the output.
        config: Of the output.
        tokenizer: The directory of the output's tokenizer.
        notes: What was done to make the parents fit.
        workers: Threads.
        allow_nonfinite: Whether NaN and infinity are merged, and written.
    """

    recipe: Recipe
    parents: dict[str, Source]
    tensors: list[Resolved]
    kinds: dict[str, Kind]
    config: dict[str, Any]
    tokenizer: Path
    notes: list[str]
    workers: int
    allow_nonfinite: bool = False

    @property
    def main(self) -> Source:
        """The parent whose configuration and other files the output gets."""
        return self.parents[self.recipe.main]

    @property
    def read_bytes(self) -> tuple[int, int]:
        """Bytes to read, at least and at most: some merges must see a whole tensor first, more than once."""
        least = most = sum(parent.nbytes_beside for parent in self.parents.values())
        for one in self.tensors:
            nbytes = sum(self.parents[taken.parent].kind(taken.name).nbytes for taken in _taken(one))
            looks = one.rule is not None and one.rule.passes > 1 and self.kinds[one.name].dtype.is_floating_point
            least += nbytes * (2 if looks else 1)
            most += nbytes * (one.rule.passes if looks and one.rule else 1)
        return least, most

    @property
    def write_bytes(self) -> int:
        """Bytes of the output's tensors and headers."""
        return sum(shard.nbytes for shard in layout(self.kinds))

    @property
    def peak_bytes(self) -> int:
        """Memory beside the interpreter's, at most: a few blocks a worker, however large the models are.

        And the factors of a few tensors of every LoRA adapter.
        """
        held = sum(parent.held_bytes for parent in self.parents.values())
        return held + self.workers * max(self._held(one) for one in self.tensors)

    def _held(self, one: Resolved) -> int:
        count, kind, passes = len(_taken(one)), self.kinds[one.name], 1 if one.rule is None else one.rule.passes
        block = min(BLOCK, kind.numel) * max(4, kind.dtype.itemsize)
        sums = 8 * count * count * -(-kind.numel // SUMMED) if passes == 2 else 0
        return KEPT * block * (count + BESIDE) + sums + (COUNTED * count if passes > 2 else 0)

    def blocks(self) -> list[tuple[str, str, int]]:
        """The numbers of every block: which tensors, what happens to them, and how many they are.

        Neighbouring layers of which the same is true are one line.
        """
        layers = [(where, _told(members)) for where, members in groupby(self.tensors, key=_layer)]
        lines = []
        for said, run in groupby(layers, key=lambda layer: layer[1]):
            names = [where for where, _ in run]
            label = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
            lines += [(f"{label}{parts}", how, count * len(names)) for how, count, parts in said]
        return lines


def make_plan(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, workers: int | None = None, allow_nonfinite: bool = False
) -> Plan:
    """Opens a recipe's parents and resolves it; only headers and small files are read.

    Args:
        recipe: A recipe, its keys and values, or its file.
        workers: Threads; as many as there are processors, at most 8, where not given.
        allow_nonfinite: Whether NaN and infinity in a parent are merged instead of refused.
    Raises:
        SpecError: The recipe is wrong or does not fit the parents.
        CheckpointError: A parent cannot be used, or they do not fit each other.
    """
    if not isinstance(recipe, Recipe):
        recipe = parse_recipe(recipe) if isinstance(recipe, Mapping) else read_recipe(recipe)
    workers = min(MOST_WORKERS, _processors()) if workers is None else workers
    if workers < 1:
        raise SpecError(f"workers must be at least 1, got {workers}")
    opened = {label: open_source(label, allow_nonfinite=allow_nonfinite) for label in recipe.parents}
    fitted = fit(list(opened.values()), layers=not recipe.body.slices)
    parents = dict(zip(opened, fitted.parents))
    tensors = resolve(recipe, parents)
    wanted = None if recipe.written_dtype is None else getattr(torch, recipe.written_dtype)
    kinds = {one.name: _kind(one, parents, wanted) for one in tensors}
    config = output_config(recipe, parents, tensors)
    config["tie_word_embeddings"] = config.get("tie_word_embeddings", fitted.config.get("tie_word_embeddings"))
    if config["tie_word_embeddings"] is None:
        del config["tie_word_embeddings"]
    source = recipe.tokenizer_model
    taken = opened[source] if source in opened else open_source(source)
    notes = list(fitted.notes)
    if source != recipe.main:
        notes += check_tokenizer(taken, opened[recipe.main], merged=source in opened)
    return Plan(recipe, parents, tensors, kinds, config, taken.tokenizer, notes, workers, allow_nonfinite)


def _taken(one: Resolved) -> Sequence[Taken]:
    return one.models if one.base is None else (*one.models, one.base)


def _kind(one: Resolved, parents: Mapping[str, Source], wanted: torch.dtype | None) -> Kind:
    kind = common_kind(one.name, [(parents[taken.parent], taken.name) for taken in _taken(one)])
    return Kind(wanted, kind.shape) if wanted is not None and kind.dtype.is_floating_point else kind


def _layer(one: Resolved) -> str:
    where = place(one.name)
    return one.name if where is None else f"{where.stack}.{where.layer}"


def _told(members: Iterable[Resolved]) -> tuple[tuple[str, int, str], ...]:
    """What happens to a layer's tensors, to how many of them, and to which, where it is not the same for all."""
    parts: dict[str, list[str]] = {}
    for one in members:
        where = place(one.name)
        parts.setdefault(told(one), []).append("" if where is None else where.inner.split(".")[0])
    return tuple(
        (how, len(inner), f" ({', '.join(dict.fromkeys(inner))})" if len(parts) > 1 else "")
        for how, inner in parts.items()
    )


def told(one: Resolved) -> str:
    """A tensor's merge with its numbers, in words."""
    names = ", ".join(taken.parent for taken in one.models)
    if one.rule is None:
        return f"{names}, copied"
    own: Any = one.rule
    numbers = [f"{field.name} {_number(getattr(own, field.name))}" for field in fields(own) if _said(own, field)]
    base = "" if one.base is None else f" on {one.base.parent}"
    return f"{names}{base}: {', '.join([_title(own), *numbers])}"


def _said(rule: Rule, field: Any) -> bool:
    return field.name != "seed" and getattr(rule, field.name) != field.default


def _title(rule: Rule) -> str:
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in type(rule).__name__)
    return words.strip().removesuffix(" rule")


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_number, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

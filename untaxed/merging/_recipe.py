"""What a merge recipe is, as written in YAML: mergekit's format, read strictly.

YAML file ──> read_recipe ──> Recipe ──> resolve (with the parents' tensors) ──> one rule a tensor
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import PrivateAttr, field_validator, model_validator

from ..errors import SpecError, nearest, short
from ..strict_yaml import read_yaml
from ..validation import validated
from ._recipe_methods import METHODS
from ._recipe_parts import Cut, Input, Module, TokenizerSource, TokenizerSpec, Whole, exactly_one
from ._recipe_row import Row
from ._settings import Setting

Dtype = Literal["float16", "bfloat16", "float32", "float64"]


class Said(NamedTuple):
    """Numbers that a recipe says: where they stand, which they are, and whether of one model only."""

    at: str
    settings: Mapping[str, Setting]
    of_model: bool


class Recipe(Whole):
    """A merge as its YAML file says it.

    Attributes:
        models: Whole models; exactly one of this, ``slices`` and ``modules`` is given.
        slices: The output's layers, from the first to the last.
        modules: One module that holds ``models`` or ``slices``, as mergekit writes for models of one part.
        merge_method: A row of `METHODS`.
        base_model: What deltas are taken from, where the method knows deltas; of ``slerp`` the model at t = 0.
        dtype: What is written. Computed in float32 whatever is written here.
        out_dtype: What is written, before ``dtype``; mergekit computes in the latter.
        parameters: Numbers for all models, or for those that say none themselves.
        tokenizer_source: ``base`` or a model whose tokenizer the output gets; without it the base's or first model's.
        tokenizer: The same, in mergekit's newer form.
        chat_template: A Jinja template that replaces the tokenizer's.
    """

    modules: dict[str, Module] | None = None
    merge_method: str
    base_model: str | None = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerSpec | None = None
    chat_template: str | None = None
    _where: str = PrivateAttr("")
    _raw: Mapping[str, Any] = PrivateAttr({})

    @field_validator("merge_method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}")
        return name

    @field_validator("modules")
    @classmethod
    def _of_one_part(cls, value: dict[str, Module] | None) -> dict[str, Module] | None:
        if value is not None and len(value) != 1:
            raise ValueError(f"models of several parts are not supported, got {', '.join(value) or 'none'}")
        return value

    @field_validator("chat_template")
    @classmethod
    def _written_out(cls, value: str | None) -> str | None:
        if value is not None and "{" not in value:
            raise ValueError(f"should be a Jinja template, got {short(value)}; names of templates are not supported")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        exactly_one(self, ("models", "slices", "modules"))
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("`tokenizer_source` and `tokenizer` say the same thing; give one of them")
        return self

    @property
    def where(self) -> str:
        """What begins an error about it: its file, where it comes from one."""
        return self._where

    @property
    def raw(self) -> dict[str, Any]:
        """The keys and values as they were given, for a model card."""
        return copy.deepcopy(dict(self._raw))

    @property
    def method(self) -> Row:
        return METHODS[self.merge_method]

    @property
    def body(self) -> Whole:
        """Where ``models`` or ``slices`` stand: the recipe, or its one module."""
        return next(iter(self.modules.values())) if self.modules else self

    @property
    def at(self) -> str:
        """What stands before ``models`` and ``slices`` in the keys of this recipe."""
        return f"modules.{next(iter(self.modules))}." if self.modules else ""

    @property
    def scopes(self) -> tuple[dict[str, Setting], ...]:
        """What is said of all models and slices, the innermost first."""
        return (self.body.parameters, self.parameters) if self.modules else (self.parameters,)

    def base_of(self, cut: Cut | None = None) -> str | None:
        """What whole models, or the sources of a slice, are compared with; None where the method wants no base."""
        if self.method.base == "unused":
            return None
        return self.base_model if cut is None or cut.base_model is None else cut.base_model

    @property
    def parents(self) -> tuple[str, ...]:
        """Every model that is read, as the recipe writes it, once each, in order of appearance; the base first."""
        body = self.body
        bases = [self.base_model, *(cut.base_model for cut in body.slices or ())]
        used = [entry.model for entry in body.models or ()]
        used += [source.model for cut in body.slices or () for source in cut.sources]
        return tuple(dict.fromkeys([*(base for base in bases if base is not None), *used]))

    @property
    def lists(self) -> list[tuple[str, tuple[Input, ...], str | None]]:
        """What is merged with each other: the key where it stands, the models, and their base."""
        if self.body.models:
            return [(f"{self.at}models", self.body.models, self.base_of())]
        cuts = enumerate(self.body.slices or ())
        return [(f"{self.at}slices.{number}.sources", cut.sources, self.base_of(cut)) for number, cut in cuts]

    @property
    def said(self) -> Iterator[Said]:
        """Everything that it says under any ``parameters``."""
        yield Said("parameters", self.parameters, False)
        if self.modules:
            yield Said(f"{self.at}parameters", self.body.parameters, False)
        for number, cut in enumerate(self.body.slices or ()):
            yield Said(f"{self.at}slices.{number}.parameters", cut.parameters, False)
        for key, entries, _ in self.lists:
            for number, entry in enumerate(entries):
                yield Said(f"{key}.{number}.parameters", entry.parameters, True)

    @property
    def main(self) -> str:
        """The parent whose config and other files the output gets: the base, or the first model."""
        return self.parents[0]

    @property
    def written_dtype(self) -> str | None:
        """What weights are written as; None: as they are stored."""
        return self.out_dtype or self.dtype

    @property
    def tokenizer_model(self) -> str:
        """The model whose tokenizer the output gets; it need not be a parent."""
        given = self.tokenizer.source if self.tokenizer else self.tokenizer_source
        return self.main if given in (None, "base") else str(given)


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe file.

    Raises:
        SpecError: It cannot be read, or says something that is not understood; one line that names the key.
    """
    return parse_recipe(read_yaml(Path(path)), where=f"{path}: ")


def parse_recipe(raw: Mapping[str, Any], *, where: str = "") -> Recipe:
    """A recipe from keys and values; `where` begins its errors."""
    recipe = validated(Recipe, raw, where, what="a recipe")
    recipe._where, recipe._raw = where, copy.deepcopy(dict(raw))
    try:
        _check(recipe)
    except SpecError as error:
        raise SpecError(f"{where}{error}") from None
    return recipe


def _check(recipe: Recipe) -> None:
    """Every parameter is one of the method's, where it may stand and in its range; there are enough models."""
    row = recipe.method
    for said in recipe.said:
        row.check(said.settings, said.at, of_model=said.of_model)
    for key, entries, base in recipe.lists:
        if row.base in ("needed", "first") and base is None:
            what = "the model at t = 0" if row.base == "first" else "the model that the others were trained from"
            raise SpecError(f"base_model: is required by {row.name}: {what}")
        names = [entry.model for entry in entries]
        if row.base == "unused" and recipe.body.models and recipe.base_model not in (None, *names):
            raise SpecError(
                f"base_model: {row.name} takes no deltas, and mergekit would merge {recipe.base_model} as one more"
                f" model; list it under {key}, with its own numbers, or leave it out"
            )
        row.check_models(key, names, base)
